"""Linear operators A for inverse problems y = A x + noise, of images (N, C, H, W).

Any differentiable function can be used as an operator too. `gram` is the number g with A Aᵀ = g I, or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from admg.config import check_integer
from admg.diffusion.gaussian import Images

BT709 = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in the luminance (ITU-R BT.709)."""


@dataclass(frozen=True, eq=False)
class Mask:
    """Inpainting: the known pixels of each image, as a list (N, M).

    known: bool tensor (H, W) or (C, H, W), the same for each image

    Raises ValueError if no pixel is known or if the mask does not match the images.
    """

    known: Tensor
    gram: float | None = 1.0

    def __post_init__(self) -> None:
        if self.known.dtype != torch.bool or self.known.ndim not in (2, 3) or not self.known.any():
            raise ValueError("a mask must be a bool tensor (H, W) or (C, H, W) with at least one known pixel")

    def __call__(self, x: Images) -> Tensor:
        if self.known.shape[-2:] != x.shape[-2:] or (self.known.ndim == 3 and self.known.shape != x.shape[1:]):
            raise ValueError(f"the mask must match images of shape {tuple(x.shape[1:])}, got {tuple(self.known.shape)}")
        return x[:, self.known.expand(x.shape[1:]).to(x.device)]


@dataclass(frozen=True)
class Downsample:
    """Super-resolution: the mean of each block of factor x factor pixels.

    Raises ValueError if the factor does not divide the sides of the images.
    """

    factor: int

    def __post_init__(self) -> None:
        check_integer("factor", self.factor)

    @property
    def gram(self) -> float | None:
        return 1 / self.factor**2

    def __call__(self, x: Images) -> Tensor:
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(
                f"factor must divide the sides of the images, {x.shape[-2]}x{x.shape[-1]}, got {self.factor}"
            )
        return F.avg_pool2d(x, self.factor)


@dataclass(frozen=True)
class Grey:
    """Colourisation: the weighted sum of the channels, (N, 1, H, W).

    Raises ValueError if there is not one weight per channel.
    """

    weights: Sequence[float] = BT709

    @property
    def gram(self) -> float | None:
        return sum(w * w for w in self.weights)

    def __call__(self, x: Images) -> Tensor:
        if len(self.weights) != x.shape[1]:
            raise ValueError(f"weights must have one number for each of {x.shape[1]} channels, got {len(self.weights)}")
        return torch.einsum("nchw,c->nhw", x, x.new_tensor(list(self.weights)))[:, None]


@dataclass(frozen=True, eq=False)
class Blur:
    """Deblurring: correlation of each channel with a kernel (k, k), with the border pixels repeated outwards.

    Raises ValueError if a side of the kernel is even.
    """

    kernel: Tensor
    gram: float | None = None

    def __post_init__(self) -> None:
        if self.kernel.ndim != 2 or self.kernel.shape[0] % 2 == 0 or self.kernel.shape[1] % 2 == 0:
            raise ValueError(f"a blur kernel must have two odd sides, got {tuple(self.kernel.shape)}")

    @classmethod
    def gaussian(cls, sigma: float) -> Blur:
        """Return a Gaussian blur with a standard deviation in pixels, cut off at 3 sigma and normalised."""
        if not 0 < sigma < float("inf"):
            raise ValueError(f"the standard deviation of a blur must be above 0, got {sigma}")
        radius = max(1, round(3 * sigma))
        line = torch.exp(-(torch.arange(-radius, radius + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
        return cls(torch.outer(line, line) / line.sum() ** 2)

    def __call__(self, x: Images) -> Tensor:
        (kh, kw), channels = self.kernel.shape, x.shape[1]
        padded = F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2), mode="replicate")
        return F.conv2d(padded, self.kernel.to(x).expand(channels, 1, kh, kw), groups=channels)
