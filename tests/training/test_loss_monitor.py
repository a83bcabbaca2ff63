"""When a run goes back: skipped steps in a row, and losses far above their level, but not noise or slow changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from admg.training.loss_monitor import MAX_HIGH_STEPS, MAX_SKIPPED_STEPS, OUTLIER_FACTOR, WARMUP_STEPS, LossMonitor


def fed(losses: np.ndarray, monitor: LossMonitor | None = None) -> tuple[LossMonitor, list[str | None]]:
    monitor = monitor or LossMonitor()
    return monitor, [monitor.add(float(loss), math.isfinite(loss)) for loss in losses]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_ordinary_losses_pass_whatever_their_unit(scale):
    """Heavy tails, a fall by three orders of magnitude, and a rise to five times the level over 500 steps."""
    rng = np.random.default_rng(0)
    curve = np.concatenate([np.geomspace(1, 1e-3, 2000), np.geomspace(1e-3, 5e-3, 500)])
    losses = scale * curve * rng.lognormal(0, 0.7, len(curve))
    monitor, found = fed(losses)
    assert found == [None] * len(losses)
    assert scale * 5e-3 * 0.5 < monitor.level < scale * 5e-3 * 3


def test_skipped_steps_count_in_a_row():
    monitor, found = fed(np.array([1.0, *[np.nan] * (MAX_SKIPPED_STEPS - 1), 1.0, *[np.inf] * MAX_SKIPPED_STEPS]))
    assert [reason is None for reason in found] == [True] * (2 * MAX_SKIPPED_STEPS) + [False] * (
        len(found) - 2 * MAX_SKIPPED_STEPS
    )
    assert len(found) == 1 + 2 * MAX_SKIPPED_STEPS and str(MAX_SKIPPED_STEPS) in found[-1]
    assert monitor.level == 1.0  # they do not touch the level


def test_a_jump_that_stays_is_noticed_and_one_that_does_not_is_ignored():
    rng = np.random.default_rng(1)
    usual = 0.03 * rng.lognormal(0, 0.3, WARMUP_STEPS + 50)
    high = np.full(MAX_HIGH_STEPS - 1, 0.03 * (OUTLIER_FACTOR + 2))
    monitor, found = fed(np.concatenate([usual, high, usual[:5], high]))
    assert found == [None] * len(found)
    assert "0.03" in monitor.add(float(high[0]), True)
    _, early = fed(np.concatenate([usual[: WARMUP_STEPS - 3 * MAX_HIGH_STEPS], np.full(3 * MAX_HIGH_STEPS, 5.0)]))
    assert early == [None] * len(early)  # nothing is known of the level yet


def test_negative_losses_have_a_level_too():
    rng = np.random.default_rng(2)
    monitor, found = fed(rng.normal(-2.0, 0.1, WARMUP_STEPS + 50))
    assert found == [None] * len(found) and monitor.level == pytest.approx(-2, abs=0.1)
    assert [monitor.add(30.0, True) is None for _ in range(MAX_HIGH_STEPS)] == [True] * (MAX_HIGH_STEPS - 1) + [False]


def test_the_state_is_restored():
    rng = np.random.default_rng(3)
    losses = rng.lognormal(size=300)
    monitor, _ = fed(losses[:150])
    other = LossMonitor()
    other.load_state_dict(monitor.state_dict())
    assert vars(fed(losses[150:], other)[0]) == vars(fed(losses[150:], monitor)[0])
