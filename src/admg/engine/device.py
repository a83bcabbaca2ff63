"""The device for networks, and the rank of this process among those of a launcher."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Processes:
    """The rank of this process and the number of processes that share some work.

    rank: index of this process, from 0
    count: number of processes
    local_rank: index of this process on its machine, which selects the GPU
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(f"rank must be from 0 to {self.count - 1}, got {self.rank}")

    @classmethod
    def from_environment(cls) -> Processes:
        """Return the rank and number of processes set by the launcher (torchrun or SLURM's srun), by default 0 and 1.

        Raises ValueError if one of the launcher's variables is not a whole number.
        """
        if "WORLD_SIZE" not in os.environ and number_in("SLURM_STEP_NUM_TASKS", 1) > 1:
            return cls(*(number_in(name) for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")))
        return cls(number_in("RANK"), number_in("WORLD_SIZE", 1), number_in("LOCAL_RANK"))


ALONE = Processes()
"""A single process, which does not share its work."""


def number_in(variable: str, default: int = 0) -> int:
    """Return the number in an environment variable. Raises ValueError if it is not a whole number."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise ValueError(f"the environment variable {variable} must be a whole number, got {text!r}")
    return int(text)


def rendezvous() -> str:
    """Return the rendezvous address of the launcher's processes, for torch.distributed.init_process_group.

    It is given by MASTER_ADDR and MASTER_PORT, set by torchrun. Under SLURM without them, it is the first node of the
    job step, with a port derived from the job id.
    """
    if "MASTER_ADDR" in os.environ or "SLURM_STEP_NODELIST" not in os.environ:
        return "env://"
    nodes = re.match(r"([^\[,]+)(?:\[(\d+))?", os.environ["SLURM_STEP_NODELIST"])  # node[07-09,12] or alpha,beta
    host = "".join(group for group in nodes.groups() if group) if nodes else "localhost"
    return f"tcp://{host}:{20000 + number_in('SLURM_JOB_ID') % 10000}"


def choose_device(name: str | torch.device = "auto", local_rank: int | None = None) -> torch.device:
    """Return the device of this name; "auto" is the GPU of this process if there is one, and else the CPU.

    "cuda" without a number is the GPU of this process, too, if a launcher started several.

    local_rank: index of this process on its machine (default: that of the launcher, or 0)
    Raises ValueError if torch cannot compute on the device.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if str(name) == "cuda" and torch.cuda.is_available():
        rank = Processes.from_environment().local_rank if local_rank is None else local_rank
        name = f"cuda:{rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # "meta" has tensors, but no numbers in them
    except (RuntimeError, AssertionError) as error:
        reason = "it must be auto, cpu or cuda" if "device string" in str(error) else str(error).splitlines()[0]
        raise ValueError(f"device {str(name)!r} cannot be used: {reason}") from None
    return device
