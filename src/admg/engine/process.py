"""Settings of the whole process. Commands make them; the library never does by itself."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

import torch


def configure_process(device: torch.device | str | None = None, threads: int | None = None) -> None:
    """Set what makes networks fast and exact on this device (default: on any), for the whole process.

    On a CPU under Linux, freed memory is kept for later use instead of being given back to the system. On a GPU,
    convolutions in float32 do not use TF32, which has three digits and is cuDNN's default. It may be called twice.

    threads: number of CPU threads; None leaves it as it is (`admg.threads.available_cores` has a number for containers)
    """
    kind = None if device is None else torch.device(device).type
    if kind in (None, "cpu"):
        keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if kind in (None, "cuda"):
        with suppress(RuntimeError):  # set by torch's newer switch (fp32_precision), which is left as it is
            torch.backends.cudnn.allow_tf32 = False


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, up to its peak. Does nothing on other systems than Linux.

    glibc gives large blocks back to the system at once. Every step then gets its memory as new pages, which are cleared
    one by one: a tenth of the time of a small network's forward pass.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    if mallopt(-3, 1 << 30) or mallopt(-3, 32 << 20):  # M_MMAP_THRESHOLD; the second is the maximum of an older glibc
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
