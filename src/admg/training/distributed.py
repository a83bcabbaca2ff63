"""Processes that train one network together: their process group and their exchanges (torch.distributed)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from admg.engine.device import Processes, rendezvous

from .heartbeat import HeartbeatMonitor

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""Time that a process waits for the others, for example while the first one draws a preview."""
MAX_WAIT_MINUTES = 20
"""Minutes that the first process may wait for space on its disk, while the others wait for it."""


def join(device: torch.device, alone: bool = False) -> Processes:
    """Return the rank of this process and the number of processes, after initialising the process group.

    Supports torchrun and SLURM's srun. Without a launcher, or with one process, this returns at once. An existing
    process group is used. Raises ValueError if the processes cannot connect.

    alone: also initialise a process group of a single process, which a sharded network needs
    """
    processes = Processes.from_environment()
    if processes.count == 1 and not alone:
        return processes
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where NCCL exchanges objects
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        place: dict[str, Any] = {"rank": processes.rank, "world_size": processes.count}
        if processes.count == 1:
            place["store"] = dist.HashStore()  # type: ignore[attr-defined]
        else:
            place["init_method"] = rendezvous()
        try:
            dist.init_process_group(backend, timeout=TIMEOUT, **place)
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"process {processes.rank} of {processes.count} could not connect: {reason}") from error
    if (dist.get_rank(), dist.get_world_size()) != (processes.rank, processes.count):
        raise ValueError(
            f"the process group has rank {dist.get_rank()} of {dist.get_world_size()}, but the launcher gave this "
            f"process rank {processes.rank} of {processes.count}"
        )
    return processes


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def start_heartbeat(processes: Processes) -> HeartbeatMonitor | None:
    """Return a monitor of the processes of the group, which detects if one of them ends; None for a single process."""
    if processes.count == 1 or dist.group.WORLD is None:
        return None
    store: Any = dist.group.WORLD.get_group_store()
    return HeartbeatMonitor(dist.PrefixStore("admg watch", store.clone()), processes)  # type: ignore[attr-defined]


def share_of(batch_size: int, accumulate: int, processes: Processes) -> int:
    """Return the number of images of a step per process.

    Raises ValueError if the batch cannot be divided equally among the processes, or this part into `accumulate` parts.
    """
    count = processes.count
    share, rest = divmod(batch_size, count)
    if rest:
        near = " or ".join(str(size) for size in (share * count, (share + 1) * count) if size)
        raise ValueError(f"batch_size {batch_size} cannot be divided among {count} processes; the nearest is {near}")
    if accumulate > share:
        raise ValueError(f"accumulate must be at most the {share} images of one process, got {accumulate}")
    return share


def parallel(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Return the network with gradients that are averaged over all processes during the backward pass.

    The processes start from the weights of the first one.
    """
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)


def averaged(means: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Return the mean of each value over all processes."""
    if processes.count == 1:
        return dict(means)
    values = torch.stack([*means.values()])
    dist.all_reduce(values)
    return dict(zip(means, values / processes.count))


def wait_for_all(processes: Processes) -> None:
    """Wait until all processes have reached this point."""
    if processes.count > 1:
        dist.barrier()


def gathered(values: Tensor, processes: Processes) -> Tensor:
    """Return the values (N, ...) of all processes, in the order of their ranks: (count * N, ...)."""
    if processes.count == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(processes.count)]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def from_first(make: Callable[[], T], processes: Processes) -> T:
    """Return the result of a function of the first process in all processes. Its ValueError is raised in all."""
    if processes.count == 1:
        return make()
    outcome: list[Any] = [None, None]
    if processes.rank == 0:
        try:
            outcome[0] = make()
        except ValueError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    made: T = outcome[0]
    return made


def any_of(flag: bool, processes: Processes, device: torch.device) -> bool:
    """Whether the flag is set in any process."""
    if processes.count == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)
