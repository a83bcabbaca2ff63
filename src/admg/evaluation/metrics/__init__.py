"""Metrics of samples: one file for each, and one table of them, METRICS.

A new metric is a function of the features of samples and reference. Pass it to `admg.evaluate`, or add it to METRICS.
"""

from __future__ import annotations

from .base import FeatureSet, Inputs, Metric
from .fid import (
    FID,
    FID_INFINITE,
    SFID,
    SFID_INFINITE,
    frechet_distance,
    frechet_estimate,
    frechet_infinite,
    group_moments,
)
from .inception_score import IS, inception_score
from .intervals import Estimate, jackknife, wilson
from .kid import KID, kid, kid_subsets
from .label_accuracy import ACCURACY, label_accuracy
from .precision_recall import (
    COVERAGE,
    DENSITY,
    PRECISION,
    RECALL,
    Manifold,
    density_coverage,
    prdc,
    precision_recall,
)
from .statistics import Gaussian, Moments, StoredStatistics, load_statistics, save_statistics

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        FID, FID_INFINITE, SFID, SFID_INFINITE, IS, KID, PRECISION, RECALL, DENSITY, COVERAGE, ACCURACY
    )
}  # fmt: skip

__all__ = [
    "METRICS",
    "Estimate",
    "FeatureSet",
    "Gaussian",
    "Inputs",
    "Manifold",
    "Metric",
    "Moments",
    "StoredStatistics",
    "density_coverage",
    "frechet_distance",
    "frechet_estimate",
    "frechet_infinite",
    "group_moments",
    "inception_score",
    "jackknife",
    "kid",
    "kid_subsets",
    "label_accuracy",
    "load_statistics",
    "prdc",
    "precision_recall",
    "save_statistics",
    "wilson",
]
