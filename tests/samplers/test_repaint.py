"""RePaint on correlated Gaussian data, where the unknown pixels given the known ones are known exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exact import EVEN, betas_of
from torch import nn

import admg
from admg import guidance, samplers
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.diffusion.gaussian import Diffusion
from admg.diffusion.schedule import NoiseSchedule
from admg.generation.sampler_specs import SAMPLERS
from admg.samplers.repaint import jump_schedule

SHAPE = (1, 2, 2)
MEAN = np.array([0.3, -0.2, 0.1, 0.4])
STD = np.array([0.5, 0.3, 0.4, 0.6])
COVARIANCE = np.outer(STD, STD) * (0.5 * np.eye(4) + 0.5)
KNOWN = torch.tensor([[True, False], [True, False]])
IMAGE = torch.tensor([0.8, 0.0, 0.6, 0.0]).view(1, *SHAPE)


class Gaussian(nn.Module):
    """ε of N(MEAN, COVARIANCE) at the given timestep, from the marginal N(√ᾱ m, ᾱ S + (1 - ᾱ) I)."""

    def __init__(self):
        super().__init__()
        self.config, self.calls = SimpleNamespace(num_classes=0), 0

    def forward(self, x, timesteps):
        self.calls += 1
        a = EVEN[int(timesteps[0])]
        precision = torch.from_numpy(np.linalg.inv(a * COVARIANCE + (1 - a) * np.eye(4)))
        return (math.sqrt(1 - a) * (x.double().flatten(1) - math.sqrt(a) * torch.from_numpy(MEAN)) @ precision).view_as(
            x
        )


def model_of(steps: int, variance: str = "fixed_small") -> Model:
    schedule = NoiseSchedule.from_betas(betas_of(EVEN))
    return Model(Gaussian(), Diffusion(schedule, "eps", variance), SHAPE, Labels(0)).respace(steps)


class UnitNoise:
    """Noise in which pixel c of draw d is 1 only in image 1 + 4 d + c: a sampler's result is affine in its noise."""

    def __init__(self, draws: int):
        self.draws, self.done = draws, 0

    def __call__(self, x, index=None) -> torch.Tensor:
        noise = torch.zeros(1 + 4 * self.draws, 4)
        noise[1 + 4 * self.done + torch.arange(4), torch.arange(4)] = 1.0
        self.done += 1
        return noise.view(-1, *SHAPE)


def moments(sampler, draws: int, model: Model, **options) -> tuple[np.ndarray, np.ndarray]:
    """The exact mean and covariance of a sampler's images over all its noise, with no random numbers."""
    unit = UnitNoise(draws + 1)
    *_, last = sampler(model, unit(None), noise_sampler=unit, clip=False, **options)
    assert unit.done == draws + 1
    x = last.x.double().flatten(1).numpy()
    return x[0], (x[1:] - x[0]).T @ (x[1:] - x[0])


def draws_of(steps: int, jump: int, times: int) -> int:
    return sum((i > 0) + (rise > 0) for i, rise, _ in jump_schedule(steps, jump, times))


def conditional() -> tuple[np.ndarray, np.ndarray]:
    """Of pixels 1 and 3 given 0 and 2."""
    known, unknown = [0, 2], [1, 3]
    gain = COVARIANCE[np.ix_(unknown, known)] @ np.linalg.inv(COVARIANCE[np.ix_(known, known)])
    mean = MEAN[unknown] + gain @ (IMAGE.flatten().double().numpy()[known] - MEAN[known])
    return mean, COVARIANCE[np.ix_(unknown, unknown)] - gain @ COVARIANCE[np.ix_(known, unknown)]


def errors(times: int, steps: int = 50, jump: int = 5) -> tuple[float, float]:
    sampler = samplers.repaint(IMAGE, KNOWN, jump_length=jump, resamplings=times)
    mean, covariance = moments(sampler, draws_of(steps, jump, times), model_of(steps))
    assert np.allclose(mean[[0, 2]], [0.8, 0.6]) and np.allclose(covariance[[0, 2]], 0, atol=1e-12)
    exact_mean, exact_covariance = conditional()
    return np.abs(mean[[1, 3]] - exact_mean).max(), np.abs(covariance[np.ix_([1, 3], [1, 3])] - exact_covariance).max()


