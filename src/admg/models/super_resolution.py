"""The super-resolution U-Net of ADM's upsampling stack (paper, appendix)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .unet import UNet, UNetConfig


@dataclass(frozen=True, kw_only=True)
class SuperResConfig(UNetConfig):
    """Architecture of a super-resolution U-Net; image_size is the large size.

    small_size: side of the low-resolution training images in pixels; 0 if it is not known
    """

    small_size: int = 0


class SuperResUNet(UNet):
    """A U-Net that also takes a low-resolution image, upsampled bilinearly and concatenated to x."""

    config: SuperResConfig

    def __init__(self, config: SuperResConfig):
        super().__init__(config, in_channels=2 * config.image_channels)

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        timesteps: Tensor,
        low_res: Float[Tensor, "n c h2 w2"],
        y: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n c2 h w"]:
        """As UNet.forward, for x of the large size, given low_res (N, C, h, w) in [-1, 1] of any smaller size."""
        upsampled = F.interpolate(low_res, x.shape[2:], mode="bilinear")
        return super().forward(torch.cat([x, upsampled.to(x.dtype)], dim=1), timesteps, y)
