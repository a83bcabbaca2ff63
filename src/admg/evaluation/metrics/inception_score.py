"""Inception Score (Salimans et al. 2016): exp(E_x KL(p(y|x) || p(y))), the mean over consecutive parts."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from admg.config import check_integer

from .base import Inputs, Metric
from .intervals import Estimate
from .statistics import check_features

SPLIT = 5000


def inception_score(probabilities: Float[np.ndarray, "n k"], split_size: int = SPLIT, logits: bool = False) -> Estimate:
    """Return the mean over consecutive parts of 5,000 samples of exp(mean_i KL(p_i || mean_i p_i)).

    A smaller last part counts as much as the others, as in guided-diffusion's evaluator. The error is the delete-one
    jackknife's within each part.

    probabilities: p (N, K), whose rows have the sum 1
    logits: whether logits are given instead; their softmax is computed in float64
    Raises ValueError if there are fewer than 2 samples, or if they are not finite or not probabilities.
    """
    check_features(probabilities, "samples")
    check_integer("split_size", split_size)
    starts = range(0, len(probabilities), split_size)
    parts = [_part(_softmax(rows) if logits else _checked(rows))
             for rows in (probabilities[i : i + split_size] for i in starts)]  # fmt: skip
    value, variance = np.mean(parts, 0)
    return Estimate.spread(float(value), math.sqrt(variance / len(parts)), len(probabilities) - 1, least=1.0)


def _part(p: Float[np.ndarray, "n k"]) -> tuple[float, float]:
    """Return the score of one part and its jackknife variance."""
    n = len(p)
    own = _xlogx(p).sum(1)  # -H(y | x_i)
    mean = p.mean(0)
    score = math.exp(own.mean() - _xlogx(mean).sum())
    if n < 2:
        return score, 0.0
    means = np.maximum(n * mean - p, 0) / (n - 1)  # without sample i; not below 0 by rounding
    without = np.exp((own.sum() - own) / (n - 1) - _xlogx(means).sum(1))
    return score, (n - 1) * without.var()


def _xlogx(p: np.ndarray) -> np.ndarray:
    """Return p log p, which is 0 at p = 0."""
    return p * np.log(np.where(p > 0, p, 1))


def _checked(rows: np.ndarray) -> np.ndarray:
    p = rows.astype(np.float64)
    if (p < 0).any() or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise ValueError("class probabilities must not be negative, and their sum must be 1 for each sample")
    return np.asarray(p / p.sum(1, keepdims=True))


def _softmax(rows: np.ndarray) -> np.ndarray:
    e = np.exp(rows.astype(np.float64) - rows.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def _score(inputs: Inputs) -> Estimate:
    assert inputs.network.probabilities is not None
    return inception_score(inputs.network.probabilities(inputs.samples.features))


IS = Metric("is", _score, lambda network: network.titled("IS"), needs="probabilities", compares=False)
