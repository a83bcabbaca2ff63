"""Conditioning augmentation: noise and blur of the low-resolution images given to an upsampler.

Ho et al. 2021, "Cascaded diffusion models for high fidelity image generation", section 4. An upsampler is trained on
real images but later enlarges samples of another model, which differ from them; augmentation bridges the difference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .gaussian import Images

BLUR_SIGMA = (0.4, 0.6)
"""Range of the standard deviation of the blur, in pixels of the low-resolution image."""


def with_noise(low_res: Images, level: Float[Tensor, " n"], noise: Images) -> Images:
    """Return sqrt(1 - s²) low_res + s noise, where s is the level (N,) of each image, from 0 to 1.

    This is q(z_s | z_0) of the forward process, with the steps numbered by the standard deviation of their noise.
    """
    s = level.to(low_res.dtype).view(-1, 1, 1, 1)
    return (1 - s.square()).sqrt() * low_res + s * noise.to(low_res.dtype)


def blurred(low_res: Images, sigma: Float[Tensor, " n"]) -> Images:
    """Return the images, filtered by a 3x3 Gaussian with the standard deviation sigma (N,) in pixels; 0 for no blur.

    Pixels beyond the border are those of the border.
    """
    sigma = sigma.to(low_res.dtype).clamp(min=1e-3).view(-1, 1, 1, 1)
    side = torch.exp(-0.5 / sigma.square())  # exactly 0 without blur
    centre, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
    x = F.pad(low_res, (1, 1, 1, 1), mode="replicate")
    x = centre * x[:, :, 1:-1] + side * (x[:, :, :-2] + x[:, :, 2:])
    return centre * x[..., 1:-1] + side * (x[..., :-2] + x[..., 2:])
