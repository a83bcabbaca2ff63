"""Step spacings that guided-diffusion does not have: their positions, and refused spacings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from exact import EVEN, betas_of

from admg.diffusion.schedule import MAX_SIGMA, SPACINGS, NoiseSchedule

LINEAR = NoiseSchedule.linear()


def kept(spec: str, schedule: NoiseSchedule = LINEAR) -> np.ndarray:
    return schedule.respace(spec).timesteps.numpy()


def test_uniform_is_the_even_respacing_of_guided_diffusion():
    for steps in (2, 7, 25, 250, 1000):
        assert np.abs(kept(f"uniform{steps}") - kept(str(steps))).max() <= 1  # which rounds running sums


def test_quad_is_even_in_the_root_of_t():
    assert kept("quad5").tolist() == [0, 62, 250, 562, 999]  # 999 (i/4)²


def test_logsnr_is_even_in_log_snr():
    schedule = NoiseSchedule.from_betas(betas_of(EVEN))
    assert kept("logsnr28", schedule).tolist() == list(range(0, 1000, 37))  # EVEN is even in it already
    log_snr = np.log(1 / (1 / LINEAR.alpha_bar.numpy() - 1))
    chosen, even = log_snr[kept("logsnr10")], np.linspace(log_snr[0], log_snr[-1], 10)
    assert np.abs(chosen - even)[3:].max() < 0.02  # the first few levels lie far apart
    assert (np.abs(chosen - even) <= np.abs(np.diff(log_snr)).max() / 2).all()


def test_karras_is_even_in_the_seventh_root_of_sigma():
    sigma = (1 / LINEAR.alpha_bar.numpy() - 1) ** 0.5
    low, high = sigma[0] ** (1 / 7), sigma[-1] ** (1 / 7)
    targets = [(high + i / 17 * (low - high)) ** 7 for i in range(18)]  # EDM, equation 5
    chosen = sigma[kept("karras18")][::-1]
    nearest = [np.abs(np.log(sigma / w)).min() for w in targets]
    assert np.allclose(np.abs(np.log(chosen / targets)), nearest, atol=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [LINEAR, NoiseSchedule.cosine(), NoiseSchedule.cosine(50)], ids=["l", "c", "c50"])
def test_distinct_and_up_to_the_highest(spacing, schedule):
    for steps in {1, 2, 3, 10, 20, len(schedule) // 2, len(schedule) - 1, len(schedule)}:
        respaced = schedule.respace(f" {spacing}{steps} ")
        chosen = respaced.timesteps.numpy()
        assert len(chosen) == steps and (np.diff(chosen) > 0).all()
        assert chosen[-1] == len(schedule) - 1 and (chosen[0] == 0 or steps == 1)
        np.testing.assert_allclose(respaced.alpha_bar, schedule.alpha_bar[chosen], rtol=1e-7)


def test_steps_are_not_spent_on_levels_at_which_nothing_is_seen():
    """The cosine schedule ends at σ = 20,000. Between the last step and σ = 160, there is none."""
    cosine = NoiseSchedule.cosine()
    sigma = (1 / cosine.alpha_bar.numpy() - 1) ** 0.5
    low, high = sigma[0] ** (1 / 7), 160 ** (1 / 7)
    chosen = sigma[kept("karras10", cosine)]
    even = np.array([(low + i / 9 * (high - low)) ** 7 for i in range(9)])
    spaced = even > 0.02  # below, the first few levels of the schedule lie far apart
    assert np.abs(np.log(chosen[:-1] / even))[spaced].max() < 0.1 and chosen[-1] == sigma[-1] > 20_000
    log_snr = -2 * np.log(sigma[kept("logsnr10", cosine)])
    steps = np.diff(log_snr)[2:-1]
    assert np.abs(steps / (2 * np.log(sigma[0] / 160) / 9) - 1).max() < 0.15


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_highest_level_with_no_signal_is_kept_and_costs_no_other_step(spacing):
    schedule = NoiseSchedule.from_betas([*LINEAR.betas.tolist(), 1.0])
    steps = kept(f"{spacing}20", schedule).tolist()
    assert steps[0] == 0 and steps[-1] == 1000 and kept(f"{spacing}1", schedule).tolist() == [1000]
    before = schedule.respace(f"{spacing}20").alpha_bar[-2].item()
    if spacing in ("uniform", "quad"):
        assert steps == [round(1000 * (i / 19) ** (2 if spacing == "quad" else 1)) for i in range(20)]
    else:  # spaced up to MAX_SIGMA, where the last step stands
        low, high = (1 / LINEAR.alpha_bar[0].item() - 1) ** 0.5, MAX_SIGMA
        expected = {
            "logsnr": (low / high) ** (1 / 19) * high,
            "karras": (high ** (1 / 7) + (low ** (1 / 7) - high ** (1 / 7)) / 19) ** 7,
        }[spacing]
        assert math.isclose((1 / before - 1) ** 0.5, expected, rel_tol=0.02)  # the nearest of 1,000 levels


def test_respacing_twice_keeps_the_original_timesteps():
    twice = LINEAR.respace("ddim100").respace("karras10")
    assert twice.timesteps[-1] == 990 and set((twice.timesteps % 10).tolist()) == {0}
    assert math.isclose(twice.alpha_bar[-1], LINEAR.alpha_bar[990], rel_tol=1e-9)


@pytest.mark.parametrize("spec", ["karras", "karras0", "quad-5", "logsnr2.5", "karras20,5", "Karras20", "foo25"])
def test_invalid_spacings_are_refused(spec):
    with pytest.raises(ValueError, match=r"^steps .*: expected a number of steps.*karras25"):
        LINEAR.respace(spec)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_more_steps_than_the_schedule_has_are_refused(spacing):
    with pytest.raises(ValueError, match=f"steps '{spacing}1001': cannot take 1001 steps from 1000"):
        LINEAR.respace(f"{spacing}1001")
