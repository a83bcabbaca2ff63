"""Perturbed-attention guidance (Ahn et al. 2024): away from a network whose attention sees no other pixel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from admg.diffusion.gaussian import Prediction
from admg.models.blocks import AttentionBlock, identity_attention

from .base import Guidance, State
from .classifier_free import away_from
from .gradient import finite


@dataclass(frozen=True)
class PerturbedAttentionGuidance(Guidance):
    """ε̂ = ε_p + w (ε - ε_p), where ε_p is of the same network with identity maps for the attention of its middle block.

    It needs no labels, and no other model. The network is told the same labels for both.

    scale: w; 1 costs nothing. Ahn et al. write 1 + s for it
    ValueError: a network whose `middle_block` has no attention; a scale that is not finite.
    """

    scale: float = 3.0

    def __post_init__(self):
        finite(self.scale, "the guidance scale")

    def change(self, state: State) -> Prediction:
        middle = getattr(getattr(state.model, "network", None), "middle_block", None)
        if not isinstance(middle, nn.Module) or not any(isinstance(m, AttentionBlock) for m in middle.modules()):
            raise ValueError("perturbed-attention guidance needs a network with attention in its middle block")
        if self.scale == 1:
            return state.raw
        with identity_attention(middle):
            perturbed = state.predict(state.told)
        return away_from(state, perturbed.eps, self.scale)
