"""Guides add up and scale, plain functions become guides, and a sampler that ignores its guide is noticed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from exact import normal

import admg
from admg import guidance, samplers
from admg.guidance import Guidance, State

Y = torch.tensor([1, 2, 0])


@guidance.guide
def darker(state: State) -> torch.Tensor:
    return -0.5 * torch.ones_like(state.x)


@guidance.guide
def smaller(state: State) -> torch.Tensor:
    return -state.x


def state_of(model) -> State:
    return State(normal(3, (1, 8, 8)), 3, Y, Y, model.respace(6))


def test_two_functions_add_up(tiny_model):
    state = state_of(tiny_model)
    expected = -0.5 - state.x
    for guide in (darker + smaller, sum([darker, smaller]), darker + smaller.guide, smaller.guide + darker):
        torch.testing.assert_close(guide(state), expected)
    torch.testing.assert_close(guidance.guide(darker.guide)(state), darker(state))
    assert guidance.guide(darker) is darker


def test_sum_of_one_guide_is_the_guide():
    assert sum([darker]) is darker


@pytest.mark.parametrize("factor", [2, -1.5, np.float64(3.0)])
def test_a_factor_scales_the_gradient(tiny_model, factor):
    state = state_of(tiny_model)
    for guide in (factor * darker, darker * factor):
        torch.testing.assert_close(guide(state), float(factor) * darker(state))
    both = factor * (darker + smaller)
    torch.testing.assert_close(both(state), float(factor) * (darker + smaller)(state))


@pytest.mark.parametrize(
    "make", [guidance.ClassifierFreeGuidance, guidance.CFGZeroStar, lambda w: guidance.APG(w, momentum=0.0)]
)
def test_a_factor_scales_what_a_guide_adds_to_the_prediction(tiny_model, make):
    """2 (w - 1) times the difference of two predictions is guidance of scale 2 w - 1."""
    found, expected = (g.modify_prediction(state_of(tiny_model)) for g in (2 * make(2.0), make(3.0)))
    for name in ("x0", "eps", "mean"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-4, rtol=1e-4)


def test_factors_1_and_0(tiny_model):
    def fails(state: State) -> torch.Tensor:
        raise AssertionError("the guide was evaluated")

    state, cfg = state_of(tiny_model), guidance.ClassifierFreeGuidance(3.0)
    assert torch.equal((1 * cfg).modify_prediction(state).eps, cfg.modify_prediction(state).eps)
    off = 0 * (cfg + guidance.guide(fails))
    assert off.modify_prediction(state) is state.pred and off(state) is None


def test_cfg_plus_plus_cannot_be_scaled(tiny_model):
    with pytest.raises(ValueError, match=r"CFG\+\+"):
        (2 * guidance.CFGPlusPlus()).modify_prediction(state_of(tiny_model))


def test_a_scaled_sum_keeps_its_classifier(tiny_classifier):
    assert (2 * (darker + guidance.ClassifierGuidance(tiny_classifier))).classifier is tiny_classifier


@pytest.mark.thorough
def test_a_memory_lasts_for_one_run_even_inside_other_guides(tiny_model):
    """The same guide object in two runs gives the same images; the memory of a run changes them."""
    model, apg = tiny_model.respace(6), guidance.APG(3.0, momentum=-0.7)

    def end(guide) -> torch.Tensor:
        return list(samplers.ddim(model, normal(3, (1, 8, 8)), y=Y, guide=guide))[-1].x

    image = torch.zeros(1, 1, 8, 8)
    for guide in (
        apg, guidance.Interval(apg), guidance.Rescaled(apg), 1.5 * apg, apg + darker, guidance.ILVR(image, 4, apg),
    ):  # fmt: skip
        first = end(guide)
        assert torch.equal(end(guide), first)
    assert not torch.equal(end(apg), end(guidance.APG(3.0, momentum=0.0)))


def test_a_guide_of_ones_own_may_have_a_memory(tiny_model):
    @dataclass
    class Counting(Guidance):
        steps: int = 0

        def begin(self) -> Counting:
            return Counting()

        def __call__(self, state: State) -> torch.Tensor:
            self.steps += 1
            seen.append(self.steps)
            return 0.0 * state.x

    seen: list[int] = []
    for _ in range(2):
        list(samplers.ddim(tiny_model.respace(3), normal(3, (1, 8, 8)), guide=guidance.Interval(Counting()) + darker))
    assert seen == [1, 2, 3, 1, 2, 3]


class Linear(torch.nn.Module):
    """A classifier of five classes, whose weights require gradients."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(normal(64, (5,)))

    def forward(self, x, timesteps=None):
        return x.flatten(1) @ self.weight


