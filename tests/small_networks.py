"""Small networks of each kind with random weights, and inputs for them."""

from __future__ import annotations

import torch
from helpers import TRUNK, randomised
from torch import Tensor, nn

from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig

WIDE = TRUNK | {"image_size": 16, "channels": 64, "channel_mult": (1, 2), "attention_resolutions": (8,)}
NETWORKS = {
    "unet": lambda: UNet(UNetConfig(**WIDE, num_classes=5)),
    "upsampler": lambda: SuperResUNet(SuperResConfig(**WIDE, num_classes=5)),
    "classifier": lambda: NoisyClassifier(ClassifierConfig(**WIDE, num_classes=5)),
    "plain resampling": lambda: UNet(UNetConfig(**WIDE, num_classes=5, resblock_updown=False)),
    "added embedding": lambda: UNet(UNetConfig(**WIDE, num_classes=5, scale_shift_norm=False)),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomised(NETWORKS[name](), 0)


def arguments(network: nn.Module, count: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    given = {"x": torch.randn(count, 1, 16, 16, generator=generator), "timesteps": torch.tensor([50])}
    if isinstance(network, SuperResUNet):
        given["low_res"] = torch.randn(count, 1, 4, 4, generator=generator)
    return given if isinstance(network, NoisyClassifier) else given | {"y": torch.arange(count) % 5}
