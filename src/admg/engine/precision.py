"""Which number format a device multiplies fastest, natively."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Literal, get_args

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Resolved = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def native_bf16(device_type: str) -> bool:
    """Whether the device has bf16 arithmetic of its own; an emulation is accepted by torch but ten times slower."""
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device_type != "cpu":
        return False
    known = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    if platform.machine().lower() in ("x86_64", "amd64") and None not in known:
        return any(ask() for ask in known if ask)  # not by timing, which may differ from start to start
    return _matmul_seconds(torch.bfloat16) < _matmul_seconds(torch.float32)


def _matmul_seconds(dtype: torch.dtype) -> float:
    """The shortest of several timings, so that a busy machine does not mislead."""
    a = torch.randn(384, 384).to(dtype)
    timings = []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, a)
        timings.append(time.perf_counter() - start)
    return min(timings[1:])


def resolve(precision: Precision, device: torch.device) -> Resolved:
    """`auto` as bf16 where that is native, else fp32: gradients of a classifier get lost in fp16, whose range is small.

    ValueError: an unknown precision; fp16 elsewhere than on a GPU, where it is emulated and overflows.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}: {', '.join(get_args(Precision))}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision fp16 is for GPUs; on {device.type} choose auto, fp32 or bf16")
    if precision != "auto":
        return precision
    return "bf16" if native_bf16(device.type) else "fp32"


@contextmanager
def float32_proper() -> Iterator[None]:
    """cuDNN's convolutions without TF32, whose three digits are its default."""
    try:
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    except RuntimeError:  # set by torch's newer switch (fp32_precision), which is left as it is
        yield
        return
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in this precision."""
    dtype = DTYPES[resolve(precision, device)]
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
