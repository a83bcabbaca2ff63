"""How often the intervals of recall hold its mean over draws of the samples, by simulation.

`python tests/evaluation/test_recall_intervals.py` prints the table of docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from admg.evaluation.metrics import Estimate, prdc, precision_recall

Draw = Callable[[np.random.Generator], np.ndarray]
COUNT = 300


def gaussian(dim: int, width: float) -> tuple[np.ndarray, Draw]:
    """A reference of a normal distribution, and samples of another width."""
    return np.random.default_rng(0).normal(size=(COUNT, dim)), lambda rng: width * rng.normal(size=(COUNT, dim))


def heavy_tails(dim: int) -> tuple[np.ndarray, Draw]:
    """Both of Student's t with three degrees of freedom, which has outliers with large balls."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        return rng.normal(size=(COUNT, dim)) / np.sqrt(rng.chisquare(3, size=(COUNT, 1)) / 3)

    return draw(np.random.default_rng(0)), draw


def modes(number: int, width: float, equal: bool = True) -> tuple[np.ndarray, Draw]:
    """Small modes in six dimensions; `equal`: whether the samples have as many of each as the reference."""
    fixed = np.random.default_rng(0)
    centres = fixed.normal(size=(number, 6))
    weights = np.full(number, 1 / number) if equal else fixed.dirichlet(np.full(number, 0.5))

    def draw(rng: np.random.Generator, p: np.ndarray = weights) -> np.ndarray:
        return centres[rng.choice(number, COUNT, p=p)] + width * rng.normal(size=(COUNT, 6))

    return draw(fixed, np.full(number, 1 / number)), draw


CASES = {
    "normal, 2 dimensions": lambda: gaussian(2, 1.0),
    "normal, 20 dimensions": lambda: gaussian(20, 1.0),
    "normal, 64 dimensions": lambda: gaussian(64, 1.0),
    "normal, narrower samples": lambda: gaussian(6, 0.6),
    "normal, wider samples": lambda: gaussian(6, 1.5),
    "heavy tails, 20 dimensions": lambda: heavy_tails(20),
    "30 small modes": lambda: modes(30, 0.02),
    "100 small modes": lambda: modes(100, 0.02),
    "10 modes of unequal weights": lambda: modes(10, 0.1, equal=False),
    "60 modes of unequal weights": lambda: modes(60, 0.03, equal=False),
}


def simulated(case: str, draws: int = 120, further: int = 480) -> tuple[float, float, float]:
    """Return recall, the error stated relative to the standard deviation over draws, and the share of intervals that
    hold the mean.

    further: draws that only tell the mean and the standard deviation
    """
    reference, draw = CASES[case]()
    found: list[Estimate] = []
    values = []
    for seed in range(draws + further):
        x = draw(np.random.default_rng(1 + seed))
        if seed < draws:
            found.append(prdc(x, reference, seed=seed).recall)
            values.append(found[-1].value)
        else:
            values.append(precision_recall(x, reference).recall)
    mean = float(np.mean(values))
    ratio = float(np.sqrt(np.mean([e.error**2 for e in found])) / np.std(values, ddof=1))
    return mean, ratio, float(np.mean([e.low <= mean <= e.high for e in found]))


RARE_MODES = "10 modes of unequal weights"
"""Draws have from none to a few samples of a mode that is a tenth of the reference: a sample does not tell how many."""


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != RARE_MODES])
def test_intervals_of_recall_hold_its_mean(case):
    """At 95 %, fewer than 89 % of 120 hold it once in 300 times. The ratio is known to about 7 %."""
    _, ratio, inside = simulated(case)
    assert 0.9 < ratio < 1.4 and inside > 0.89


if __name__ == "__main__":
    for name in CASES:
        mean, ratio, inside = simulated(name)
        print(f"| {name} | {mean:.2f} | {ratio:.2f} | {100 * inside:.0f} % |", flush=True)
