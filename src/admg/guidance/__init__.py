"""Guidance: gradients that steer any sampler, and modifications of the model's prediction. One file per idea.

A guide is a function from a `State` to a gradient (N, C, H, W) or None; the classes here are guides too.
"""

from .apg import APG
from .base import Guidance, Guide, Scaled, Sum, Wrapper, guide
from .bounded import Bounded
from .calibration import Calibrated, calibrated, expected_calibration_error, fit_temperature
from .cfg_plus_plus import CFGPlusPlus
from .cfg_zero_star import CFGZeroStar
from .classifier import ClassifierGuidance, log_prob_gradient
from .classifier_free import AutoGuidance, ClassifierFreeGuidance
from .classifier_options import ExtendedClassifierGuidance
from .divergence import Divergence
from .embedding import EmbeddingDistance
from .gradient_free import GradientFreeGuidance
from .guider import diffusers_guider
from .ilvr import ILVR
from .interval import Interval
from .inverse import DPS, LinearInverse
from .loss import LossGuidance
from .operators import Blur, Downsample, Grey, Mask
from .perturbed import PerturbedAttentionGuidance
from .preprocessing import Preprocessing
from .pretrained import (
    PretrainedGuidance,
    PretrainedNetwork,
    by_classifier,
    from_timm,
    from_torchvision,
    from_transformers,
)
from .recorded import Recorded
from .rescaled import Rescaled
from .reused import Reused
from .scheduler import SchedulerGuidance
from .state import DiffusionModel, State

__all__ = [
    "APG",
    "DPS",
    "ILVR",
    "AutoGuidance",
    "Blur",
    "Bounded",
    "CFGPlusPlus",
    "CFGZeroStar",
    "Calibrated",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "DiffusionModel",
    "Divergence",
    "Downsample",
    "EmbeddingDistance",
    "ExtendedClassifierGuidance",
    "GradientFreeGuidance",
    "Grey",
    "Guidance",
    "Guide",
    "Interval",
    "LinearInverse",
    "LossGuidance",
    "Mask",
    "PerturbedAttentionGuidance",
    "Preprocessing",
    "PretrainedGuidance",
    "PretrainedNetwork",
    "Recorded",
    "Rescaled",
    "Reused",
    "Scaled",
    "SchedulerGuidance",
    "State",
    "Sum",
    "Wrapper",
    "by_classifier",
    "calibrated",
    "diffusers_guider",
    "expected_calibration_error",
    "fit_temperature",
    "from_timm",
    "from_torchvision",
    "from_transformers",
    "guide",
    "log_prob_gradient",
]
