"""C kernels for CPUs, which make one or two passes over memory where PyTorch makes several.

Installing admg from source builds them if there is a C compiler. Without them, PyTorch computes the same results.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from . import build


@cache
def kernels() -> ctypes.CDLL | None:
    """Return the library for this processor, or None if it was not built or was built from other sources."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in build.CAPABILITIES:
        return None
    try:
        library = ctypes.CDLL(str(build.library(capability)))  # with torch's OpenMP threads, which are loaded already
        library.source.restype = ctypes.c_char_p
    except (OSError, AttributeError):
        return None
    return library if library.source().decode() == build.digest() else None


def available() -> bool:
    return kernels() is not None


def missing() -> bool:
    """Whether this processor has kernels, but they were not built."""
    return torch.backends.cpu.get_cpu_capability() in build.CAPABILITIES and not available()


def reads(*tensors: Tensor | None) -> bool:
    """Whether kernels may read the memory of these tensors: they are plain CPU tensors and no trace is being made."""
    # private names, since there are no public ones; tested with torch 2.13
    if torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
        return False
    for t in tensors:
        if t is not None and (type(t) not in (Tensor, nn.Parameter) or not t.is_cpu or t.is_neg()):
            return False
    return True


def call(name: str, *arguments: Tensor | int | float | None) -> int:
    """Call a kernel by name with these arguments and the number of threads. Return the number that it returns, if any.

    A tensor is passed as a pointer to its first element. It must satisfy reads(), be dense and in the memory format
    that the kernel expects, and stay alive until the call returns. None is passed as a null pointer, an int as a
    long, a float as a double.
    """
    values = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    return _function(name, tuple(map(type, arguments)))(*values, torch.get_num_threads())


def scratch(name: str, *sizes: int) -> Tensor:
    """Return the float32 work space that a kernel needs for these sizes, as its function `<name>_scratch` reports."""
    return torch.empty(_scratch_size(name, sizes, torch.get_num_threads()), dtype=torch.float32, device="cpu")


@lru_cache(4096)
def _scratch_size(name: str, sizes: tuple[int, ...], threads: int) -> int:
    return call(f"{name}_scratch", *sizes)


def channels_last(n: int, c: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return images for a kernel to write.

    They are not a view, so that they may be the output of an autograd function and still be changed in place.
    """
    size = n, c, height, width
    return torch.empty(size, dtype=dtype, device="cpu", memory_format=torch.channels_last)


@cache
def _function(name: str, types: tuple[type, ...]) -> Callable[..., int]:
    library: Any = kernels()
    function = library[name]  # a new object each time, unlike library.name
    function.argtypes = [*map(_in_c, types), ctypes.c_long]
    function.restype = ctypes.c_long
    return function


def _in_c(kind: type) -> type:
    if issubclass(kind, int):
        return ctypes.c_long
    return ctypes.c_double if issubclass(kind, float) else ctypes.c_void_p
