"""Operations of the blocks by the kernels of the device, which read and write images once; by torch elsewhere.

cpu/norm.py has the kernels of a CPU, cuda/fused.py those of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .cpu import norm as native_norm
from .cpu.folded import Rows, modulated
from .cuda import fused
from .observers import is_traced, is_transformed


def group_norm(
    norm: Any,
    x: Float[Tensor, "n c *s"],
    scale: Rows | None = None,
    shift: Rows | None = None,
    offset: Float[Tensor, " c"] | None = None,
    *,
    silu: bool = False,
) -> Float[Tensor, "n c *s"]:
    """Return AdaGN(x + offset) = (1 + scale) GroupNorm(x + offset) + shift, and then SiLU of it if `silu`.

    norm: the nn.GroupNorm with the weights; statistics are computed in float32 at least
    scale, shift: (N, C), or (1, C) for all images; both or neither
    offset: (C,); no gradient is computed for it
    """
    if takes(fused, x):
        rows = modulated(len(x), norm.weight, norm.bias, scale, shift)
        return fused.Norm.apply(x, *rows, offset, norm.num_groups, norm.eps, silu)
    if offset is not None:
        x = x + _as_images(offset[None], x)
    if takes(native_norm, x) and native_norm.fits(x, norm.weight, norm.bias, scale, shift):
        return native_norm.normalised(x, norm.weight, norm.bias, scale, shift, norm.num_groups, norm.eps, silu)
    h = _modulated(_plain(norm, x), scale, shift)
    return F.silu(h) if silu else h


def _plain(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and norm.weight.dtype == torch.float32:
        return nn.GroupNorm.forward(norm, x)  # torch's kernel reads bf16 and accumulates in float32
    dtype = torch.promote_types(x.dtype, torch.float32)
    return F.group_norm(x.to(dtype), norm.num_groups, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps).to(x.dtype)


def _modulated(h: Tensor, scale: Rows | None, shift: Rows | None) -> Tensor:
    """(1 + scale) h + shift, or h alone."""
    if scale is None or shift is None:
        return h
    return torch.addcmul(_as_images(shift, h), h, _as_images(1 + scale, h))


def _as_images(rows: Rows, like: Tensor) -> Tensor:
    return rows.to(like.dtype).view(*rows.shape, *[1] * (like.ndim - 2))


def takes(kernels: ModuleType, x: Tensor) -> bool:
    """Whether these kernels can compute with x here and now."""
    return not is_traced() and kernels.takes(x)


def add(x: Tensor, h: Tensor, offset: Float[Tensor, " c"] | None) -> Tensor:
    """Return x + h + offset; no gradient is computed for the offset (C,)."""
    if offset is None:
        return x + h
    if x.shape == h.shape and x.dtype == h.dtype and takes(fused, x) and takes(fused, h):
        return fused.Add.apply(x, h, offset)
    return x + (h + _as_images(offset[None], h))


def resampled(x: Float[Tensor, "n c h w"], up: bool) -> Float[Tensor, "n c h2 w2"]:
    """Double height and width by nearest neighbour if `up`, else halve them by means of four pixels."""
    if takes(fused, x):
        return Resample.apply(x, fused.kernels().resample, up, 1.0 if up else 0.25)
    if not is_traced() and native_norm.resamples(x):
        return Resample.apply(x, native_norm.resample, up, 1.0 if up else 0.25)
    return F.interpolate(x, scale_factor=2, mode="nearest") if up else F.avg_pool2d(x, 2)


class Resample(torch.autograd.Function):
    """kernel(x, up, scale): double the size, or halve it by sums. Each direction is the gradient of the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Callable[[Tensor, bool, float], Tensor], up: bool, scale: float) -> Tensor:
        ctx.kernel, ctx.up, ctx.scale, ctx.size = kernel, up, scale, x.shape[2:]
        return kernel(x.contiguous(memory_format=torch.channels_last), up, scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        if is_transformed(dy):
            dx = ctx.scale * (4 * F.avg_pool2d(dy, 2) if ctx.up else F.interpolate(dy, scale_factor=2, mode="nearest"))
        else:
            dx = Resample.apply(dy, ctx.kernel, not ctx.up, ctx.scale)
        if dx.shape[2:] != ctx.size:  # the last row or column of an odd size was dropped
            dx = F.pad(dx, (0, ctx.size[1] - dx.shape[3], 0, ctx.size[0] - dx.shape[2]))
        return dx, None, None, None


def concatenate(x: Float[Tensor, "n c h w"], h: Float[Tensor, "n c2 h w"]) -> Float[Tensor, "n c3 h w"]:
    """Concatenate the channels of x and those of h."""
    alike = x.dtype == h.dtype and len(x) == len(h) and x.shape[2:] == h.shape[2:]
    if alike and takes(fused, x) and takes(fused, h):
        return fused.Join.apply(x, h)
    return torch.cat([x, h], dim=1)
