"""Guidance that is evaluated at some steps: what it costs, and how far it is from guidance at each step."""

from __future__ import annotations

import math

import exact
import numpy as np
import pytest
import torch
from exact import Mixture, normal

from admg import guidance, samplers
from admg.checkpoints.model import Model
from admg.guidance import State, reused

rng = np.random.default_rng(0)
SHAPE, N = (3, 2, 2), 12
MIXTURE = Mixture.of(SHAPE, [20, 10, 25, 15], rng.uniform(-0.3, 0.3, (4, *SHAPE)),
                     rng.uniform(0.05, 0.2, (4, *SHAPE)), [0, 0, 1, 1])  # fmt: skip
Y = torch.arange(N) % 2
A, B = (torch.from_numpy(rng.normal(size=(N, *SHAPE))) for _ in range(2))


def model_of(steps: int = 20) -> Model:
    return exact.model_of(MIXTURE, "fixed_small", conditional=True).respace(steps)


def run(guide, model: Model | None = None, sampler=samplers.ddim) -> torch.Tensor:
    return list(sampler(model or model_of(), normal(N, SHAPE), y=Y, guide=guide, clip=False))[-1].x


class Counted:
    """The exact classifier, which counts its calls."""

    calls = 0

    def __call__(self, x, timesteps):
        self.calls += 1
        return MIXTURE.classifier(x, timesteps)


def states(steps: int = 20) -> list[State]:
    model, x = model_of(steps), normal(N, SHAPE).double()
    return [State(x, index, Y, Y, model, clip=False) for index in reversed(range(steps))]


def linear(state: State) -> torch.Tensor:
    """A gradient whose effect on eps is A + B log σ."""
    alpha_bar = 1 / (1 + state.sigma**2)
    return -(A + B * math.log(state.sigma)) / math.sqrt(1 - alpha_bar)


@pytest.mark.parametrize("every", [2, 3, 5])
def test_an_effect_that_is_linear_in_the_logarithm_of_sigma_is_continued_exactly(every):
    guide, levels = guidance.Reused(linear, every).begin(), [math.log(state.sigma) for state in states()]
    for k, state in enumerate(states()):
        found, last = guide(state), k - k % every
        if k <= every or (levels[k] - levels[last]) / (levels[last] - levels[last - every]) <= 1:
            expected = linear(state) if k > every or k == last else linear(states()[0]) * _root(0) / _root(k)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        else:  # not farther than the last two are from each other
            limit = 2 * levels[last] - levels[last - every]
            torch.testing.assert_close(found * -_root(k), A + B * limit, rtol=1e-12, atol=1e-12)


def _root(k: int) -> float:
    sigma = states()[k].sigma
    return sigma / math.hypot(1, sigma)


@pytest.mark.parametrize("sampler, evaluations", [(samplers.ddim, 20), (samplers.ddpm, 20), (samplers.heun, 39)])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_classifier_is_called_at_one_of_so_many_evaluations(sampler, evaluations, every):
    classifier = Counted()
    guide = guidance.Reused(guidance.ClassifierGuidance(classifier, 2.0), every)
    first = run(guide, sampler=sampler)
    assert classifier.calls == -(-evaluations // every)
    if sampler is not samplers.ddpm:
        assert torch.equal(run(guide, sampler=sampler), first)  # nothing is remembered from run to run


def test_the_network_is_evaluated_without_labels_at_one_of_so_many_steps():
    model = model_of()
    found = run(guidance.Reused(guidance.ClassifierFreeGuidance(2.0), 2), model)
    assert len(model.network.timesteps) == 20 + 10
    close, far = (run(guide) for guide in (guidance.ClassifierFreeGuidance(2.0), None))
    assert (found - close).abs().mean() < 0.05 * (far - close).abs().mean()


@pytest.mark.parametrize(
    "guide", [guidance.ClassifierGuidance(MIXTURE.classifier, 2.0), guidance.ClassifierFreeGuidance(2.0)]
)
def test_it_is_closer_than_guidance_that_is_held_and_much_closer_than_half_the_steps(guide, monkeypatch):
    """At the same number of evaluations of the guide."""
    expected = run(guide, model_of(40))

    def error(found: torch.Tensor) -> float:
        return (found - expected).abs().mean().item()

    continued, fewer = error(run(guidance.Reused(guide), model_of(40))), error(run(guide, model_of(20)))
    monkeypatch.setattr(reused.Line, "value", lambda self, at: self.points[-1][1] if self.points else None)
    held = error(run(guidance.Reused(guide), model_of(40)))
    assert continued < 0.7 * held and continued < 0.1 * fewer, (continued, held, fewer)


def test_every_step_is_the_guide_and_other_guides_add_up():
    classifier = guidance.ClassifierGuidance(MIXTURE.classifier, 2.0)
    assert torch.equal(run(guidance.Reused(classifier, 1)), run(classifier))
    halves = guidance.Reused(0.5 * classifier) + guidance.Reused(0.5 * classifier)
    torch.testing.assert_close(run(halves), run(guidance.Reused(classifier)), atol=1e-5, rtol=1e-4)
    assert guidance.Reused(classifier).classifier == MIXTURE.classifier
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        guidance.Reused(classifier, 0)


def test_a_guide_that_gives_nothing_gives_nothing_later():
    assert torch.equal(run(guidance.Reused(lambda state: None)), run(None))
