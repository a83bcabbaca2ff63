"""The batches of each step with their random numbers, moved to the device before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from admg.data.dataset import Batch
from admg.diffusion.noise import mixed
from admg.engine.device import ALONE, Processes

from .tasks import check_one_call

T = TypeVar("T")


class Draws(Protocol):
    """A task that draws the random numbers of a batch."""

    def draw(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, ...]: ...


def step_seed(seed: int, step: int) -> int:
    """Return the seed of a step of a run."""
    return mixed(seed, step) >> 2


def prefetch(
    task: Draws,
    stream: Iterator[Batch],
    seed: int,
    first: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> Generator[tuple[Tensor, ...]]:
    """Yield x and y of each batch of the stream with the random numbers of `task.draw`, on the device.

    first: index of the first step
    processes: place of this process among those that share each batch; the stream has this process's part of them

    For a GPU a thread prepares batches in advance, and copies do not wait for earlier steps. Closing the generator ends
    the thread.
    """
    drawn = draw_batches(task, stream, seed, first, processes)
    if device.type != "cuda":  # a thread would compete with the training for the processor
        yield from (tuple(tensor.to(device) for tensor in batch) for batch in drawn)
        return
    pinned = (tuple(tensor.pin_memory() for tensor in batch) for batch in drawn)
    with closing(in_background(pinned)) as prepared:
        for batch in prepared:
            yield tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def draw_batches(
    task: Draws, stream: Iterator[Batch], seed: int, first: int, processes: Processes = ALONE
) -> Iterator[tuple[Tensor, ...]]:
    """Yield x and y of each batch with its random numbers, which depend on the seed and the step index alone.

    Every process draws the numbers of the whole batch and takes its rows, which makes them independent of the number
    of processes.
    """
    check_labels = getattr(task, "check_labels", None)
    for step, (x, y) in enumerate(stream, first):
        if check_labels is not None:  # here, on the CPU: on a GPU it would wait for the device
            check_labels(y)
        if processes.count > 1:
            check_one_call(task, y)
        rows = slice(processes.rank * len(x), (processes.rank + 1) * len(x))
        shape = torch.Size([processes.count * len(x), *x.shape[1:]])
        drawn = task.draw(shape, torch.Generator().manual_seed(step_seed(seed, step)))
        if wrong := [tuple(tensor.shape) for tensor in drawn if tensor.shape[:1] != shape[:1]]:
            raise ValueError(
                f"draw of {type(task).__name__} must return tensors with one row per image, {shape[0]}, got {wrong[0]}"
            )
        yield x, y, *(tensor[rows] for tensor in drawn)


def in_background(items: Iterator[T], count: int = 2) -> Generator[T]:
    """Yield the same items, up to `count` of them prepared in advance by a thread; its exceptions are raised here."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, end) for _ in range(count))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item
