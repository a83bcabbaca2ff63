"""Kernels in C for a CPU: what torch computes in several passes over memory, in one or two.

Built where admg is installed from source, if there is a C compiler; without them all is computed by torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from . import build


@cache
def kernels() -> ctypes.CDLL | None:
    """The library for this processor; None: it was not built, or of other sources."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in build.CAPABILITIES:
        return None
    try:
        found = ctypes.CDLL(str(build.library(capability)))  # it shares OpenMP's threads with torch, loaded before
        found.source.restype = ctypes.c_char_p
    except (OSError, AttributeError):
        return None
    return found if found.source().decode() == build.digest() else None


def available() -> bool:
    return kernels() is not None


def missing() -> bool:
    """Whether there are kernels for this processor, but they were not built."""
    return torch.backends.cpu.get_cpu_capability() in build.CAPABILITIES and not available()


def reads(*tensors: Tensor | None) -> bool:
    """Whether kernels may go to the memory of all of these: plain tensors on a CPU, of which nobody makes a trace."""
    # private, as there are no public names for these questions; tried with torch 2.13
    if torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
        return False
    for t in tensors:
        if t is not None and (type(t) not in (Tensor, nn.Parameter) or not t.is_cpu or t.is_neg()):
            return False
    return True


def call(name: str, *arguments: Tensor | int | float | None) -> int:
    """The kernel of this name with these arguments, and the number of threads; the number that it returns, if any.

    A tensor is given as the place of its first element: it must be one that reads() allows, dense, in the order that
    the kernel wants, and live until the call returns. None is a null pointer, an int a long, a float a double.
    """
    values = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    return _function(name, tuple(map(type, arguments)))(*values, torch.get_num_threads())


def scratch(name: str, *sizes: int) -> Tensor:
    """The scratch that the kernel of this name takes for these sizes, by its function name_scratch: floats."""
    return torch.empty(call(f"{name}_scratch", *sizes), dtype=torch.float32, device="cpu")


@cache
def _function(name: str, types: tuple[type, ...]) -> Callable[..., int]:
    library: Any = kernels()
    function = library[name]  # an object of its own, unlike library.name
    function.argtypes = [*map(_in_c, types), ctypes.c_long]
    function.restype = ctypes.c_long
    return function


def _in_c(kind: type) -> type:
    if issubclass(kind, int):
        return ctypes.c_long
    return ctypes.c_double if issubclass(kind, float) else ctypes.c_void_p
