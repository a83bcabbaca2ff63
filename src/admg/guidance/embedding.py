"""Distances between embeddings of images and a target, for example CLIP's, as losses for LossGuidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from admg.diffusion.gaussian import Images, working_dtype

from .rows import select_batch_rows

Distance = Literal["spherical", "cosine"]


@dataclass(frozen=True, eq=False)
class EmbeddingDistance:
    """θ²/2 or 1 - cos θ, where θ is the angle between embed(image) and the target (Crowson 2021, "CLIP guided ...").

    LossGuidance(EmbeddingDistance(embed, target), 100.0) leads to images whose embedding resembles the target. The
    target may be the embedding of another image, or of a text if the network embeds both.

    embed: differentiable function (N, C, H, W) -> (N, D) of images approximately in [-1, 1]; it resizes and normalises
        them itself
    target: target embedding (D,), or (N, D) for each image; it need not be normalised
    distance: "spherical" for θ²/2, "cosine" for 1 - cos θ

    Raises ValueError if the target is 0, not finite, or does not have the shape of the embeddings.
    """

    embed: Callable[[Images], Float[Tensor, "n d"]]
    target: Tensor
    distance: Distance = "spherical"

    def __post_init__(self) -> None:
        if self.distance not in get_args(Distance):
            raise ValueError(f"distance must be one of {', '.join(get_args(Distance))}, got {self.distance!r}")
        if self.target.ndim not in (1, 2):
            raise ValueError(f"a target embedding must have shape (D,) or (N, D), got {tuple(self.target.shape)}")
        if not self.target.isfinite().all() or (self.target == 0).all(-1).any():
            raise ValueError("a target embedding must be finite and not 0")

    def __call__(self, images: Images) -> Float[Tensor, " n"]:
        embedded = self.embed(images)
        embedded = embedded.to(working_dtype(embedded))
        target = (
            self.target
            if self.target.ndim == 1
            else select_batch_rows(self.target, len(embedded), "the target embedding")
        )
        target = target.to(embedded)
        if embedded.ndim != 2 or target.shape not in (embedded.shape, embedded.shape[1:], (1, *embedded.shape[1:])):
            raise ValueError(f"the target must have shape {tuple(embedded.shape)}, got {tuple(target.shape)}")
        u, v = normalize(embedded, dim=-1), normalize(target, dim=-1)
        if self.distance == "cosine":
            return 1 - (u * v).sum(-1)
        apart, together = (torch.linalg.vector_norm(w, dim=-1) for w in (u - v, u + v))
        return (2 * torch.atan2(apart, together)).square() / 2  # tan(θ/2); exact near 0 and π, where acos is not