def test_a_guide_of_ones_own_may_differentiate(tiny_model):
    """By torch.autograd.grad alone, in a function or class; the samples are those of the built-in guides."""
    classifier, model = Linear(), tiny_model.respace(3)
    found: list[State] = []

    def log_p(images, y):
        return classifier(images).log_softmax(1)[range(len(y)), y].sum()

    def of_x(state: State) -> torch.Tensor:
        found.append(state)
        x = state.x.detach().requires_grad_(True)
        return torch.autograd.grad(log_p(x, state.y), x, create_graph=True)[0]

    def in_place(state: State) -> torch.Tensor:
        x = state.x.requires_grad_(True)
        return torch.autograd.grad(log_p(x, state.y), x)[0] + 0 * state.prediction.x0

    def of_x0(state: State) -> torch.Tensor:
        x, prediction = state.differentiable()
        return torch.autograd.grad(log_p(prediction.x0, state.y), x)[0]

    class Own(Guidance):
        def __call__(self, state: State) -> torch.Tensor:
            return of_x(state)

    def final(guide, clip=True) -> torch.Tensor:
        *_, step = samplers.ddim(model, normal(3, (1, 8, 8)), y=Y, guide=guide, clip=clip)
        assert not step.x.requires_grad and not step.x0.requires_grad
        return step.x

    expected = final(guidance.ClassifierGuidance(classifier))
    for guide in (of_x, in_place, Own(), 1 * guidance.guide(of_x)):
        torch.testing.assert_close(final(guide), expected)
    at_x0 = guidance.LossGuidance(lambda x0: -classifier(x0).log_softmax(1)[range(3), Y])
    torch.testing.assert_close(final(of_x0, clip=False), final(at_x0, clip=False))
    assert all(p.grad is None for p in (*model.network.parameters(), *classifier.parameters()))
    assert not found[-1].unguided.x0.requires_grad and not found[-1].prediction.x0.requires_grad


def test_a_guide_records_whether_it_was_evaluated(tiny_model):
    recorded = guidance.Recorded(darker.guide)
    assert not recorded.evaluated
    list(samplers.ddim(tiny_model.respace(3), normal(3, (1, 8, 8)), guide=recorded))
    assert recorded.evaluated and recorded.steps == [2, 1, 0]


@pytest.mark.thorough
@pytest.mark.parametrize("guide", [darker, lambda state: None, guidance.Interval(darker, 1e6)])
def test_a_sampler_that_ignores_its_guide_is_refused(tiny_model, guide):
    def ignoring(model, x_T, *, y=None, guide=None, noise_sampler=None, clip=True, unconditional=False):
        yield from samplers.ddim(model, x_T, y=y, clip=clip, unconditional=unconditional)

    with pytest.raises(ValueError, match=r"sampler 'ignoring' never evaluated the guide"):
        admg.sample(tiny_model, ["one"], guide=guide, sampler=ignoring, steps=3, progress=False)
    admg.sample(tiny_model, ["one"], sampler=ignoring, steps=3, progress=False)
    admg.sample(tiny_model, ["one"], guide=guide, steps=3, progress=False)


def test_a_guide_that_modifies_predictions_is_refused_inside_a_function(tiny_model):
    """A function around it would call only its gradient, which it does not have, and the images would be unguided."""
    cfg = guidance.ClassifierFreeGuidance(3.0)
    steps = samplers.ddim(tiny_model.respace(3), normal(3, (1, 8, 8)), y=Y, guide=lambda state: cfg(state))
    with pytest.raises(ValueError, match="ClassifierFreeGuidance modifies the prediction and has no gradient"):
        next(steps)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_factors_are_finite(factor):
    with pytest.raises(ValueError, match="the factor of a guide must be a finite number"):
        factor * guidance.ClassifierFreeGuidance(3.0)


