"""Which number format a device multiplies fastest, natively."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal, get_args

import torch

Precision = Literal["auto", "fp32", "bf16"]


@cache
def native_bf16(device_type: str) -> bool:
    """Whether the device has bf16 arithmetic of its own; an emulation is accepted by torch but ten times slower."""
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device_type != "cpu":
        return False
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


def resolve(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` as the fastest native format. ValueError: an unknown precision."""
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}: {', '.join(get_args(Precision))}")
    if precision == "auto":
        return "bf16" if native_bf16(device.type) else "fp32"
    return precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in this precision."""
    if resolve(precision, device) == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
