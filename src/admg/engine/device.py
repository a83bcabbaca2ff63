"""The device that networks run on, and the place of this process among those that torchrun started."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that share some work.

    rank: number of this process, from 0
    count: number of processes
    local_rank: number of this process on its machine, which chooses the GPU
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(f"rank must be from 0 to {self.count - 1}, got {self.rank}")

    @classmethod
    def from_environment(cls) -> Processes:
        """Return the place that torchrun's RANK, WORLD_SIZE and LOCAL_RANK give; without torchrun, that of one process.

        Raises ValueError if one of them is set, but not to a whole number.
        """
        return cls(from_torchrun("RANK", 0), from_torchrun("WORLD_SIZE", 1), from_torchrun("LOCAL_RANK", 0))


def from_torchrun(variable: str, default: int) -> int:
    """Return a number that torchrun sets in the environment. Raises ValueError if it is set, but not to a number."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ValueError(f"the environment variable {variable} must be a whole number, got {text!r}")
    return int(text)


def choose_device(name: str | torch.device = "auto", local_rank: int | None = None) -> torch.device:
    """Return the device of this name; "auto" is the GPU of this process if there is one, and else the CPU.

    local_rank: number of this process on its machine (default: torchrun's LOCAL_RANK, or 0)
    Raises ValueError if torch cannot compute on the device.
    """
    if str(name) == "auto":
        rank = from_torchrun("LOCAL_RANK", 0) if local_rank is None else local_rank
        name = f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # "meta" has tensors, but no numbers in them
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(name)!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
