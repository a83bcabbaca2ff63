"""The noisy classifier p(y | x_t, t): the U-Net's encoder with a pooling head (paper, section 4 and appendix H)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .blocks import AttentionPool, GroupNorm32, zero
from .unet import EncoderConfig, UNetEncoder


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(EncoderConfig):
    """Architecture of a noisy classifier.

    num_classes: number of labels
    pool: head: attention (the paper's), adaptive (mean), spatial or spatial_v2 (means of all levels)
    """

    num_classes: int = 1000
    pool: Literal["attention", "adaptive", "spatial", "spatial_v2"] = "attention"


class NoisyClassifier(UNetEncoder):
    """(x_t, t) -> logits of p(y | x_t, t)."""

    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig):
        super().__init__(config, config.image_channels)
        c, width = config, self.width
        if c.pool == "attention":
            if not c.head_channels:
                raise ValueError("the attention pool needs head_channels (the paper's: 64)")
            pool = AttentionPool(c.image_size // c.downsampling, width, c.heads(width), c.num_classes)
            self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), pool)
        elif c.pool == "adaptive":
            head = zero(nn.Conv2d(width, c.num_classes, 1))
            self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), nn.AdaptiveAvgPool2d(1), head, nn.Flatten())
        elif c.pool == "spatial":
            first = nn.Linear(sum(self.skip_widths) + width, 2048)
            self.out = nn.Sequential(first, nn.ReLU(), nn.Linear(2048, c.num_classes))
        elif c.pool == "spatial_v2":
            first = nn.Linear(sum(self.skip_widths) + width, 2048)
            self.out = nn.Sequential(first, GroupNorm32(2048), nn.SiLU(), nn.Linear(2048, c.num_classes))
        else:
            raise ValueError(f"pool must be attention, adaptive, spatial or spatial_v2, got {c.pool!r}")

    def forward(self, x: Float[Tensor, "n c h w"], timesteps: Tensor) -> Float[Tensor, "n k"]:
        """Return logits (N, num_classes) in the dtype of x, for images x noised to `timesteps`.

        x: (N, C, H, W), in about [-1, 1]
        timesteps: (N,), or (1,) for all images, in [0, 1000)
        Raises ValueError if the levels do not divide the size, or if the attention pool was built for another size.
        """
        features = self.encode(x, self.embed(timesteps))
        if self.config.pool.startswith("spatial"):
            h = torch.cat([f.to(self.dtype).mean(dim=(2, 3)) for f in features], dim=1)
        else:
            h = features[-1].to(self.dtype)
        with torch.autocast(x.device.type, enabled=False):  # as in guided-diffusion, the head is not in fp16
            return self.out(h).to(x.dtype)
