"""Evaluation mode for all modules of a run, including those in a user's functions.

A module in training mode (batch norm, dropout) would let an image depend on the batch that it is in.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from admg.models.modes import evaluating

from .identity import captured, class_values, is_installed, is_ours, methods_of


@contextmanager
def evaluation_mode(*parts: Any) -> Iterator[None]:
    """Context manager that puts all modules in these objects into evaluation mode, and restores their modes at the end.

    Modules are looked for in the fields of dataclasses, the attributes of objects of the user's own classes, and
    containers, and in the closure, the defaults and the global variables of functions and of methods of such classes.
    Raises ValueError for a batch norm without running statistics, which mixes the images of a batch in any mode.
    """
    networks = modules_in(parts)
    for module in (part for network in networks for part in network.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats:
            raise ValueError(f"{module} has no running statistics: each image would depend on the others of its batch")
    with evaluating(*networks):
        yield


def modules_in(parts: Iterable[Any]) -> list[nn.Module]:
    """Return the modules among and within objects, each once."""
    modules: list[nn.Module] = []
    seen, waiting = set[int](), list(parts)
    kept = []  # keeps objects alive, so that no id is used twice
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        kept.append(part)
        if isinstance(part, nn.Module):
            modules.append(part)
        else:
            waiting.extend(referents(part))
    return modules


def referents(part: Any) -> Iterable[Any]:
    """Return the objects to search for the modules of an object."""
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
    users = [kind for kind in type(part).__mro__ if not is_ours(kind) and not is_installed(kind)]
    if users or dataclasses.is_dataclass(part):
        functions = [function for kind in users for _, function in methods_of(kind)]
        return [*vars(part).values(), *functions, *(value for kind in users for _, value in class_values(kind))]
    return []
