"""3x3 convolutions by Winograd's minimal filtering F(2x2, 3x3): 16 products for four pixels instead of 36.

Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", section 4.1:
Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A for a 3x3 filter g and the 4x4 pixels d around 2x2 pixels Y. Summed over the channels,
the products at each of the 16 places are one matrix product. Bᵀ and A hold 0 and ±1 alone; the rounding errors are no
larger than those of a direct convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TILES = 1024
"""That are worked on at a time, so that they stay in the cache."""
G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def pays(weight: Tensor, x: Tensor) -> bool:
    """Whether it takes less time on a CPU: for many channels, whose products cost more than what surrounds them."""
    n, _, height, width = x.shape
    wide = weight.shape[2:] == (3, 3) and min(weight.shape[:2]) >= 192 and n * height * width >= 256
    return wide and height % 2 == width % 2 == 0


def transformed(weight: Float[Tensor, "k c 3 3"]) -> Float[Tensor, "16 c k"]:
    """G g Gᵀ"""
    g = G.to(weight)
    return torch.einsum("ai,bj,kcij->abck", g, g, weight).flatten(0, 1).contiguous()


def convolve(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "16 c k"], bias: Float[Tensor, " k"] | None
) -> Float[Tensor, "n k h w"]:
    """The convolution of images of even sides, padded by one pixel of zeros; channels last."""
    n, _, height, width = x.shape
    y = torch.empty(n, weight.shape[2], height, width, dtype=x.dtype, memory_format=torch.channels_last)
    images = max(1, 4 * TILES // (height * width))
    for d, part in zip(x.permute(0, 2, 3, 1).split(images), y.permute(0, 2, 3, 1).split(images)):
        v = _transform(d)
        m = torch.bmm(v.flatten(0, 1).flatten(1, 3), weight).view(*v.shape[:-1], -1)
        if bias is not None:
            m[1, 1] += bias  # which Aᵀ and A pass on to all four pixels once
        for i, row in enumerate(_sums(m)):
            for j, pixels in enumerate(_sums(row)):
                part[:, i::2, j::2] = pixels
    return y


def _transform(d: Float[Tensor, "n h w c"]) -> Float[Tensor, "4 4 n h/2 w/2 c"]:
    """Bᵀ d B of every tile"""
    n, height, width, c = d.shape
    d = F.pad(d, (0, 0, 1, 1, 1, 1))
    rows = d.new_empty(4, n, height // 2, width + 2, c)
    _differences([d[:, k : k + height - 1 : 2] for k in range(4)], [rows[k] for k in range(4)])
    v = d.new_empty(4, 4, n, height // 2, width // 2, c)
    _differences([rows[..., k : k + width - 1 : 2, :] for k in range(4)], [v[:, k] for k in range(4)])
    return v


def _differences(d: list[Tensor], out: list[Tensor]) -> None:
    """Bᵀ d"""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _sums(m: Tensor) -> tuple[Tensor, Tensor]:
    """Aᵀ m"""
    return torch.add(m[0], m[1]).add_(m[2]), torch.sub(m[1], m[2]).sub_(m[3])