class Darker(torch.nn.Module):
    """A network without labels."""

    def forward(self, x, timesteps):
        return 0.5 * x


def test_labels_of_samplers(tiny_model):
    """Lists and arrays are labels as tensors are; what is no label, or has no effect, is refused."""
    model, x = tiny_model.respace(2), normal(3, (1, 8, 8))

    def final(y, model=model, guide=None):
        *_, last = samplers.ddim(model, x, y=y, guide=guide)
        return last.x

    for y in ([1, 2, 0], np.array([1, 2, 0], np.uint8), Y.int()):
        assert torch.equal(final(y), final(Y))
    assert torch.equal(final([-1, 2, -1])[1], final(Y)[1])
    for y, message in ((["a", "b", "c"], "whole number per image"), ([0.0, 1.0, 2.0], "got torch.float32"),
                       (torch.tensor([True] * 3), "got torch.bool"), ([0, 1], r"shape \(3,\)"),
                       ([0, 1, -5], "-1 for images without a label, got -5")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            final(y)
    noise = admg.Diffusion(model.diffusion.schedule, "eps", "fixed_small")
    unconditional = admg.Model(Darker(), noise, (1, 8, 8))
    for guide in (None, guidance.AutoGuidance(unconditional, 2.0)):
        with pytest.raises(ValueError, match="y would have no effect"):
            final(Y, unconditional, guide)


def cond_fn(x, t, y=None):
    """The classifier gradient as guided-diffusion writes it."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        log_p = CLASSIFIER(x, t).log_softmax(1)[range(len(x)), y.view(-1)]
        return torch.autograd.grad(log_p.sum(), x)[0]


CLASSIFIER = Linear()


def test_what_is_not_a_guide_is_refused(tiny_model, tiny_classifier):
    a_guide = "a guide must be a Guidance or a function of a guidance.State, got "
    use = "use guidance.ClassifierGuidance"
    for guide, message in (
        (tiny_classifier, f"Classifier, which takes other arguments: {use}(classifier, scale)"),
        (tiny_classifier.network, f"NoisyClassifier, which takes other arguments: {use}(classifier, scale)"),
        (torch.nn.Linear(4, 4), "the network Linear: use guidance.ExtendedClassifierGuidance(network, scale, at='x0')"),
        ("fashion-mnist", f"'fashion-mnist': {use}(admg.load_classifier('fashion-mnist'), scale)"),
        ([darker, smaller], "a list: add guides with +"),
        (4.0, "4.0"),
        (guidance.ClassifierGuidance, "the class ClassifierGuidance: make an object of it"),
        (cond_fn, "a function of (x, t, y): use lambda state: cond_fn(state.x, state.t.expand(len(state.x)), "
                  "y=state.y)"),
        (darker + cond_fn, "a function of (x, t, y)"),
        (2 * guidance.guide(tiny_classifier), "Classifier, which takes"),
    ):  # fmt: skip
        for run in (
            lambda guide: admg.sample(tiny_model, ["one"], guide=guide, steps=2, progress=False),
            lambda guide: next(samplers.ddim(tiny_model.respace(2), normal(1, (1, 8, 8)), y=[1], guide=guide)),
        ):
            with pytest.raises(ValueError, match=re.escape(a_guide + message)):
                run(guide)


def test_a_guidance_that_overrides_nothing_is_refused(tiny_model):
    class Own(Guidance):
        def gradient(self, state: State) -> torch.Tensor:
            return torch.ones_like(state.x)

    with pytest.raises(ValueError, match="Own has no effect: a Guidance overrides __call__ or modify_prediction"):
        admg.sample(tiny_model, ["one"], guide=darker + Own(), steps=2, progress=False)


def test_a_function_of_guided_diffusion_in_the_form_that_the_error_gives(tiny_model):
    options = {"labels": [0, 1, 4], "sampler": "ddpm", "steps": 3, "progress": False}
    wrapped = admg.sample(
        tiny_model, guide=lambda state: cond_fn(state.x, state.t.expand(len(state.x)), y=state.y), **options
    )
    expected = admg.sample(tiny_model, guide=guidance.ClassifierGuidance(CLASSIFIER), **options)
    torch.testing.assert_close(wrapped.x, expected.x)
