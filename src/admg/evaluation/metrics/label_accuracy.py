"""Label accuracy: the fraction of labelled samples that a classifier assigns to their label."""

from __future__ import annotations

from .base import Inputs, Metric
from .intervals import Estimate


def label_accuracy(correct: int, count: int) -> Estimate:
    """Return correct / count with Wilson's interval. Raises ValueError unless 0 <= correct <= count and count >= 1.

    >>> estimate = label_accuracy(8, 10)
    >>> estimate.value, round(estimate.low, 2), round(estimate.high, 2)
    (0.8, 0.49, 0.94)
    """
    return Estimate.share(correct, count)


def _accuracy(inputs: Inputs) -> Estimate:
    assert inputs.correct is not None
    return label_accuracy(*inputs.correct)


def _counts(inputs: Inputs) -> str:
    return "{}/{}".format(*inputs.correct or (0, 0))


ACCURACY = Metric("accuracy", _accuracy, note=_counts, needs="labels", compares=False)
