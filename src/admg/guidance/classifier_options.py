"""Classifier guidance with the options that later papers added."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import working_dtype

from .bounded import clamp_gradient
from .divergence import Divergence
from .gradient import At, check_at, gradient
from .logits import OfClassifier, check_arguments_at, checked_logits
from .numbers import Scale, check_scale, clip_norm, finite, per_image_norm, scale_at
from .rows import select_batch_rows
from .state import State


@dataclass(frozen=True, eq=False)
class ExtendedClassifierGuidance(OfClassifier):
    """Classifier guidance with options, each of which is off by default. They can be combined.

    classifier: function (x_t, timesteps) -> logits (N, K), differentiable in x_t; with at="x0", x_0 -> logits
    scale: guidance scale s, or a function of the noise level State.sigma; 0 does not evaluate the classifier
    at: "x0" evaluates a classifier of clean images at the predicted x_0, not clipped. The gradient goes through the
        network as well (Bansal et al. 2023, "Universal guidance"); see bounded.clamp_gradient for its limit
    labels: weights w of Σ_k w_k log p(k | x), used instead of the sampler's y: {label: weight}, with numbers or names
        of labels, or floating-point weights (K,), or (N, K) for each image; a label with a negative weight is avoided
    temperature: divisor of the logits, or a function of State.sigma; values above 1 correct an overconfident
        classifier, and `guidance.calibrated` fits them to labelled images
    joint: weakening of the marginal in log p(y | x) = z_y - logsumexp(z): the last term is multiplied by 1 - joint, so
        0 is the conditional probability and 1 the joint energy z_y (after Ma et al. 2024, who give this term a
        temperature of its own)
    entropy: weight λ of the entropy λ H(p(· | x)), which is added to the log-probability so that gradients do not
        vanish where the classifier is sure too early (Javid et al. 2025, with a fixed λ)
    divergence: divergence from a smoothed label, with the same purpose; see Divergence
    normalise: whether the gradient of each image is normalised to norm 1 before it is scaled
    max_norm: largest norm of the gradient of each image before it is scaled

    Raises ValueError if a number is out of range, or if labels are missing or do not fit the logits.
    """

    classifier: Callable[..., Tensor]
    scale: Scale = 1.0
    at: At = "x"
    labels: Mapping[int | str, float] | Tensor | None = None
    temperature: Scale = 1.0
    joint: float = 0.0
    entropy: float = 0.0
    divergence: Divergence | None = None
    normalise: bool = False
    max_norm: float = math.inf

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_at(self.at)
        check_arguments_at(self.classifier, self.at)
        finite(self.entropy, "the weight of the entropy")
        if not callable(self.temperature):
            check_temperature(self.temperature)
        if self.labels is not None:
            object.__setattr__(self, "labels", checked_weights(self.labels, self.classifier))
        if not 0 <= self.joint <= 1:
            raise ValueError(f"joint must be in [0, 1], got {self.joint}")
        if not self.max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {self.max_norm}")

    @property
    def reads_labels(self) -> bool:
        return self.labels is None

    def __call__(self, state: State) -> Tensor | None:
        scale = scale_at(self.scale, state.sigma)
        if scale == 0:
            return None
        if state.y is None and self.labels is None:
            raise ValueError("classifier guidance needs labels: pass y to the sampler, one target label per image")

        def log_p(images: Tensor) -> Tensor:
            logits = checked_logits(self, state, *([images] if self.at == "x0" else [images, state.t]))
            return self.log_prob(logits.to(working_dtype(state.x)) / self.temperature_at(state.sigma), state.y)

        g = gradient(log_p, state, self.at, "the classifier")
        if self.normalise:
            g = g / per_image_norm(g).clamp(min=1e-12)
        g = clip_norm(g, self.max_norm)
        return clamp_gradient(scale * g, state) if self.at == "x0" else scale * g

    def log_prob(self, logits: Float[Tensor, "n k"], y: Tensor | None) -> Float[Tensor, " n"]:
        """Return the log-probability whose gradient is followed, from logits already divided by the temperature."""
        log_p = logits.log_softmax(-1)
        score = log_p + self.joint * logits.logsumexp(-1, keepdim=True) if self.joint else log_p
        weights = one_hot(y, logits) if self.labels is None else label_weights(self.labels, logits)
        value = (weights * score).sum(-1)
        if self.entropy:
            value = value - self.entropy * (log_p.exp() * log_p).sum(-1) * (weights != 0).any(-1)
        return value if self.divergence is None else value + self.divergence(log_p, weights)

    def temperature_at(self, sigma: float) -> float:
        """Return the temperature at a noise level."""
        return check_temperature(self.temperature(sigma)) if callable(self.temperature) else self.temperature


def check_temperature(temperature: float) -> float:
    """Return the temperature. Raises ValueError if it is not a number above 0."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"the classifier's temperature must be a number above 0, got {temperature}")
    return temperature


def checked_weights(labels: Any, classifier: Any) -> dict[int, float] | Tensor:
    """Return weights of labels by number, or as a tensor. Raises ValueError for unknown names and whole numbers."""
    if isinstance(labels, Mapping):
        table: Any = getattr(classifier, "labels", None)
        if table is None and (names := [label for label in labels if isinstance(label, str)]):
            raise ValueError(f"labels must be numbers, since the classifier has no label names, got {names[0]!r}")
        weighted: dict[int, float] = {}
        for label, weight in labels.items():
            if not isinstance(label, str) and not hasattr(label, "__index__"):
                raise ValueError(f"labels must be names or integers, got {label!r}")
            number = table.number(label) if isinstance(label, str) else operator.index(label)
            if number in weighted:
                raise ValueError(f"labels has two weights for label {number}, {weighted[number]} and {weight}")
            weighted[number] = weight
        return weighted
    weights = torch.as_tensor(labels) if isinstance(labels, Tensor | np.ndarray | list | tuple) else None
    if weights is None or not weights.is_floating_point():
        raise ValueError(
            "labels must be {label: weight} or floating-point weights of all labels; target labels are the sampler's y"
        )
    return weights


def one_hot(y: Tensor | None, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return 1 at each image's label and 0 elsewhere; 0 everywhere for images with the label -1."""
    weights = torch.zeros_like(logits)
    return weights if y is None else weights.scatter(1, y.clamp(min=0)[:, None], (y >= 0)[:, None].to(logits))


def label_weights(labels: Mapping[Any, float] | Tensor, logits: Float[Tensor, "n k"]) -> Tensor:
    """Return weights (K,) or (N, K). Raises ValueError if they do not fit the logits or are not finite."""
    n, k = logits.shape
    if isinstance(labels, Mapping):
        unknown = [label for label in labels if not 0 <= label < k]
        if unknown:
            raise ValueError(f"labels must be from 0 to {k - 1}, the classifier's labels, got {unknown[0]}")
        weights = logits.new_zeros(k)
        for label, weight in labels.items():
            weights[label] = weight
    else:
        weights = (labels if labels.ndim == 1 else select_batch_rows(labels, len(logits), "the weights of labels")).to(
            logits
        )
    if weights.shape not in ((k,), (n, k)):
        raise ValueError(f"label weights must have shape ({k},), or ({n}, {k}) per image, got {tuple(weights.shape)}")
    if not weights.isfinite().all():
        raise ValueError("label weights must be finite numbers")
    return weights
