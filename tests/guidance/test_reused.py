"""Guidance that is evaluated at some steps: what it costs, and how far it is from guidance at each step."""

from __future__ import annotations

import itertools
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


def due(sigmas: list[float], every: int) -> list[int]:
    """The evaluations at which a guide is computed: every n-th, and those more than 0.6 in log σ from the last one."""
    found = [0]
    for k, sigma in enumerate(sigmas):
        if k - found[-1] == every or abs(math.log(sigma / sigmas[found[-1]])) > 0.6:
            found.append(k)
    return found


@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("every", [2, 3, 5])
def test_an_effect_that_is_linear_in_the_logarithm_of_sigma_is_continued_exactly(every, steps):
    guide, levels = guidance.Reused(linear, every).begin(), [math.log(state.sigma) for state in states(steps)]
    computed = due([state.sigma for state in states(steps)], every)
    for k, state in enumerate(states(steps)):
        found, before = guide(state), [j for j in computed if j <= k][-2:]
        last = before[-1]
        ahead = (
            0.0 if len(before) == 1 or k == last else (levels[k] - levels[last]) / (levels[last] - levels[before[0]])
        )
        reached = levels[last] + min(1.0, ahead) * (levels[last] - levels[before[0]])  # as far as these two are apart
        torch.testing.assert_close(found * -_root(state), A + B * reached, rtol=1e-12, atol=1e-12)


def _root(state: State) -> float:
    return state.sigma / math.hypot(1, state.sigma)


@pytest.mark.parametrize("sampler, evaluations", [(samplers.ddim, 60), (samplers.ddpm, 60), (samplers.heun, 119)])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_classifier_is_called_at_one_of_so_many_evaluations(sampler, evaluations, every):
    classifier, sigmas = Counted(), []
    run(lambda state: sigmas.append(state.sigma), model_of(60), sampler)
    guide = guidance.Reused(guidance.ClassifierGuidance(classifier, 2.0), every)
    first = run(guide, model_of(60), sampler)
    assert len(sigmas) == evaluations and classifier.calls == len(due(sigmas, every))
    assert classifier.calls <= -(-evaluations // every) + 4  # of the last steps, which are far apart
    if sampler is not samplers.ddpm:
        assert torch.equal(run(guide, model_of(60), sampler), first)  # nothing is remembered from run to run


def test_steps_that_are_far_apart_are_all_guided():
    """Between the first two of even steps on a cosine schedule, σ falls from 20,000 to 15."""
    classifier = Counted()
    model = model_of(4)
    assert all(a.sigma > 2 * b.sigma for a, b in itertools.pairwise(states(4)))
    guide = guidance.ClassifierGuidance(classifier, 2.0)
    assert torch.equal(run(guidance.Reused(guide), model), run(guide, model))


def test_the_network_is_evaluated_without_labels_at_one_of_so_many_steps():
    model = model_of()
    found = run(guidance.Reused(guidance.ClassifierFreeGuidance(2.0), 2), model)
    assert len(model.network.timesteps) == 20 + len(due([state.sigma for state in states()], 2)) < 20 + 14
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
