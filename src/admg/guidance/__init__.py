"""Guidance: scores that steer any sampler, and changes of what it samples from. One file per idea; a function of your
own works as well."""

from .apg import APG
from .base import DiffusionModel, Guidance, Guide, Split, State, Sum, changed, compares, sigma_at
from .calibration import Calibrated, calibrated, expected_calibration_error, fit_temperature
from .cfg_plus_plus import CFGPlusPlus
from .cfg_zero_star import CFGZeroStar
from .classifier import Classifier, log_prob_gradient
from .classifier_free import Autoguidance, ClassifierFree
from .divergence import Divergence
from .embedding import EmbeddingDistance
from .gradient_free import GradientFree
from .ilvr import ILVR
from .interval import Interval
from .inverse import DPS, LinearInverse
from .loss import Loss
from .operators import Blur, Downsample, Grey, Mask
from .perturbed import PerturbedAttention
from .rescaled import Rescaled

__all__ = [
    "APG",
    "DPS",
    "ILVR",
    "Autoguidance",
    "Blur",
    "CFGPlusPlus",
    "CFGZeroStar",
    "Calibrated",
    "Classifier",
    "ClassifierFree",
    "DiffusionModel",
    "Divergence",
    "Downsample",
    "EmbeddingDistance",
    "GradientFree",
    "Grey",
    "Guidance",
    "Guide",
    "Interval",
    "LinearInverse",
    "Loss",
    "Mask",
    "PerturbedAttention",
    "Rescaled",
    "Split",
    "State",
    "Sum",
    "calibrated",
    "changed",
    "compares",
    "expected_calibration_error",
    "fit_temperature",
    "log_prob_gradient",
    "sigma_at",
]
