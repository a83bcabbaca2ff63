"""Distances to a target in the space of any network that embeds images, such as CLIP: energies for
guidance.LossGuidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from admg.diffusion.gaussian import Images

Distance = Literal["spherical", "cosine"]


@dataclass(frozen=True, eq=False)
class EmbeddingDistance:
    """θ²/2, or 1 - cos θ, where θ is the angle between embed(image) and the target (Crowson 2021, "CLIP guided ...").

    LossGuidance(EmbeddingDistance(embed, target), 100.0) leads to images whose embedding is like the target's: of a
    text, if the network embeds both, or of another image.

    embed: images (N, C, H, W) in about [-1, 1] -> (N, D), differentiable; to resize and normalise is its own affair
    target: (D,), or (N, D) for each image of the batch; of any length but 0
    ValueError: a target of another shape than the embeddings, of length 0, or not finite.
    """

    embed: Callable[[Images], Float[Tensor, "n d"]]
    target: Tensor
    distance: Distance = "spherical"

    def __post_init__(self):
        if self.distance not in get_args(Distance):
            raise ValueError(f"unknown distance {self.distance!r}: {', '.join(get_args(Distance))}")
        if self.target.ndim not in (1, 2):
            raise ValueError(f"a target embedding has shape (D,) or (N, D), not {tuple(self.target.shape)}")
        if not self.target.isfinite().all() or (self.target == 0).all(-1).any():
            raise ValueError("a target embedding must have finite numbers, not all of them 0")

    def __call__(self, images: Images) -> Float[Tensor, " n"]:
        embedded = self.embed(images).float()
        target = self.target.to(embedded)
        if embedded.ndim != 2 or target.shape not in (embedded.shape, embedded.shape[1:], (1, *embedded.shape[1:])):
            raise ValueError(f"a target of shape {tuple(target.shape)} for embeddings {tuple(embedded.shape)}")
        u, v = normalize(embedded, dim=-1), normalize(target, dim=-1)
        if self.distance == "cosine":
            return 1 - (u * v).sum(-1)
        apart, together = (torch.linalg.vector_norm(w, dim=-1) for w in (u - v, u + v))
        return (2 * torch.atan2(apart, together)).square() / 2  # tan(θ/2); exact near 0 and π, where acos is not
