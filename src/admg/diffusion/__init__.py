"""The mathematics of diffusion: noise schedules, the Gaussian process and training losses."""

from .gaussian import Diffusion, Images, Index, Predict, Prediction, Variance
from .schedule import NoiseSchedule

__all__ = ["Diffusion", "Images", "Index", "NoiseSchedule", "Predict", "Prediction", "Variance"]