# -- by hand: mean and covariance through Algorithm 1, with a jump as single steps of q(x_{t+1} | x_t) ----------------


def algorithm_1(steps: int, jump: int, times: int) -> tuple[np.ndarray, np.ndarray]:
    """In float64, of fixed_small's variance β̃. Level k has noised k + 1 times; level -1 is the image."""
    alpha_bars = EVEN[model_of(steps).diffusion.schedule.timesteps.numpy()]
    betas = betas_of(alpha_bars)
    known, image = KNOWN.flatten().numpy(), IMAGE.flatten().double().numpy()
    mean, covariance, left = np.zeros(4), np.eye(4), dict.fromkeys(range(0, steps - jump, jump), times - 1)
    k = steps - 1
    while k >= 0:
        a, before, beta = alpha_bars[k], alpha_bars[k - 1] if k else 1.0, betas[k]
        score = -np.linalg.inv(a * COVARIANCE + (1 - a) * np.eye(4))  # times x - √ᾱ m
        step = (np.eye(4) + beta * score) / math.sqrt(1 - beta)  # DDPM, equation 11
        shift = -beta * score @ (math.sqrt(a) * MEAN) / math.sqrt(1 - beta)
        noise = beta * (1 - before) / (1 - a)
        mean, covariance = step @ mean + shift, step @ covariance @ step.T + noise * np.eye(4)
        mean = np.where(known, math.sqrt(before) * image, mean)
        covariance = np.where(known[:, None] | known, 0, covariance) + np.diag(known * (1 - before))
        k -= 1
        if left.get(k, 0) > 0:
            left[k] -= 1
            for _ in range(jump):
                k += 1
                mean, covariance = math.sqrt(1 - betas[k]) * mean, (1 - betas[k]) * covariance + betas[k] * np.eye(4)
    return mean, covariance


@pytest.mark.parametrize("steps, jump, times", [(10, 1, 1), (10, 1, 4), (20, 5, 3), (21, 3, 2), (6, 5, 3)])
def test_means_and_covariances_are_those_of_algorithm_1(steps, jump, times):
    sampler = samplers.repaint(IMAGE, KNOWN, jump_length=jump, resamplings=times)
    mean, covariance = moments(sampler, draws_of(steps, jump, times), model_of(steps))
    by_hand = algorithm_1(steps, jump, times)
    np.testing.assert_allclose(mean, by_hand[0], atol=1e-5)
    np.testing.assert_allclose(covariance, by_hand[1], atol=1e-5)


# -- against the exact conditional -------------------------------------------------------------------------------


@pytest.mark.thorough
def test_more_resamplings_come_closer_to_the_exact_conditional():
    """In mean and in covariance; without any, the unknown pixels learn of the known ones through x_t alone."""
    found = {times: errors(times, steps=200, jump=20) for times in (1, 2, 5, 10)}
    means, covariances = zip(*found.values())
    assert list(means) == sorted(means, reverse=True) and means[-1] < 0.3 * means[0]
    assert max(covariances[2:]) < 0.15 * covariances[0]


@pytest.mark.thorough
def test_known_pixels_are_exact_in_any_batch_and_with_any_guide(tiny_model, tiny_classifier):
    known, mask = torch.rand(3, 1, 8, 8) * 2 - 1, torch.rand(8, 8) < 0.5
    guides = [None, guidance.ClassifierFreeGuidance(2.0), guidance.ClassifierGuidance(tiny_classifier, 2.0)]
    for guide in guides:
        sampler = samplers.repaint(known, mask, jump_length=2, resamplings=2)
        x = admg.sample(tiny_model, [0, 1, 2], guide=guide, sampler=sampler, steps=8, progress=False).x
        assert torch.equal(x[:, :, mask], known[:, :, mask]) and x.isfinite().all()
        assert (x[:, :, ~mask] - known[:, :, ~mask]).abs().mean() > 0.1
    one = samplers.repaint(known[:1], mask, jump_length=2, resamplings=2)
    together, alone = (
        admg.sample(tiny_model, [0, 1], sampler=one, steps=8, batch_size=b, progress=False).x for b in (2, 1)
    )
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_a_channel_may_be_known_alone():
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[0, 0, 1] = True
    *_, last = samplers.repaint(IMAGE, mask, resamplings=1)(model_of(5), torch.randn(4, *SHAPE))
    assert (last.x[:, 0, 0, 1] == IMAGE[0, 0, 0, 1]).all() and (last.x[:, 0, 0, 0] != IMAGE[0, 0, 0, 0]).all()


