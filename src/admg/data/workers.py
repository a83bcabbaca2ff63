"""`in_workers`: items of a sequence made in advance by other processes, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from .errors import DataError

T = TypeVar("T")
MAX_WORKERS = 1024
"""Largest number of processes that read images; each takes some 200 MB."""
T_co = TypeVar("T_co", covariant=True)


class Items(Protocol[T_co]):
    """Items by index, made in the process that reads them."""

    def __getitem__(self, number: int) -> T_co: ...


def in_workers(items: Items[T], numbers: range, workers: int, ahead: int = 4) -> Iterator[T]:
    """Return the items at these indices in order, whatever the number of processes.

    workers: processes that make the items; 0: this process makes each one when it is needed
    ahead: number of items that each process makes in advance
    A DataError in another process is raised here with its own message.
    """
    if workers == 0:
        return map(items.__getitem__, numbers)
    loader = torch.utils.data.DataLoader(
        _Caught(items),
        batch_size=None,  # an item is a batch already
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # the loader would otherwise draw from the global generator
    )
    return map(_raised, iter(loader))


@dataclass(frozen=True)
class _Caught(torch.utils.data.Dataset[Any], Generic[T]):
    """Items, or the errors that making them raised: DataLoader would put a traceback into their messages."""

    items: Items[T]

    def __getitem__(self, number: int) -> T | DataError:
        try:
            return self.items[number]
        except DataError as error:
            return error.with_traceback(None)


def _raised(item: Any) -> Any:
    if isinstance(item, DataError):
        raise item
    return item


def _as_it_is(item: T) -> T:
    return item
