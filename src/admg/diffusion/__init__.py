"""The mathematics of diffusion: noise schedules, the Gaussian process, training losses and seeded noise."""

from .config import DiffusionConfig
from .gaussian import Diffusion, Images, Index, Predict, Prediction, Variance
from .noise import SeededNoise
from .schedule import NoiseSchedule

__all__ = [
    "Diffusion",
    "DiffusionConfig",
    "Images",
    "Index",
    "NoiseSchedule",
    "Predict",
    "Prediction",
    "SeededNoise",
    "Variance",
]
