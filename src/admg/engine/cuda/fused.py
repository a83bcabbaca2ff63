"""Fused GroupNorm, modulation and SiLU on a GPU; adding, concatenating and resampling of channels-last images."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from admg.engine.cpu.folded import Rows, differentiable_gradients, needs_formula
from admg.engine.observers import is_transformed
from admg.warn import warn


@cache
def kernels() -> Any:
    """Return the Triton kernels, or None if Triton is missing or cannot build them (without a C compiler, say)."""
    try:
        from . import triton_norm

        tried = torch.ones(1, 32, 2, 2, device="cuda").to(memory_format=torch.channels_last)
        triton_norm.add(tried, tried, tried[0, :, 0, 0].contiguous())
    except ImportError:
        return None
    except Exception as error:  # compilers and drivers raise many kinds
        warn(f"Triton does not work here, continuing without it: {str(error)[:200]}")
        return None
    return triton_norm


def takes(x: Tensor) -> bool:
    """Whether the kernels support x."""
    if not x.is_cuda or x.ndim != 4 or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    if x.get_device() != torch.cuda.current_device():  # Triton launches on the current device
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and kernels() is not None


class Norm(torch.autograd.Function):
    """SiLU(weight·x̂ + bias), where x̂ is x + offset normalised; differentiable to any order, except in the offset."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Rows, bias: Rows, offset: Tensor | None, groups: int, eps: float, silu: bool
    ) -> Tensor:
        y, made = kernels().normalise(x, weight, bias, offset, groups, eps, silu)
        ctx.save_for_backward(x, weight, bias, offset, *made)
        ctx.groups, ctx.eps, ctx.silu = groups, eps, silu
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, offset, *made = ctx.saved_tensors
        if needs_formula(dy):
            return *differentiable_gradients(ctx, dy, x, weight, bias, offset), None, None, None, None
        return *kernels().gradients(dy, x, *made, ctx.groups, ctx.silu), None, None, None, None


class Add(torch.autograd.Function):
    """x + h + offset"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, offset: Tensor) -> Tensor:
        return kernels().add(x, h, offset)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        return dy, dy, None


class Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor) -> Tensor:
        ctx.channels = x.shape[1]
        return kernels().join(x, h)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        parts = dy[:, : ctx.channels], dy[:, ctx.channels :]
        if is_transformed(dy):
            return parts
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)
