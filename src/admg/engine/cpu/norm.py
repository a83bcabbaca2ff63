"""Fused GroupNorm, modulation and SiLU, and resampling, by C kernels for channels-last images.

The kernels are in norm.c and resample.c. Without them, folded.py computes the norm with PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from . import available, call, reads
from .folded import Folded, FoldedBF16, Rows, by_formula, modulated, needs_formula, wanted_gradients

BLOCK = 8192
"""Number of values that a kernel sums at a time, so that they stay in the first-level cache."""


def takes(x: Tensor) -> bool:
    """Whether normalised() supports x."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return last and x.dtype in (torch.float32, torch.bfloat16) and reads(x)


def fits(x: Tensor, weight: Tensor, bias: Tensor, scale: Rows | None, shift: Rows | None) -> bool:
    """Whether normalised() supports the other arguments together with this x."""
    n, c = x.shape[:2]
    if not weight.shape == bias.shape == (c,) or not reads(weight, bias, scale, shift):
        return False
    return scale is None or shift is None or scale.shape == shift.shape in ((n, c), (1, c))


def normalised(
    x: Tensor,
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    scale: Rows | None,
    shift: Rows | None,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """Return AdaGN(x) = (1 + scale) (weight·x̂ + bias) + shift with x̂ = (x - mean)·rstd per group, then SiLU if `silu`.

    scale, shift: both or neither; (N, C), or (1, C) for all images
    """
    factors = weight, bias, scale, shift
    if not available():
        function = FoldedBF16 if x.dtype == torch.bfloat16 else Folded
        return function.apply(x, *modulated(len(x), *factors), groups, eps, silu)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *factors)):
        return Native.apply(x, *factors, groups, eps, silu)
    return _forward(x, *factors, groups, eps, silu)[0]


def resamples(x: Tensor) -> bool:
    """Whether resample() supports x."""
    return takes(x) and available() and x.shape[1] % 16 == 0 and min(x.shape[2:]) > 1


class Native(torch.autograd.Function):
    """normalised() by kernels that process an image while it is in the cache, differentiable to any order."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        y, moments = _forward(*given)
        ctx.save_for_backward(*given[:5], moments)
        ctx.groups, ctx.eps, ctx.silu = given[5:]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Compute folded.gradients for the modulated weight and bias, and from these the gradients of all inputs."""
        x, *factors, moments = ctx.saved_tensors
        if needs_formula(dy):
            with torch.enable_grad():
                leaves: list[Any] = [None if t is None else t.view_as(t) for t in (x, *factors)]
                x, *factors = leaves
                y = by_formula(x.float(), *modulated(len(x), *factors), ctx.groups, ctx.eps, ctx.silu).to(x.dtype)
            return *wanted_gradients(ctx, y, leaves, dy), None, None, None
        x, dy = (
            t.contiguous(memory_format=torch.channels_last) for t in (x, dy)
        )  # hooks may have changed the memory format
        dx = torch.empty_like(x)
        wanted = any(ctx.needs_input_grad[1:5])
        of_rows = (_empty(*x.shape[:2]), _empty(*x.shape[:2])) if wanted else (None, None)
        rest = *_rows(*factors), moments, *_rest(x, ctx.groups, ctx.eps, ctx.silu)
        call("norm_backward", dy, x, dx, *of_rows, *rest)
        return dx, *_unmodulated(*of_rows, *factors), None, None, None


def _unmodulated(
    dweight: Rows | None, dbias: Rows | None, weight: Tensor, bias: Tensor, scale: Rows | None, shift: Rows | None
) -> list[Tensor | None]:
    """Return the gradients of the inputs of modulated() from those of its outputs."""
    if dweight is None or dbias is None:
        return [None] * 4
    if scale is None or shift is None:
        return [dweight.sum(0), dbias.sum(0), None, None]
    gain, dscale = 1 + scale.float(), weight * dweight + bias * dbias
    rows = dscale.sum_to_size(scale.shape), dbias.sum_to_size(shift.shape)
    return [(gain * dweight).sum(0), (gain * dbias).sum(0), *rows]


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Rows | None, shift: Rows | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor]:
    """Return normalised(), and the mean and rstd of each group, (2, N, groups)."""
    y, moments = torch.empty_like(x), _empty(2, len(x), groups)
    call("norm_forward", x, y, *_rows(weight, bias, scale, shift), moments, *_rest(x, groups, eps, silu))
    return y, moments


def _rows(weight: Tensor, bias: Tensor, scale: Rows | None, shift: Rows | None) -> list[Tensor | int | None]:
    """Return the factors as the kernels expect them, with the strides of scale and shift between images."""
    found: list[Tensor | int | None] = [weight.float().contiguous(), bias.float().contiguous()]
    if scale is None or shift is None:
        return [*found, None, None, 0, 0]
    alike = scale.stride() == shift.stride() and scale.stride(1) == 1 and scale.dtype == shift.dtype
    if not alike or scale.dtype not in (torch.float32, torch.bfloat16):
        scale, shift = (rows.float().contiguous() for rows in (scale, shift))
    return [*found, scale, shift, scale.stride(0) if len(scale) > 1 else 0, scale.dtype == torch.bfloat16]


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _rest(x: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor | int | float, ...]:
    """Return the remaining arguments of the kernels: work space and sizes."""
    n, c, h, w = x.shape
    rows = max(16, BLOCK // c)
    blocks = -(-h * w // rows)
    scratch = _empty(torch.get_num_threads() * (9 + 2 * blocks) * c)
    return scratch, n, h * w, c, rows, groups, eps, silu, x.dtype == torch.bfloat16


def resample(x: Tensor, up: bool, scale: float) -> Tensor:
    """Double the size by nearest neighbour, or halve it by sums of four pixels, and multiply by a scale."""
    if up and scale == 1:  # PyTorch is as fast
        return F.interpolate(x, scale_factor=2, mode="nearest")
    n, c, h, w = x.shape
    size = (2 * h, 2 * w) if up else (h // 2, w // 2)
    y = torch.empty((n, c, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    call("resample", x, y, n, h, w, c, up, scale, x.dtype == torch.bfloat16)
    return y
