"""The number of images that fit in memory at a time, and recovery when they do not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")
MAX_BATCH_IMAGES = 64
MAX_BATCH_PIXELS = 64 * 64**2
"""Maximum number of pixels of a batch on a CPU, where larger batches are no faster."""
TENSORS_PER_BLOCK = 5
"""Tensors of the size of its output that a residual block keeps for a backward pass; without one it keeps far fewer."""
USABLE = 0.7
"""Share of the free memory that a batch may take; the rest is left for workspaces and fragmentation."""


def batch_size(networks: Iterable[nn.Module], shape: tuple[int, int, int], device: torch.device) -> int:
    """Return the number of images of this shape (C, H, W) to compute at a time, from 1 to 64, given the free memory.

    An image is assumed to need TENSORS_PER_BLOCK float32 tensors for every block of every network. That is about right
    for a classifier whose gradient is computed, and more than a U-Net alone needs.
    """
    pixels = shape[1] * shape[2]
    most = MAX_BATCH_IMAGES if device.type == "cuda" else max(1, min(MAX_BATCH_IMAGES, MAX_BATCH_PIXELS // pixels))
    free = free_bytes(device)
    each = sum(call_bytes(network, shape) for network in networks)
    if free is None or each == 0:
        return most
    return max(1, min(most, int(USABLE * free) // each))


def call_bytes(network: nn.Module, shape: Sequence[int]) -> int:
    """Return the memory that a call may need for each image."""
    return 4 * TENSORS_PER_BLOCK * block_elements(network, shape)


def block_elements(network: nn.Module, shape: Sequence[int]) -> int:
    """Return the number of elements of the outputs of all blocks for one image; 0 if the architecture is not ours."""
    config: Any = getattr(network, "config", None)
    if not hasattr(config, "channel_mult") or not callable(getattr(config, "attends", None)):
        return 0
    total = 0
    for level in range(len(config.channel_mult)):
        here = config.width(level) * (shape[1] >> level) * (shape[2] >> level)
        up = (
            (2 * config.num_res_blocks + 4) if hasattr(network, "output_blocks") else 0
        )  # they also read the skip connections
        total += here * (config.num_res_blocks + 1 + up) * (2 if config.attends(level) else 1)
    return total


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of the device, or None if it is not known."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    known = [free for free in (_available(), _left_in_group()) if free is not None]
    return min(known, default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):  # not Linux
        return None


def _left_in_group() -> int | None:
    """Return the memory left within the limit of a container, if there is one; cached files count as free."""
    root = Path("/sys/fs/cgroup")
    try:
        used = int((root / "memory.current").read_text())
        cached = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        return int((root / "memory.max").read_text()) - used + int(cached.get("inactive_file", 0))
    except (OSError, ValueError):  # none, or no limit
        return None


def in_batches(make: Callable[[slice], T], count: int, size: int) -> Iterator[T]:
    """Yield make(batch) for batches of `size` of `count` images; halve the size when memory runs out.

    Raises OutOfMemoryError if there is not enough memory for one image.
    """
    start = 0
    while start < count:
        batch = slice(start, min(start + size, count))
        made: list[T] = []
        try:
            made.append(make(batch))
        except Exception as error:
            if batch.stop - start == 1 or not is_out_of_memory(error):
                raise
        if made:  # outside of the handler, whose traceback keeps tensors alive
            yield made.pop()
            start = batch.stop
        else:
            size = (batch.stop - start) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out."""
    texts = "out of memory", "can't allocate memory"  # of CUDA, and of torch's CPU allocator
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def peak_memory(device: torch.device) -> int | None:
    """Return the largest number of bytes that this process has held so far, or None if it is not known.

    On a GPU these are the bytes of its tensors there, elsewhere all memory of the process.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else 1024 * int(peak)
