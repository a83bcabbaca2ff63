"""3x3 convolutions by Winograd's minimal filtering F(m x m, 3x3): (m + 2)² products for m² pixels instead of 9 m².

Lavin & Gray 2016, "Fast algorithms for convolutional neural networks": Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A for a 3x3
filter g and the pixels d around a tile Y of m x m pixels. Summed over the channels, the products at each place of the
tiles are one matrix product. Rounding errors are about those of a direct convolution.

The C kernel (winograd.c) has m = 2 or 4. Without it, PyTorch computes m = 2 for images with even sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from . import available, call, channels_last, scratch

TILES = 1024
"""Number of values that PyTorch processes at a time, so that they stay in the cache."""
MAX_CACHED_FILTERS = 2**15
"""Number of filters above which transformed weights, which take up to four times the memory, are not kept: transforming
them at each call costs a tenth of the time for large images or batches, and half of it for a single small image."""
G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


@cache
def pays(dtype: torch.dtype) -> bool:
    """Whether images of this format are convolved faster in float32 by Winograd's algorithm than by oneDNN.

    In bf16 they are, by a factor of 1.4, unless the processor has AMX, whose products are eight times those of float32.
    """
    if dtype != torch.bfloat16:
        return dtype == torch.float32
    has_amx: Callable[[], bool] = getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)  # private; torch 2.13
    return available() and not has_amx()


def tile(weight: Float[Tensor, "k c 3 3"], x: Float[Tensor, "n c h w"]) -> int:
    """Return the fastest m for the format of x on a CPU (see pays()), or 0 if a direct convolution is faster."""
    if weight.shape[2:] != (3, 3):
        return 0
    (n, _, height, width), (k, c) = x.shape, weight.shape[:2]
    if not _is_native(weight):
        if x.dtype != torch.float32:
            return 0
        wide = min(k, c) >= 192 and n * height * width >= 256
        return 2 if wide and height % 2 == width % 2 == 0 else 0
    large, small = (n * -(-height // m) * -(-width // m) for m in (4, 2))  # numbers of tiles
    if x.dtype == torch.bfloat16:
        return 4 if large >= 16 or (large >= 4 and is_small(weight)) else 0
    if large >= 16 or k * c <= 64**2:
        return 4
    return 2 if small >= 8 or k * c <= 256**2 else 0  # more weights are read than of the direct one: 16/9 of them, or 4


def is_kept(weight: Float[Tensor, "k c 3 3"]) -> bool:
    """Whether to keep the transformed weight, for convolve(), rather than to call convolve_unpacked()."""
    return not _is_native(weight) or is_small(weight)


def is_small(weight: Tensor) -> bool:
    """Whether layouts of a weight (K, C, ...) take little memory."""
    return weight.shape[0] * weight.shape[1] <= MAX_CACHED_FILTERS


def transform_weight(weight: Float[Tensor, "k c 3 3"], m: int, turned: bool = False) -> Tensor:
    """Return G g Gᵀ for convolve(). With `turned` it is the weight of the gradient with respect to x."""
    if not _is_native(weight):
        return _transform_weight(weight.flip(2, 3).transpose(0, 1) if turned else weight)
    k, c = weight.shape[:2]
    u = weight.new_empty((m + 2) ** 2, k * c)
    call("winograd_pack", weight.contiguous(), u, k, c, m, turned)
    return u


def convolve(x: Float[Tensor, "n c h w"], weight: Tensor, bias: Float[Tensor, " k"] | None) -> Float[Tensor, "n k h w"]:
    """Return the convolution of channels-last images, with one pixel of zero padding, with a transformed weight."""
    if weight.ndim == 3:
        return _convolve(x, weight, bias)
    n, c, height, width = x.shape
    k, m = weight.shape[1] // c, math.isqrt(len(weight)) - 2
    return _call(x, weight, None, bias, (n, height, width, c, k, m), False)


def convolve_unpacked(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "k c 3 3"], bias: Tensor | None, m: int, turned: bool = False
) -> Float[Tensor, "n k h w"]:
    """Like convolve(x, transformed(weight, m, turned), bias), but transforms the weight on the fly, not storing it."""
    n, _, height, width = x.shape
    c, k = weight.shape[:2] if turned else weight.shape[1::-1]
    return _call(x, None, weight.contiguous(), bias, (n, height, width, c, k, m), turned)


def _call(
    x: Tensor, u: Tensor | None, weight: Tensor | None, bias: Tensor | None, sizes: tuple[int, ...], turned: bool
) -> Tensor:
    n, height, width, _, k, _ = sizes
    x = x.contiguous(memory_format=torch.channels_last)
    y = channels_last(n, k, height, width, x.dtype)
    bias = None if bias is None else bias.contiguous()
    work = scratch("winograd", *sizes, u is not None)
    call("winograd_convolve", x, u, weight, bias, y, work, *sizes, turned, x.dtype == torch.bfloat16)
    return y


def _is_native(weight: Tensor) -> bool:
    """Whether the C kernel supports it."""
    return available() and weight.dtype == torch.float32 and all(c % 32 == 0 for c in weight.shape[:2])


def _transform_weight(weight: Float[Tensor, "k c 3 3"]) -> Float[Tensor, "16 c k"]:
    """Return G g Gᵀ for m = 2."""
    g = G.to(weight)
    return torch.einsum("ai,bj,kcij->abck", g, g, weight).flatten(0, 1).contiguous()


def _convolve(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "16 c k"], bias: Float[Tensor, " k"] | None
) -> Float[Tensor, "n k h w"]:
    """Convolve with m = 2 in PyTorch. Bᵀ and A contain only 0 and ±1."""
    n, _, height, width = x.shape
    size = n, weight.shape[2], height, width
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    images = max(1, 4 * TILES // (height * width))
    for d, part in zip(x.permute(0, 2, 3, 1).split(images), y.permute(0, 2, 3, 1).split(images)):
        v = _transform(d)
        m = torch.bmm(v.flatten(0, 1).flatten(1, 3), weight).view(*v.shape[:-1], -1)
        if bias is not None:
            m[1, 1] += bias  # Aᵀ and A add it once to each of the four pixels
        for i, row in enumerate(_sums(m)):
            for j, pixels in enumerate(_sums(row)):
                part[:, i::2, j::2] = pixels
    return y


def _transform(d: Float[Tensor, "n h w c"]) -> Float[Tensor, "4 4 n h/2 w/2 c"]:
    """Return Bᵀ d B of every tile."""
    n, height, width, c = d.shape
    d = F.pad(d, (0, 0, 1, 1, 1, 1))
    rows = d.new_empty(4, n, height // 2, width + 2, c)
    _differences([d[:, k : k + height - 1 : 2] for k in range(4)], [rows[k] for k in range(4)])
    v = d.new_empty(4, 4, n, height // 2, width // 2, c)
    _differences([rows[..., k : k + width - 1 : 2, :] for k in range(4)], [v[:, k] for k in range(4)])
    return v


def _differences(d: list[Tensor], out: list[Tensor]) -> None:
    """Return Bᵀ d."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _sums(m: Tensor) -> tuple[Tensor, Tensor]:
    """Return Aᵀ m."""
    return torch.add(m[0], m[1]).add_(m[2]), torch.sub(m[1], m[2]).sub_(m[3])
