"""Guidance: scores that steer any sampler, and changes of what it samples from. One file per idea; a function of your
own works as well."""

from .base import DiffusionModel, Guidance, Guide, State, Sum, changed
from .classifier import Classifier, log_prob_gradient
from .classifier_free import Autoguidance, ClassifierFree

__all__ = [
    "Autoguidance",
    "Classifier",
    "ClassifierFree",
    "DiffusionModel",
    "Guidance",
    "Guide",
    "State",
    "Sum",
    "changed",
    "log_prob_gradient",
]