def test_with_nothing_resampled_unknown_pixels_are_ddpms():
    """If the known pixels are independent of the rest; a guide's scores included."""

    class Independent(Gaussian):
        def forward(self, x, timesteps):
            return x * 0.5

    model, x_T = model_of(10, "fixed_large"), torch.randn(3, *SHAPE)
    model = replace(model, network=Independent())
    noise = {i: torch.randn(3, *SHAPE) for i in range(10)}
    plain, painted = (
        [*sampler(model, x_T, guide=lambda state: 2 - state.x, noise_sampler=lambda x, i: noise[i], clip=False)]
        for sampler in (samplers.ddpm, samplers.repaint(IMAGE, KNOWN, resamplings=1))
    )
    assert [(s.index, s.t) for s in plain] == [(s.index, s.t) for s in painted]
    for a, b in zip(plain, painted):
        torch.testing.assert_close(a.x[:, :, ~KNOWN], b.x[:, :, ~KNOWN])


@pytest.mark.parametrize("steps, jump, times", [(250, 10, 10), (20, 1, 3), (7, 3, 2), (5, 9, 1)])
def test_the_path_comes_down_as_often_as_given(steps, jump, times):
    visits, height = [0] * steps, steps
    for i, rise, _ in jump_schedule(steps, jump, times):
        assert i == height - 1 and i - 1 + rise < steps
        visits[i] += 1
        height = i + rise
    assert height == 0 and visits[0] == 1
    reached = len(range(0, steps - jump, jump)) * jump  # the highest level that a jump leads to
    assert visits[1 : reached + 1] == [times] * reached and set(visits[reached + 1 :]) <= {1}
    assert [i for i, _, last in jump_schedule(steps, jump, times) if last] == [*range(steps - 1, -1, -1)]


def test_a_step_for_each_level_and_the_network_called_as_often_as_the_path_is_long():
    model = model_of(20)
    steps = [*samplers.repaint(IMAGE, KNOWN, jump_length=4, resamplings=3)(model, torch.randn(2, *SHAPE))]
    assert [s.index for s in steps] == [*range(19, -1, -1)] and model.network.calls == 20 + 2 * 16
    assert "repaint" not in SAMPLERS


def test_what_cannot_be_is_refused():
    model, x_T = model_of(10), torch.randn(3, *SHAPE)
    for make, message in (
        (lambda: samplers.repaint(IMAGE, KNOWN, jump_length=0), "at least 1"),
        (lambda: samplers.repaint(IMAGE, KNOWN, resamplings=0), "at least 1"),
        (lambda: samplers.repaint(IMAGE[0], KNOWN), r"shape \(1 or N, C, H, W\)"),
        (lambda: samplers.repaint(IMAGE, KNOWN.float()), "bool"),
        (lambda: samplers.repaint(IMAGE, torch.ones(3, 3).bool()), "the mask must match images"),
        (
            lambda: [*samplers.repaint(IMAGE, KNOWN)(model, x_T)],
            "jump_length must be less than",
        ),
        (lambda: [*samplers.repaint(IMAGE.expand(2, -1, -1, -1), KNOWN)(model, x_T)], "known images must have shape"),
        (lambda: [*samplers.repaint(torch.zeros(1, 3, 2, 2), KNOWN)(model, x_T)], "known images must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
