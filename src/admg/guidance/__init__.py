"""Guidance: scores that steer any sampler. One file per idea; a function of your own works as well."""

from .base import Guidance, Guide, State, Sum
from .classifier import Classifier, log_prob_gradient

__all__ = ["Classifier", "Guidance", "Guide", "State", "Sum", "log_prob_gradient"]
