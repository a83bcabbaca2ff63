"""The batches of each step with their random numbers, moved to the device before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from admg.data.dataset import Batch

T = TypeVar("T")


class Draws(Protocol):
    """A task that draws the random numbers of a batch."""

    def draw(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]: ...


def step_seed(seed: int, step: int) -> int:
    """Return the seed of a step of a run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def prefetch(
    task: Draws, stream: Iterator[Batch], seed: int, first: int, device: torch.device
) -> Generator[tuple[Tensor, ...]]:
    """Yield `task.draw` of each batch of the stream, on the device; `first` is the number of the first step.

    For a GPU a thread prepares batches in advance, and copies do not wait for earlier steps. Closing the generator ends
    the thread.
    """
    drawn = draw_batches(task, stream, seed, first)
    if device.type != "cuda":  # a thread would compete with the training for the processor
        yield from (tuple(tensor.to(device) for tensor in batch) for batch in drawn)
        return
    pinned = (tuple(tensor.pin_memory() for tensor in batch) for batch in drawn)
    with closing(in_background(pinned)) as prepared:
        for batch in prepared:
            yield tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def draw_batches(task: Draws, stream: Iterator[Batch], seed: int, first: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield `task.draw` of each batch. Each step has its own generator, so that it depends on seed and number alone."""
    for step, (x, y) in enumerate(stream, first):
        yield task.draw(x, y, torch.Generator().manual_seed(step_seed(seed, step)))


def in_background(items: Iterator[T], count: int = 2) -> Generator[T]:
    """Yield the same items, up to `count` of which a thread makes in advance; its exceptions are raised here."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item
