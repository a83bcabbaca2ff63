"""Judging samples: FID, sFID, Inception Score, KID, precision, recall, density, coverage, and their intervals."""

from .fid import frechet_distance, frechet_estimate, frechet_infinite, group_moments
from .inception_score import inception_score
from .intervals import Estimate, jackknife, wilson
from .kid import kid, kid_subsets
from .precision_recall import Manifold, density_coverage, prdc, precision_recall
from .statistics import Gaussian, Moments, load_statistics, save_statistics

__all__ = [
    "Estimate",
    "Gaussian",
    "Manifold",
    "Moments",
    "density_coverage",
    "frechet_distance",
    "frechet_estimate",
    "frechet_infinite",
    "group_moments",
    "inception_score",
    "jackknife",
    "kid",
    "kid_subsets",
    "load_statistics",
    "prdc",
    "precision_recall",
    "save_statistics",
    "wilson",
]
