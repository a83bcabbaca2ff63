"""Group norm with what follows it in one, a modulation per image and channel and SiLU; and what else blocks compute.

Each by kernels that read and write images once, where there are some: native/norm.py on a CPU, fused.py on a GPU.
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
from .exchange import is_watched


class GroupNorm32(nn.GroupNorm):
    """Group norm over 32 groups, computed in float32 whatever the dtype of the input."""

    def __init__(self, channels: int):
        if channels % 32:
            raise ValueError(f"{channels} channels: every width of the network must be a multiple of 32 (group norm)")
        super().__init__(32, channels)

    def forward(
        self,
        x: Float[Tensor, "n c *s"],
        scale: Float[Tensor, "n c"] | None = None,
        shift: Float[Tensor, "n c"] | None = None,
        offset: Float[Tensor, " c"] | None = None,
        *,
        silu: bool = False,
    ) -> Float[Tensor, "n c *s"]:
        """AdaGN(x + offset), AdaGN(x) = (1 + scale) GroupNorm(x) + shift, or GroupNorm(x) alone; then SiLU if `silu`.

        scale, shift: both or neither, for each image or (1, C) for all
        offset: no gradient is computed for it
        """
        if takes(fused, x):
            rows = modulated(len(x), self.weight, self.bias, scale, shift)
            return fused.Norm.apply(x, *rows, offset, self.num_groups, self.eps, silu)
        if offset is not None:
            x = x + _as_images(offset[None], x)
        if takes(native_norm, x) and native_norm.fits(x, self.weight, self.bias, scale, shift):
            return native_norm.normalised(x, self.weight, self.bias, scale, shift, self.num_groups, self.eps, silu)
        h = _modulated(self._plain(x), scale, shift)
        return F.silu(h) if silu else h

    def _plain(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:  # this kernel reads bf16 and accumulates in float32
            return super().forward(x)
        return super().forward(x.float()).to(x.dtype)


def _modulated(h: Tensor, scale: Rows | None, shift: Rows | None) -> Tensor:
    """(1 + scale) h + shift, or h alone."""
    if scale is None or shift is None:
        return h
    return torch.addcmul(_as_images(shift, h), h, _as_images(1 + scale, h))


def _as_images(rows: Rows, like: Tensor) -> Tensor:
    return rows.to(like.dtype).view(*rows.shape, *[1] * (like.ndim - 2))


def takes(kernels: ModuleType, x: Tensor) -> bool:
    """Whether these kernels take x, and nobody looks into what is computed."""
    return not is_watched() and kernels.takes(x)


def norm_and_silu(
    norm: nn.Module,
    act: nn.Module,
    h: Tensor,
    scale: Rows | None = None,
    shift: Rows | None = None,
    offset: Float[Tensor, " c"] | None = None,
) -> Tensor:
    """act(AdaGN(h + offset)) as in GroupNorm32; in one, if the modules are usual and nobody hooks in between."""
    usual = type(norm) is GroupNorm32 and type(act) is nn.SiLU
    if usual and not (norm._forward_hooks or act._forward_hooks or act._forward_pre_hooks):
        return norm(h, scale, shift, offset, silu=True)
    h = h if offset is None else h + _as_images(offset[None], h)
    return act(_modulated(norm(h), scale, shift))


def add(x: Tensor, h: Tensor, offset: Float[Tensor, " c"] | None) -> Tensor:
    """x + h + offset, for which no gradient is computed."""
    if offset is None:
        return x + h
    if x.shape == h.shape and x.dtype == h.dtype and takes(fused, x) and takes(fused, h):
        return fused.Add.apply(x, h, offset)
    return x + (h + _as_images(offset[None], h))


def resampled(x: Float[Tensor, "n c h w"], up: bool) -> Float[Tensor, "n c h2 w2"]:
    """Twice the height and width by nearest neighbour, or half of them by means of four pixels, in the dtype of x."""
    if takes(fused, x):
        return Resample.apply(x, fused.kernels().resample, up, 1.0 if up else 0.25)
    if not is_watched() and native_norm.resamples(x):
        return Resample.apply(x, native_norm.resample, up, 1.0 if up else 0.25)
    return F.interpolate(x, scale_factor=2, mode="nearest") if up else F.avg_pool2d(x, 2)


class Resample(torch.autograd.Function):
    """kernel(x, up, scale): twice the size, or half of it by sums. Each direction is the gradient of the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Callable[[Tensor, bool, float], Tensor], up: bool, scale: float) -> Tensor:
        ctx.kernel, ctx.up, ctx.scale, ctx.size = kernel, up, scale, x.shape[2:]
        return kernel(x.contiguous(memory_format=torch.channels_last), up, scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        dx = Resample.apply(dy, ctx.kernel, not ctx.up, ctx.scale)
        if dx.shape[2:] != ctx.size:  # an odd size has a row or column that went nowhere
            dx = F.pad(dx, (0, ctx.size[1] - dx.shape[3], 0, ctx.size[0] - dx.shape[2]))
        return dx, None, None, None


def joined(x: Float[Tensor, "n c h w"], h: Float[Tensor, "n c2 h w"]) -> Float[Tensor, "n c3 h w"]:
    """The channels of x, then those of h."""
    alike = x.dtype == h.dtype and len(x) == len(h) and x.shape[2:] == h.shape[2:]
    if alike and takes(fused, x) and takes(fused, h):
        return fused.Join.apply(x, h)
    return torch.cat([x, h], dim=1)
