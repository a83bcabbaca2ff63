"""Guidance: scores that steer any sampler, and changes of what it samples from. One file per idea; a function of your
own works as well."""

from .apg import APG
from .base import DiffusionModel, Guidance, Guide, Split, State, Sum, changed
from .cfg_plus_plus import CFGPlusPlus
from .cfg_zero_star import CFGZeroStar
from .classifier import Classifier, log_prob_gradient
from .classifier_free import Autoguidance, ClassifierFree
from .interval import Interval
from .inverse import DPS, LinearInverse
from .loss import Loss
from .operators import Blur, Downsample, Grey, Mask
from .perturbed import PerturbedAttention
from .rescaled import Rescaled

__all__ = [
    "APG",
    "DPS",
    "Autoguidance",
    "Blur",
    "CFGPlusPlus",
    "CFGZeroStar",
    "Classifier",
    "ClassifierFree",
    "DiffusionModel",
    "Downsample",
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
    "changed",
    "log_prob_gradient",
]
