"""How many images fit in memory at a time, and a CPU allocator that keeps what it will need again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")
MOST_IMAGES = 64
MOST_PIXELS = 64 * 64**2
"""Of one batch on a CPU, where larger ones are no faster."""
TENSORS_PER_BLOCK = 5
"""That a residual block holds on to for a backward pass, of the size of its output; without one it is far fewer."""
USABLE = 0.7
"""Share of the free memory that a batch may take; the rest is for workspaces and fragments."""


def batch_size(networks: Iterable[nn.Module], shape: tuple[int, int, int], device: torch.device) -> int:
    """Images of this shape (C, H, W) at a time, from the free memory and the architecture of all networks in play.

    An image is taken to need TENSORS_PER_BLOCK float32 tensors for every block of every network. That is about right
    for a classifier whose gradient is wanted, and more than what a U-Net alone needs. At least 1, at most 64.
    """
    pixels = shape[1] * shape[2]
    most = MOST_IMAGES if device.type == "cuda" else max(1, min(MOST_IMAGES, MOST_PIXELS // pixels))
    free = free_bytes(device)
    each = sum(call_bytes(network, shape) for network in networks)
    if free is None or each == 0:
        return most
    return max(1, min(most, int(USABLE * free) // each))


def call_bytes(network: nn.Module, shape: Sequence[int]) -> int:
    """That a call may need for each image."""
    return 4 * TENSORS_PER_BLOCK * block_elements(network, shape)


def block_elements(network: nn.Module, shape: Sequence[int]) -> int:
    """Elements of the outputs of all blocks, for one image; 0 for a network that is not of ours."""
    config: Any = getattr(network, "config", None)
    if not hasattr(config, "channel_mult") or not callable(getattr(config, "attends", None)):
        return 0
    total = 0
    for level in range(len(config.channel_mult)):
        here = config.width(level) * (shape[1] >> level) * (shape[2] >> level)
        up = (2 * config.num_res_blocks + 4) if hasattr(network, "output_blocks") else 0  # they see the skips as well
        total += here * (config.num_res_blocks + 1 + up) * (2 if config.attends(level) else 1)
    return total


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on the device; None: not known."""
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
    except (OSError, StopIteration, ValueError):  # another system than Linux
        return None


def _left_in_group() -> int | None:
    """Within the limit of a container, if there is one; files that it has cached count as free."""
    root = Path("/sys/fs/cgroup")
    try:
        used = int((root / "memory.current").read_text())
        cached = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        return int((root / "memory.max").read_text()) - used + int(cached.get("inactive_file", 0))
    except (OSError, ValueError):  # none, or no limit
        return None


def in_batches(make: Callable[[slice], T], count: int, size: int) -> Iterator[T]:
    """make() of each batch of `size` of `count` images; where memory runs out, it is halved from there on.

    OutOfMemoryError: for one image there is too little too.
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
        if made:  # outside of the handler, whose traceback holds on to tensors
            yield made.pop()
            start = batch.stop
        else:
            size = (batch.stop - start) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's CPU allocator
    )


@cache
def keep_freed_memory(device_type: str) -> None:
    """On a CPU under Linux: let this process keep what it frees, up to what it has needed at its peak.

    glibc gives large blocks back to the system at once. Every step then gets its memory as new pages, which are cleared
    one by one: a tenth of the time of a small network's forward pass.
    """
    if device_type == "cpu" and sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (OSError, AttributeError):  # another C library
            return
        if mallopt(-3, 1 << 30) or mallopt(-3, 32 << 20):  # M_MMAP_THRESHOLD; the second is the most of an older glibc
            mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
