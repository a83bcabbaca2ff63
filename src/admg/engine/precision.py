"""Number formats of matrix products, and native support of a device for them."""

from __future__ import annotations

import platform
import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal, get_args

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Resolved = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def native_bf16(device_type: str) -> bool:
    """Whether the device has bf16 arithmetic; where it is emulated, torch accepts it but it is ten times slower.

    An x86 processor has it where torch uses AVX-512 instructions, which ATEN_CPU_CAPABILITY can restrict: torch 2.13
    then fails in bf16 attention.
    """
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device_type != "cpu":
        return False
    known = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    if platform.machine().lower() in ("x86_64", "amd64") and None not in known:
        restricted = not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        return not restricted and any(ask() for ask in known if ask)  # timing may differ from start to start
    return _matmul_seconds(torch.bfloat16) < _matmul_seconds(torch.float32)


def _matmul_seconds(dtype: torch.dtype) -> float:
    """Return the shortest of several timings, which is robust on a busy machine."""
    a = torch.randn(384, 384).to(dtype)
    timings = []
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, a)
        timings.append(time.perf_counter() - start)
    return min(timings[1:])


def resolve(precision: Precision, device: torch.device) -> Resolved:
    """Return the precision, with `auto` resolved for this device: bf16 where that is native, else fp32.

    `auto` is never fp16, in whose small range gradients of a classifier underflow; see resolve_training for training.
    Raises ValueError if the precision is unknown, or if it is fp16 on a device other than a GPU, where it is emulated.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision fp16 needs a GPU: choose auto, fp32 or bf16 on {device.type}")
    if precision != "auto":
        return precision
    return "bf16" if native_bf16(device.type) else "fp32"


def resolve_training(precision: Precision, device: torch.device) -> Resolved:
    """Return the precision to train in, with `auto` resolved: bf16 where it is native, else fp16 on tensor cores.

    fp16 needs a scaled loss. Where it is emulated, as on CPUs, it is allowed, but `auto` is fp32.
    """
    if precision != "auto":
        return precision
    if native_bf16(device.type):
        return "bf16"
    return "fp16" if device.type == "cuda" and torch.cuda.get_device_capability() >= (7, 0) else "fp32"


def autocast(precision: Resolved, device: torch.device) -> AbstractContextManager:
    """Return a context manager in which matrix products run in this precision, also within another autocast."""
    if precision != "fp32":
        return torch.autocast(device.type, DTYPES[precision])
    return without_autocast(device)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context manager in which an autocast of the caller has no effect."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()
