"""Fused GroupNorm, modulation and SiLU on a CPU in PyTorch, for channels-last images.

The weights of the norm and of the modulation are folded into one multiply-add per element, SiLU works in place, and
only the input and the statistics are kept for the backward pass. In bf16, sums and factors are in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from admg.engine.observers import is_transformed

Rows = Float[Tensor, "n c"]


def modulated(n: int, weight: Tensor, bias: Tensor, scale: Rows | None, shift: Rows | None) -> tuple[Rows, Rows]:
    """Return weight and bias (N, C) that include the modulation of each image, in float32."""
    weight, bias = weight[None].float(), bias[None].float()
    if scale is not None and shift is not None:
        gain = 1 + scale.float()
        weight, bias = gain * weight, torch.addcmul(shift.float(), gain, bias)
    return weight.expand(n, -1), bias.expand(n, -1)


class Folded(torch.autograd.Function):
    """SiLU(weight·x̂ + bias) with x̂ = (x - mean)·rstd per group, in float32, differentiable to any order."""

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
        if needs_formula(dy):
            return *differentiable_gradients(ctx, dy, x, weight, bias), None, None, None
        return *gradients(dy, x, weight, bias, mean, rstd, ctx.silu), None, None, None


def _statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean and the inverse standard deviation, (N, groups).

    They are computed from sums over the pixels. PyTorch adds these up pairwise, which is one digit more accurate on
    large images than its own channels-last kernel. As with that kernel, a standard deviation below 1/300 of the mean
    is lost in rounding.
    """
    size = x[0].numel() // groups
    sums = x.sum((2, 3)), (x * x).sum((2, 3))
    mean, square = (of_channels.view(len(x), groups, -1).sum(2) / size for of_channels in sums)
    return mean, (square - mean * mean).clamp(min=0).add(eps).rsqrt()


def _affine(x: Tensor, weight: Rows, bias: Rows, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return b, x and a with weight·x̂ + bias = b + x a."""
    a = weight * _of_channels(rstd, weight)
    b = torch.addcmul(bias, a, _of_channels(mean, weight), value=-1)
    return b[:, :, None, None], x, a[:, :, None, None]


def _of_channels(of_groups: Tensor, weight: Rows) -> Tensor:
    """Repeat values of groups, (N, groups), for their channels, (N, C)."""
    return of_groups.repeat_interleave(weight.shape[1] // of_groups.shape[1], dim=1)


def gradients(
    dy: Tensor, x: Tensor, weight: Rows, bias: Rows, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Rows, Rows]:
    """Return the gradients with respect to x, weight and bias. With z = weight·x̂ + bias,

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


def needs_formula(dy: Tensor) -> bool:
    """Whether the gradient will itself be differentiated, or is transformed."""
    return torch.is_grad_enabled() or is_transformed(dy)


def differentiable_gradients(
    ctx: Any, dy: Tensor, x: Tensor, weight: Rows, bias: Rows, offset: Tensor | None = None
) -> list[Tensor | None]:
    """Return the needed gradients, differentiable, of SiLU(weight·x̂ + bias), where x̂ is x + offset normalised."""
    with torch.enable_grad():
        leaves = [tensor.view_as(tensor) for tensor in (x, weight, bias)]  # the inputs may depend on one another
        x, weight, bias = leaves
        moved = x.float() if offset is None else x.float() + offset[:, None, None]
        y = by_formula(moved, weight, bias, ctx.groups, ctx.eps, ctx.silu).to(x.dtype)
    return wanted_gradients(ctx, y, leaves, dy)


def wanted_gradients(ctx: Any, y: Tensor, leaves: Sequence[Tensor], dy: Tensor) -> list[Tensor | None]:
    """Return the differentiable gradients of those leaves, the first inputs of ctx, that need one."""
    wanted = [leaf for leaf, needed in zip(leaves, ctx.needs_input_grad) if needed]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=torch.is_grad_enabled()))
    return [next(found) if needed else None for _, needed in zip(leaves, ctx.needs_input_grad)]


def by_formula(x: Tensor, weight: Rows, bias: Rows, groups: int, eps: float, silu: bool) -> Tensor:
    """Compute the same result from differentiable operations."""
    grouped = x.reshape(len(x), groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    z = ((grouped - mean) * (variance + eps).rsqrt()).view(x.shape)
    z = weight[:, :, None, None] * z + bias[:, :, None, None]
    return F.silu(z) if silu else z


class FoldedBF16(torch.autograd.Function):
    """Folded, for x in bf16 and weight and bias in float32.

    It uses the kernels of batch norm, which read and write bf16 in channels-last format, compute in float32, and make
    one pass over memory. The batch (N, C, H, W) is viewed as one image with N·C channels, so that the per-channel
    statistics of batch norm are those of each channel of each image.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Rows, bias: Rows, groups: int, eps: float, silu: bool) -> Tensor:
        joined, zeros = _join(x), x.new_zeros(2, weight.numel(), dtype=torch.float32)
        channels = torch.batch_norm_update_stats(joined, zeros[0], zeros[1], 0.0)
        means, variances = (rows.view(len(x), groups, -1) for rows in channels)
        mean = means.mean(2, keepdim=True)
        variance = (means - mean).square_().add_(variances).mean(2, keepdim=True)
        mean, variance = (of_groups.expand_as(means).flatten() for of_groups in (mean, variance))
        y = _scaled(joined, weight, bias, mean, variance, eps)
        ctx.save_for_backward(x, weight, bias, mean, variance)
        ctx.groups, ctx.eps, ctx.silu = groups, eps, silu
        return _part(F.silu(y, inplace=True) if silu else y, x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """As gradients()."""
        x, weight, bias, mean, variance = ctx.saved_tensors
        if needs_formula(dy):
            return *differentiable_gradients(ctx, dy, x, weight, bias), None, None, None
        joined, dz, rstd = _join(x), _join(dy), (variance + ctx.eps).rsqrt()
        if ctx.silu:
            dz = torch.ops.aten.silu_backward(dz, _scaled(joined, weight, bias, mean, variance, ctx.eps))
        sums = torch.ops.aten.native_batch_norm_backward(
            dz, joined, None, None, None, mean, rstd, True, ctx.eps, [False, True, True]
        )
        dweight, dbias = (rows.view_as(weight) for rows in sums[1:])
        sums = (torch.stack([dweight, dbias]) * weight).view(2, len(x), ctx.groups, -1)
        means = sums.sum(3, keepdim=True).expand_as(sums).reshape(2, -1) / (x[0].numel() // ctx.groups)
        second, first = -rstd * means
        dx = _scaled(joined, second, first, mean, variance, ctx.eps)
        dx.addcmul_(dz, (rstd * weight.flatten()).to(dx.dtype).view(1, -1, 1, 1))
        return _part(dx, x), dweight, dbias, None, None, None


def _scaled(joined: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Return weight·x̂ + bias."""
    return torch.native_batch_norm(joined, weight.flatten(), bias.flatten(), mean, variance, False, 0.0, eps)[0]


def _join(x: Tensor) -> Tensor:
    """Reshape (N, C, H, W) to (1, N·C, H, W), channels last."""
    n, c, h, w = x.shape
    return x.permute(2, 3, 0, 1).reshape(1, h, w, n * c).permute(0, 3, 1, 2)


def _part(joined: Tensor, like: Tensor) -> Tensor:
    """The inverse of _join."""
    n, c, h, w = like.shape
    return joined.permute(2, 3, 0, 1).view(h, w, n, c).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
