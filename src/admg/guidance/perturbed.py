"""Perturbed-attention guidance (Ahn et al. 2024): away from the network with its attention replaced by identity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from admg.diffusion.gaussian import Prediction
from admg.models import with_identity_attention
from admg.models.blocks import AttentionBlock

from .base import Guidance
from .classifier_free import away_from
from .numbers import finite
from .state import State


@dataclass(frozen=True)
class PerturbedAttentionGuidance(Guidance):
    """ε̂ = ε_p + w (ε - ε_p), where ε_p comes from the same network with identity attention maps in its middle block.

    It needs neither labels nor another model. The network is conditioned on the same labels in both cases.

    scale: guidance scale w; 1 costs nothing. Ahn et al. write 1 + s for it

    Raises ValueError if the network's `middle_block` has no attention, or if the scale is not finite.
    """

    scale: float = 3.0

    def __post_init__(self) -> None:
        finite(self.scale, "the guidance scale")

    def modify_prediction(self, state: State) -> Prediction:
        middle = getattr(getattr(state.model, "network", None), "middle_block", None)
        if not isinstance(middle, nn.Module) or not any(isinstance(m, AttentionBlock) for m in middle.modules()):
            raise ValueError("perturbed-attention guidance needs a network with attention in its middle block")
        if self.scale == 1:
            return state.pred
        model: Any = state.model
        model = replace(model, network=with_identity_attention(model.network))
        with torch.no_grad():
            perturbed = model.predict(state.x, state.index, state.model_y, clip=False)
        return away_from(state, perturbed, self.scale)
