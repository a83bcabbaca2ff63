"""Evaluation mode of all modules of a run, those that a user's functions hold included.

A module in training mode (batch norm, dropout) would let an image depend on the batch that it is in.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from .describe import captured, is_installed


@contextmanager
def evaluation_mode(*parts: Any) -> Iterator[None]:
    """Put all modules in these objects into evaluation mode, and each of them back when the block is left.

    Modules are looked for in the fields of dataclasses, the attributes of objects of the user's own classes, and
    containers, and in the closure, the defaults and the global variables of functions.
    Raises ValueError for a batch norm without running statistics, which mixes the images of a batch in any mode.
    """
    found = [part for module in modules_in(parts) for part in module.modules()]
    for module in found:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats:
            raise ValueError(f"{module}: without running statistics an image depends on the others of its batch")
    training = [module for module in found if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def modules_in(parts: Iterable[Any]) -> list[nn.Module]:
    """Return the modules that objects are or hold, each once."""
    found: list[nn.Module] = []
    seen, waiting = set[int](), list(parts)
    kept = []  # so that no id is used twice
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        kept.append(part)
        if isinstance(part, nn.Module):
            found.append(part)
        else:
            waiting.extend(held(part))
    return found


def held(part: Any) -> Iterable[Any]:
    """Return the objects in which the modules of an object may be."""
    if isinstance(part, Mapping):
        return part.values()
    if isinstance(part, list | tuple | set | frozenset):
        return part
    if isinstance(part, functools.partial):
        return part.func, part.args, part.keywords
    if isinstance(part, MethodType):
        return part.__self__, part.__func__
    if isinstance(part, FunctionType):
        return [] if is_installed(part) else [value for _, value in captured(part)]
    if isinstance(part, type | Tensor | str | bytes) or not hasattr(part, "__dict__"):
        return []
    if dataclasses.is_dataclass(part) or not is_installed(type(part)):
        return *vars(part).values(), inspect.getattr_static(type(part), "__call__", None)
    return []
