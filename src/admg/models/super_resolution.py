"""The super-resolution U-Net of ADM's upsampling stack (paper, appendix)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .blocks import timestep_embedding, zero
from .unet import UNet, UNetConfig


@dataclass(frozen=True, kw_only=True)
class SuperResConfig(UNetConfig):
    """Architecture of a super-resolution U-Net; image_size is the large size.

    small_size: side of the low-resolution training images in pixels; 0 if it is not known
    augment_noise: highest level of noise in the low-resolution training images, at most 1; the network is conditioned
        on the level, unless this is 0
    """

    small_size: int = 0
    augment_noise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.augment_noise <= 1:
            raise ValueError(f"augment_noise must be from 0 to 1, got {self.augment_noise}")


class SuperResUNet(UNet):
    """A U-Net that also takes a low-resolution image, upsampled bilinearly and concatenated to x.

    With `augment_noise` it is also conditioned on the level of noise in that image, by an embedding that is added to
    that of the timestep (Ho et al. 2021, "Cascaded diffusion models for high fidelity image generation", section 4).
    """

    config: SuperResConfig

    def __init__(self, config: SuperResConfig):
        super().__init__(config, in_channels=2 * config.image_channels)
        if config.augment_noise:
            first, last = nn.Linear(config.channels, config.emb_dim), nn.Linear(config.emb_dim, config.emb_dim)
            self.level_embed = nn.Sequential(first, nn.SiLU(), zero(last))

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        timesteps: Tensor,
        low_res: Float[Tensor, "n c h2 w2"],
        y: Int[Tensor, " n"] | None = None,
        level: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n c2 h w"]:
        """As UNet.forward, for x of the large size, given low_res (N, C, h, w) in [-1, 1] of any smaller size.

        level: level of noise in each low-resolution image (N,), from 0 to `augment_noise`; None for no noise
        Raises ValueError for a level that the network is not conditioned on.
        """
        emb = self.embed(timesteps)
        if self.config.augment_noise:
            emb = emb + self._embed_level(torch.zeros(1, device=x.device) if level is None else level)
        elif level is not None:
            raise ValueError("level must be None: this network is not conditioned on the level of noise")
        upsampled = F.interpolate(low_res, x.shape[2:], mode="bilinear")
        return self.denoise(torch.cat([x, upsampled.to(x.dtype)], dim=1), emb, y)

    def _embed_level(self, level: Tensor) -> Float[Tensor, "n d"]:
        """Return the embedding of levels in [0, 1], which are spread over the range of timesteps."""
        wide = torch.promote_types(self.dtype, torch.float32)
        return self.level_embed(timestep_embedding(1000 * level, self.config.channels, dtype=wide).to(self.dtype))
