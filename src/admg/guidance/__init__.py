"""Guidance: scores that steer any sampler, and changes of what it samples from. One file per idea; a function of your
own works as well."""

from .apg import APG
from .base import DiffusionModel, Guidance, Guide, Split, State, Sum, changed, compares, sigma_at
from .calibration import Calibrated, calibrated, expected_calibration_error, fit_temperature
from .cfg_plus_plus import CFGPlusPlus
from .cfg_zero_star import CFGZeroStar
from .classifier import ClassifierGuidance, log_prob_gradient
from .classifier_free import AutoGuidance, ClassifierFreeGuidance
from .divergence import Divergence
from .embedding import EmbeddingDistance
from .gradient_free import GradientFreeGuidance
from .ilvr import ILVR
from .interval import Interval
from .inverse import DPS, LinearInverse
from .loss import LossGuidance
from .operators import Blur, Downsample, Grey, Mask
from .perturbed import PerturbedAttentionGuidance
from .rescaled import Rescaled

__all__ = [
    "APG",
    "DPS",
    "ILVR",
    "AutoGuidance",
    "Blur",
    "CFGPlusPlus",
    "CFGZeroStar",
    "Calibrated",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "DiffusionModel",
    "Divergence",
    "Downsample",
    "EmbeddingDistance",
    "GradientFreeGuidance",
    "Grey",
    "Guidance",
    "Guide",
    "Interval",
    "LinearInverse",
    "LossGuidance",
    "Mask",
    "PerturbedAttentionGuidance",
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
