"""Perturbed-attention guidance (Ahn et al. 2024): away from the network with its attention replaced by identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from admg.config import with_fields
from admg.diffusion.gaussian import Prediction
from admg.models import with_identity_attention
from admg.models.surgery import IdentityAttention

from .base import Guidance
from .classifier_free import away_from
from .numbers import Scale, check_scale, scale_at
from .state import State


@dataclass(frozen=True)
class PerturbedAttentionGuidance(Guidance):
    """ε̂ = ε_p + w (ε - ε_p), where ε_p comes from the same network with identity attention maps in its middle block.

    It needs neither labels nor another model. The network is conditioned on the same labels in both cases.

    scale: guidance scale w, or a function of the noise level `State.sigma`; 1 costs nothing. Ahn et al. write 1 + s
        for it

    Raises ValueError if the network's `middle_block` has no attention, or if the scale is not finite.
    """

    scale: Scale = 3.0

    def __post_init__(self) -> None:
        check_scale(self.scale)

    @property
    def reads_labels(self) -> bool:
        return False

    def modify_prediction(self, state: State) -> Prediction:
        scale = scale_at(self.scale, state.sigma)
        if scale == 1:
            return state.pred
        model: Any = state.model
        network = getattr(model, "network", None)
        identity = with_identity_attention(network) if isinstance(network, nn.Module) else nn.Module()
        if not any(isinstance(module, IdentityAttention) for module in identity.modules()):
            raise ValueError("perturbed-attention guidance needs a network with attention in its middle block")
        model = with_fields(model, network=identity)
        with torch.no_grad():
            perturbed = model.predict(state.x, state.index, state.model_y, clip=False)
        return away_from(state, perturbed, scale)
