"""When a run goes back: skipped steps in a row, and losses far above their level, but not noise or slow changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from admg.training.guard import FAR, HIGH, SETTLED, SKIPPED, Guard


def fed(losses: np.ndarray, guard: Guard | None = None) -> tuple[Guard, list[str | None]]:
    guard = guard or Guard()
    return guard, [guard.add(float(loss), math.isfinite(loss)) for loss in losses]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_ordinary_losses_pass_whatever_their_unit(scale):
    """Heavy tails, a fall by three orders of magnitude, and a rise to five times the level over 500 steps."""
    rng = np.random.default_rng(0)
    curve = np.concatenate([np.geomspace(1, 1e-3, 2000), np.geomspace(1e-3, 5e-3, 500)])
    losses = scale * curve * rng.lognormal(0, 0.7, len(curve))
    guard, found = fed(losses)
    assert found == [None] * len(losses)
    assert scale * 5e-3 * 0.5 < guard.level < scale * 5e-3 * 3


def test_skipped_steps_count_in_a_row():
    guard, found = fed(np.array([1.0, *[np.nan] * (SKIPPED - 1), 1.0, *[np.inf] * SKIPPED]))
    assert [reason is None for reason in found] == [True] * (2 * SKIPPED) + [False] * (len(found) - 2 * SKIPPED)
    assert len(found) == 1 + 2 * SKIPPED and str(SKIPPED) in found[-1]
    assert guard.level == 1.0  # they do not touch the level


def test_a_jump_that_stays_is_noticed_and_one_that_does_not_is_ignored():
    rng = np.random.default_rng(1)
    usual = 0.03 * rng.lognormal(0, 0.3, SETTLED + 50)
    high = np.full(HIGH - 1, 0.03 * (FAR + 2))
    guard, found = fed(np.concatenate([usual, high, usual[:5], high]))
    assert found == [None] * len(found)
    assert "0.03" in guard.add(float(high[0]), True)
    _, early = fed(np.concatenate([usual[: SETTLED - 3 * HIGH], np.full(3 * HIGH, 5.0)]))
    assert early == [None] * len(early)  # nothing is known of the level yet


def test_negative_losses_have_a_level_too():
    rng = np.random.default_rng(2)
    guard, found = fed(rng.normal(-2.0, 0.1, SETTLED + 50))
    assert found == [None] * len(found) and guard.level == pytest.approx(-2, abs=0.1)
    assert [guard.add(30.0, True) is None for _ in range(HIGH)] == [True] * (HIGH - 1) + [False]


def test_the_state_is_restored():
    rng = np.random.default_rng(3)
    losses = rng.lognormal(size=300)
    guard, _ = fed(losses[:150])
    other = Guard()
    other.load_state_dict(guard.state_dict())
    assert vars(fed(losses[150:], other)[0]) == vars(fed(losses[150:], guard)[0])
