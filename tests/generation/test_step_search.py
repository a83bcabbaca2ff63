"""The search for timesteps: distances of images whose ODE is solved by hand, and the best timesteps by brute force."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from exact import EVEN, Mixture, model_of

import admg
from admg import guidance
from admg.checkpoints import tuned
from admg.diffusion.noise import SeededNoise
from admg.diffusion.schedule import NoiseSchedule
from admg.generation.recipe import Recipe
from admg.generation.step_search import STARTS, distance, levenberg_marquardt_step, move_timestep, search_steps

STDS = np.array([0.05, 0.1, 0.2, 0.3])
SHAPE = (1, 2, 2)
COUNT = 4


@pytest.fixture(scope="module")
def model():
    """Four independent pixels with a normal distribution each, of which a step of DDIM is a factor."""
    return model_of(Mixture.of(SHAPE, [1.0], [0.0], [STDS], [0]))


def factors(timesteps) -> np.ndarray:
    """Return what DDIM multiplies each pixel of x_T by (4,): x_0 = α v x/(α² v + σ²), and eps from it."""
    factor = np.ones(4)
    for now, then in itertools.pairwise([*reversed(timesteps), None]):
        alpha, sigma = np.sqrt(EVEN[now]), np.sqrt(1 - EVEN[now])
        after = (np.sqrt(EVEN[then]), np.sqrt(1 - EVEN[then])) if then is not None else (1.0, 0.0)
        x0 = alpha * STDS**2 / (alpha**2 * STDS**2 + sigma**2)
        factor = factor * (after[0] * x0 + after[1] * (1 - alpha * x0) / sigma)
    return factor


TARGET = factors(NoiseSchedule.from_betas(1 - EVEN / np.array([1.0, *EVEN[:-1]])).indices("karras60"))
NOISE = SeededNoise(3, range(COUNT)).draw(SHAPE).double().flatten(1).numpy()


def by_hand(timesteps) -> float:
    """Return the root-mean-square distance of the images of seed 3 from those of "karras60"."""
    return float(np.sqrt(np.mean((NOISE * (factors(timesteps) - TARGET)) ** 2)))


def test_distances_are_those_by_hand(model):
    with distance(model, Recipe(sampler="ddim", seed=3), [None] * COUNT) as measure:
        for timesteps in ([999], [0, 999], [100, 400, 990], [5, 300, 500, 700]):
            assert measure(timesteps) == pytest.approx(by_hand(timesteps), rel=1e-4)


@pytest.mark.thorough
def test_the_search_finds_the_best_pair_of_timesteps(model):
    """As good as the best of all pairs on a grid, and much better than the known spacings."""
    with distance(model, Recipe(sampler="ddim", seed=3), [None] * COUNT) as measure:
        next(iter(search_steps(measure, 3)))  # whose trials do not count
        others = len(measure.errors)
        trials = list(search_steps(measure, 2))
        assert trials[-1].trials == len(measure.errors) - others
        known = {f"{name}2": measure(model.diffusion.schedule.indices(f"{name}2")) for name in STARTS}
    best = trials[-1]
    grid = range(1, 1000, 18)
    least = min(by_hand(pair) for pair in itertools.combinations(grid, 2))
    assert best.error == pytest.approx(by_hand(best.timesteps), rel=1e-3)
    assert best.error < 1.05 * least < 0.05 * best.start_error
    assert best.start_error == known[best.start] == min(known.values())
    assert all(after.error <= before.error for before, after in itertools.pairwise(trials))
    assert model.respace(best.spec).diffusion.schedule.timesteps.tolist() == list(best.timesteps)


def test_timesteps_stay_between_their_neighbours():
    assert move_timestep((10, 50, 60), 1, 100) == (10, 45, 60)  # 39 places below, 9 above
    assert move_timestep((10, 50, 60), 0, 100) == (15, 50, 60)
    assert move_timestep((0, 98, 99), 2, 100) is None
    assert move_timestep((0, 97, 99), 1, 100) == (0, 85, 99)
    slopes, residual = torch.eye(3, dtype=torch.float64), torch.tensor([-2.0, 90.0, -90.0], dtype=torch.float64)
    assert levenberg_marquardt_step((10, 50, 60), slopes, residual, 0.0, 100) == (12, 30, 80)  # at most half of the way
    assert levenberg_marquardt_step((10, 50, 60), slopes, residual, 1.0, 100)[0] == 11
    assert levenberg_marquardt_step((97, 98, 99), slopes, -abs(residual), 0.0, 100) == (97, 98, 99)
    assert levenberg_marquardt_step((10, 50, 60), torch.zeros(3, 3, dtype=torch.float64), residual, 0.1, 100) == (
        10,
        50,
        60,
    )


def test_samplers_with_noise_are_refused(model):
    with (
        pytest.raises(ValueError, match=r"^the sampler must not draw noise"),
        distance(model, Recipe(sampler="ddpm"), [None], fine="3"),
    ):
        pass


def test_listed_timesteps_are_kept_as_they_are():
    schedule = NoiseSchedule.linear()
    kept = schedule.respace(" at7+310+998")
    assert kept.timesteps.tolist() == [7, 310, 998]
    torch.testing.assert_close(kept.alpha_bar, schedule.alpha_bar[[7, 310, 998]], rtol=1e-12, atol=0)
    for wrong in ("at5+5", "at7+3", "at1000"):
        with pytest.raises(ValueError, match=rf"^steps '{wrong.replace('+', '.')}': the steps must increase, from 0"):
            schedule.respace(wrong)
    for wrong in ("at", "at1,2", "at+1", "at-1+2"):
        with pytest.raises(ValueError, match=r"expected a number of steps such as 25"):
            schedule.respace(wrong)


def test_tuned_steps_are_looked_up_in_the_model(model):
    known = dataclasses.replace(model, training={tuned.KEY: {"2": {"steps": "at9+800"}, "3": {"steps": "at1+2"}}})
    assert known.respace("tuned2").diffusion.schedule.timesteps.tolist() == [9, 800]
    assert (
        known.explicit("tuned02") == "at9+800" and known.explicit(25) == 25 and known.explicit("karras5") == "karras5"
    )
    for missing in ("tuned3", "tuned4"):  # three steps of which two are listed, and none
        with pytest.raises(ValueError, match=rf"^steps '{missing}': this model has tuned2, tuned3; `admg tune-steps`"):
            known.respace(missing)
    for damaged in ({}, {tuned.KEY: []}, {tuned.KEY: {"2": 3}}, {tuned.KEY: {"2": {"steps": [1, 2]}}}):
        with pytest.raises(ValueError, match=r"^steps 'tuned2': this model has"):
            dataclasses.replace(model, training=damaged).respace("tuned2")


@pytest.mark.thorough
def test_the_shipped_model_has_five_steps_that_come_close_to_sixty():
    """Less than two thirds of the distance of the best known spacing, for noise that the search has not seen."""
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    guide = guidance.ClassifierGuidance(classifier, 2.0)
    fine, known, found = (
        admg.sample(model, [0, 4, 5, 8], guide=guide, sampler="dpmpp_2m", steps=steps, seed=5, progress=False).x
        for steps in ("60", "logsnr5", "tuned5")
    )
    assert (found - fine).square().mean().sqrt() < 2 / 3 * (known - fine).square().mean().sqrt()
