"""The options of low-resolution augmentation, and its random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from admg.config import check, setting
from admg.diffusion.augmentation import BLUR_SIGMA


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of low-resolution images.

    augment_noise: highest standard deviation of Gaussian noise in the low-resolution images; that of each image is
        uniformly random, and the network is conditioned on it
    augment_blur: share of low-resolution images that are blurred by a 3x3 Gaussian of 0.4 to 0.6 pixels, half of them
        in Ho et al. 2021
    """

    augment_noise: float | None = setting(None, min=0, max=1, default_text="0, or that of the --init model")
    augment_blur: float = setting(0.0, min=0, max=1)

    def __post_init__(self) -> None:
        check(self)


def draw_augmentation(
    shape: torch.Size, noise: float, blur: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor] | tuple[()]:
    """Return the level of noise (N,), the noise and the blur (N,) of low-resolution images of this shape (N, C, s, s).

    noise, blur: the options of AugmentConfig; if both are 0, nothing is drawn
    """
    if not (noise or blur):
        return ()
    level = noise * torch.rand(shape[0], generator=generator, dtype=torch.float32)
    eps = torch.randn(shape, generator=generator, dtype=torch.float32)
    low, high = BLUR_SIGMA
    sigma = low + (high - low) * torch.rand(shape[0], generator=generator, dtype=torch.float32)
    return level, eps, sigma * (torch.rand(shape[0], generator=generator, dtype=torch.float32) < blur)
