"""torch.compile for networks: one graph for all batch sizes, and eager execution if the compiler fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from admg.files import cache_folder
from admg.warn import warn

Compile = Literal["auto", "on", "off"]


def compiles(compile: Compile) -> bool:
    """Whether this mode uses torch.compile. `auto` does not: our own kernels are as fast and need no compilation.

    Raises ValueError if the mode is unknown.
    """
    if compile not in get_args(Compile):
        raise ValueError(f"unknown compile mode {compile!r}: {', '.join(get_args(Compile))}")
    return compile == "on"


def compiled(function: Callable[..., Any], backend: str | Callable[..., Any] = "inductor") -> Callable[..., Any]:
    """Return the function (or network) compiled for any batch size; it is compiled at the first call.

    Builds are cached on disk ($TORCHINDUCTOR_CACHE_DIR, by default in admg's cache folder). If the compiler fails,
    calls run uncompiled, with a warning.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    fast: Callable[..., Any] = torch.compile(function, backend=backend)
    failed = False

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if failed:
            return function(*args, **kwargs)
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim and len(value) > 1:
                torch._dynamo.maybe_mark_dynamic(value, 0)  # not public as a hint; tried with torch 2.13
        try:
            return fast(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            failed = True
            cause = getattr(error, "inner_exception", error)
            first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            warn(f"torch.compile failed, continuing without it: {first[:200]}")
            return function(*args, **kwargs)

    return call
