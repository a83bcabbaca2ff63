"""What each training step computes with, on the device before it is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from admg.data.stream import Batch

T = TypeVar("T")


class Draws(Protocol):
    def draw(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]: ...


def step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def feed(task: Draws, stream: Iterator[Batch], seed: int, first: int, device: torch.device) -> Generator[tuple]:
    """task.draw() of each batch of the stream, the first of which is of step `first`, on the device.

    For a GPU a thread works ahead, and copies do not wait for the steps before. Close the iterator to end it.
    """
    drawn = draws(task, stream, seed, first)
    if device.type != "cuda":  # a thread would take its time from the training
        yield from (tuple(tensor.to(device) for tensor in batch) for batch in drawn)
        return
    pinned = (tuple(tensor.pin_memory() for tensor in batch) for batch in drawn)
    with closing(ahead(pinned)) as made:
        for batch in made:
            yield tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def draws(task: Draws, stream: Iterator[Batch], seed: int, first: int) -> Iterator[tuple[Tensor, ...]]:
    """Of step k by a generator of its own, so that they depend on the seed and k alone."""
    for step, (x, y) in enumerate(stream, first):
        yield task.draw(x, y, torch.Generator().manual_seed(step_seed(seed, step)))


def ahead(items: Iterator[T], count: int = 2) -> Generator[T]:
    """The same items, made by a thread up to `count` before they are asked for; what it raises is raised here."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item
