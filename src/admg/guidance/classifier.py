"""Classifier guidance (Dhariwal & Nichol 2021, section 4), with later work's options, each off by default."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images

from .base import Guidance, State
from .divergence import Divergence
from .gradient import At, Scale, bounded, check_at, check_scale, finite, gradient, gradient_at, per_image_norm, scale_at


@dataclass(frozen=True, eq=False)
class ClassifierGuidance(Guidance):
    """s ∇_x log p(y | x_t, t), by a classifier of noised images.

    classifier: any function (x_t, timesteps) -> logits (N, K) that is differentiable in x_t
    scale: s; 1 samples from p(x)·p(y | x), larger is surer of the label and less diverse, 0 costs nothing; or a
        function of the noise level State.sigma
    at: "x0": the classifier knows clean images alone, and is called as classifier(x0) at the predicted x_0, not
        clipped; the gradient goes through the network as well (Bansal et al. 2023, "Universal guidance"), and is
        kept within what an exact one can be, unless the sampler has clip=False (gradient.bounded)
    labels: in place of the y given to the sampler, the weights w of the sum Σ_k w_k log p(y_k | x): {label: weight},
        or a tensor (K,), or (N, K) for each image of the batch; a label of negative weight is avoided
    temperature: the logits are divided by it; above 1 mends an overconfident classifier; or a function of State.sigma.
        calibration.py fits it to labelled images
    joint: the marginal in log p(y | x) = z_y - logsumexp(z) counts 1 - joint times: 0 conditional, 1 the gradient of
        the joint energy z_y, in between as Ma et al. 2024 weaken the marginal (they by a temperature of its own)
    entropy: λ of λ H(p(· | x)) added to the log-probability, against gradients that vanish where the classifier is
        sure too early (Javid et al. 2025, entropy-regularised sampling, with a fixed λ)
    divergence: against the same, from a distribution around the label; see Divergence
    normalise: each image's gradient is brought to norm 1 before it is scaled; max_norm: or to at most this
    ValueError: a number out of its range, no labels wanted, or labels that do not fit the logits.
    """

    classifier: Callable[..., Tensor]
    scale: Scale = 1.0
    at: At = "x"
    labels: Mapping[int, float] | Tensor | None = None
    temperature: Scale = 1.0
    joint: float = 0.0
    entropy: float = 0.0
    divergence: Divergence | None = None
    normalise: bool = False
    max_norm: float = math.inf

    def __post_init__(self):
        check_scale(self.scale)
        check_at(self.at)
        finite(self.entropy, "the weight of the entropy")
        if not callable(self.temperature):
            positive(self.temperature)
        if not 0 <= self.joint <= 1:
            raise ValueError(f"joint must be in [0, 1], from conditional to joint, got {self.joint}")
        if not self.max_norm > 0:
            raise ValueError(f"the largest norm of a gradient must be above 0, got {self.max_norm}")

    def __call__(self, state: State) -> Tensor | None:
        scale = scale_at(self.scale, state.sigma)
        if scale == 0:
            return None
        if state.y is None and self.labels is None:
            raise ValueError("classifier guidance needs labels: give the sampler y, one wanted label per image")

        def wanted(images: Images) -> Tensor:
            logits = self.classifier(*([images] if self.at == "x0" else [images, state.t]))
            return self.wanted(logits.float() / self.temperature_at(state.sigma), state.y)

        g = gradient(wanted, state, self.at, "the classifier")
        if self.normalise:
            g = g / per_image_norm(g).clamp(min=1e-12)
        if self.max_norm < math.inf:
            g = g * (self.max_norm / per_image_norm(g).clamp(min=1e-12)).clamp(max=1)
        return bounded(scale * g, state) if self.at == "x0" else scale * g

    def wanted(self, logits: Float[Tensor, "n k"], y: Tensor | None) -> Float[Tensor, " n"]:
        """The log-probability to follow, of each image, from logits at their temperature and the sampler's labels."""
        log_p = logits.log_softmax(-1)
        score = log_p + self.joint * logits.logsumexp(-1, keepdim=True) if self.joint else log_p
        weights = own_weights(y, logits) if self.labels is None else label_weights(self.labels, logits)
        value = (weights * score).sum(-1)
        if self.entropy:
            value = value - self.entropy * (log_p.exp() * log_p).sum(-1) * (weights != 0).any(-1)
        return value if self.divergence is None else value + self.divergence(log_p, weights)

    def temperature_at(self, sigma: float) -> float:
        return positive(self.temperature(sigma)) if callable(self.temperature) else self.temperature


def positive(temperature: float) -> float:
    """The temperature. ValueError: it cannot be one."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"the classifier's temperature must be a number above 0, got {temperature}")
    return temperature


def log_prob_gradient(
    classifier: Callable[[Images, Tensor], Tensor], x: Images, t: Tensor, y: Tensor
) -> Float[Tensor, "n c h w"]:
    """∇_x log p(y | x, t) of each image, in float32: of log-softmax at the wanted label, summed over the batch.

    y: (N,) labels; -1 where none is wanted, which gives a gradient of 0
    """
    return gradient_at(lambda x: at_label(torch.log_softmax(classifier(x, t).float(), dim=-1), y), x, "the classifier")


def at_label(log_p: Float[Tensor, "n k"], y: Tensor) -> Float[Tensor, " n"]:
    """Each image's value at its own label, 0 for the label -1."""
    return log_p.gather(1, y.clamp(min=0)[:, None])[:, 0] * (y >= 0)


def own_weights(y: Tensor | None, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """1 at each image's own label y, 0 elsewhere and for the label -1."""
    weights = torch.zeros_like(logits)
    return weights if y is None else weights.scatter(1, y.clamp(min=0)[:, None], (y >= 0)[:, None].to(logits))


def label_weights(labels: Mapping[int, float] | Tensor, logits: Float[Tensor, "n k"]) -> Tensor:
    """(K,) or (N, K) weights. ValueError: they do not fit the logits, or are not finite."""
    n, k = logits.shape
    if isinstance(labels, Mapping):
        unknown = [label for label in labels if not 0 <= label < k]
        if unknown:
            raise ValueError(f"label {unknown[0]} is not one of the classifier's, which are 0 to {k - 1}")
        weights = logits.new_zeros(k)
        for label, weight in labels.items():
            weights[label] = weight
    else:
        weights = labels.to(logits)
    if weights.shape not in ((k,), (n, k)):
        raise ValueError(f"label weights of shape {tuple(weights.shape)}: needed is ({k},), or ({n}, {k}) for a batch")
    if not weights.isfinite().all():
        raise ValueError("label weights must be finite numbers")
    return weights
