"""Noise added to the low-resolution images of an upsampler that was trained with such noise (Ho et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from admg.checkpoints.model import Model
from admg.checkpoints.networks import our_networks
from admg.diffusion.augmentation import with_noise
from admg.diffusion.gaussian import Images
from admg.diffusion.noise import SeededNoise
from admg.models import SuperResUNet

AUGMENT_SEED = 2**33
"""Added to the seed: the noise of the low-resolution images must differ from that of the sampler."""


def check_level(model: Model, level: float) -> None:
    """Raise ValueError for a level of noise that the model is not conditioned on."""
    highest = max((network.config.augment_noise for network in our_networks(model.network, SuperResUNet)), default=0.0)
    if level and not highest:
        raise ValueError(f"augment_level must be 0 for a model trained without augment_noise, got {level:g}")
    if level > highest:
        raise ValueError(
            f"augment_level must be from 0 to {highest:g}, the range of this model's training, got {level:g}"
        )


def augmented(low_res: Images, level: float, seed: int, images: Sequence[int]) -> dict[str, Tensor]:
    """Return the arguments `low_res` and, for a level above 0, `level` (N,) of the network.

    images: index of each image, which determines its noise together with the seed
    """
    if not level:
        return {"low_res": low_res}
    noise = SeededNoise(seed + AUGMENT_SEED, images).draw(low_res.shape[1:]).to(low_res)
    levels = torch.full((len(low_res),), level, dtype=low_res.dtype, device=low_res.device)
    return {"low_res": with_noise(low_res, levels, noise), "level": levels}
