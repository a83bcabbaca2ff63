"""Group norm with what follows it in one: a modulation per image and channel, and SiLU.

On a CPU, with channels last, the weights of the norm and of the modulation are folded into one multiply-add per
element, SiLU works in place, and for the backward pass nothing is kept but the input and the statistics.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Rows = Float[Tensor, "n c"]


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
        *,
        silu: bool = False,
    ) -> Float[Tensor, "n c *s"]:
        """AdaGN(x) = (1 + scale) GroupNorm(x) + shift, or GroupNorm(x) alone; then SiLU if `silu`.

        scale, shift: both or neither, for each image or (1, C) for all
        """
        if _foldable(x):
            weight, bias = self.weight[None], self.bias[None]
            if scale is not None and shift is not None:
                weight, bias = (1 + scale) * weight, torch.addcmul(shift, 1 + scale, bias)
            return _Folded.apply(x, weight.expand(len(x), -1), bias.expand(len(x), -1), self.num_groups, self.eps, silu)
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


def is_watched() -> bool:
    """Whether somebody looks into what is computed: torch.compile, torch.func, or forward-mode differentiation."""
    functional = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    return torch.compiler.is_compiling() or functional


def norm_and_silu(
    norm: nn.Module, act: nn.Module, h: Tensor, scale: Rows | None = None, shift: Rows | None = None
) -> Tensor:
    """act(AdaGN(h)) as in GroupNorm32; in one, if the modules are the usual ones and nobody hooks in between."""
    usual = type(norm) is GroupNorm32 and type(act) is nn.SiLU
    if usual and not (norm._forward_hooks or act._forward_hooks or act._forward_pre_hooks):
        return norm(h, scale, shift, silu=True)
    return act(_modulated(norm(h), scale, shift))


def _foldable(x: Tensor) -> bool:
    """Whether x is what _Folded takes."""
    if is_watched():
        return False
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return last and x.device.type == "cpu" and x.dtype == torch.float32


class _Folded(torch.autograd.Function):
    """SiLU(weight·x̂ + bias), x̂ = (x - mean)·rstd of each group, with gradients of any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Rows, bias: Rows, groups: int, eps: float, silu: bool) -> Tensor:
        mean, rstd = _statistics(x, groups, eps)
        y = torch.addcmul(*_affine(x, weight, bias, mean, rstd))
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps, ctx.silu = groups, eps, silu
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # someone wants the gradient of this gradient
            x, weight, bias = (
                tensor.view_as(tensor) for tensor in (x, weight, bias)
            )  # which may depend on one another
            y = _by_formula(x, weight, bias, ctx.groups, ctx.eps, ctx.silu)
            wanted = [tensor for tensor, needed in zip((x, weight, bias), ctx.needs_input_grad) if needed]
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            return *[next(found) if needed else None for needed in ctx.needs_input_grad[:3]], None, None, None
        return *_gradients(dy, x, weight, bias, mean, rstd, ctx.silu), None, None, None


def _statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation (N, groups).

    By sums over pixels, which torch adds up in a tree, so a digit more exact on large images than its own kernel for
    channels last. As in that one, a deviation below a three-hundredth of the mean is lost in rounding.
    """
    size = x[0].numel() // groups
    sums = x.sum((2, 3)), (x * x).sum((2, 3))
    mean, square = (of_channels.view(len(x), groups, -1).sum(2) / size for of_channels in sums)
    return mean, (square - mean * mean).clamp(min=0).add(eps).rsqrt()


def _affine(x: Tensor, weight: Rows, bias: Rows, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """b, x, a with weight·x̂ + bias = b + x a."""
    a = weight * _of_channels(rstd, weight)
    b = torch.addcmul(bias, a, _of_channels(mean, weight), value=-1)
    return b[:, :, None, None], x, a[:, :, None, None]


def _of_channels(of_groups: Tensor, weight: Rows) -> Tensor:
    """(N, groups) -> (N, C)"""
    return of_groups.repeat_interleave(weight.shape[1] // of_groups.shape[1], dim=1)


def _gradients(
    dy: Tensor, x: Tensor, weight: Rows, bias: Rows, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Rows, Rows]:
    """With respect to x, weight and bias: with z = weight·x̂ + bias,

    dx = rstd·(weight·dz - <weight·dz> - x̂ <weight·dz·x̂>), where <> is the mean over a group of one image.
    """
    n, groups = mean.shape
    size = x[0].numel() // groups
    z = torch.addcmul(*_affine(x, weight, bias, mean, rstd))
    dz = torch.ops.aten.silu_backward(dy, z) if silu else dy
    mean_c, rstd_c = _of_channels(mean, weight), _of_channels(rstd, weight)
    dbias = dz.sum((2, 3))
    dweight = (torch.mul(dz, x, out=z).sum((2, 3)) - mean_c * dbias) * rstd_c  # the sum of dz·x̂
    first, second = (_of_channels((weight * d).view(n, groups, -1).sum(2) / size, weight) for d in (dbias, dweight))
    slope = -rstd_c * rstd_c * second
    offset = -rstd_c * first - slope * mean_c
    a, b, c = (rows[:, :, None, None] for rows in (rstd_c * weight, slope, offset))
    return torch.addcmul(c, x, b, out=z).addcmul_(dz, a), dweight, dbias


def _by_formula(x: Tensor, weight: Rows, bias: Rows, groups: int, eps: float, silu: bool) -> Tensor:
    """The same result in differentiable operations."""
    grouped = x.reshape(len(x), groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    z = ((grouped - mean) * (variance + eps).rsqrt()).view(x.shape)
    z = weight[:, :, None, None] * z + bias[:, :, None, None]
    return F.silu(z) if silu else z
