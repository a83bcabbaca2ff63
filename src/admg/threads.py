"""The number of CPU threads, and how they wait for each other, on machines that other processes share.

Nothing here imports torch: `calm_barriers` has no effect after OpenMP was loaded, which importing torch does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path

SPINS = "200"
"""Turns of the loop in which GNU OpenMP waits before a thread sleeps; its default of 300,000 takes milliseconds."""


def calm_barriers(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait for others sleep after some microseconds. Call it before importing torch.

    By default, OpenMP spins for milliseconds. Where other processes use the same cores, it takes that time from the
    thread that is waited for, and steps take up to twenty times as long. Variables that are set already are kept
    (OMP_WAIT_POLICY and GOMP_SPINCOUNT of GNU's OpenMP, KMP_BLOCKTIME of LLVM's and Intel's).
    """
    if "OMP_WAIT_POLICY" in environment:
        return
    environment.setdefault("GOMP_SPINCOUNT", SPINS)
    environment.setdefault("KMP_BLOCKTIME", "0")


def available_cores(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use, at least 1.

    It is the least of: the cores of the process's affinity (cpuset, taskset, srun --cpu-bind), the CPU quota of its
    control groups (containers; both versions, every level), and those that SLURM assigned to the task, rounded down.
    Processes of one launch on the same machine (LOCAL_WORLD_SIZE of torchrun, SLURM_NTASKS_PER_NODE) share them.

    environment: environment variables
    root: directory that holds /proc and /sys
    """
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if per_task := _number(environment, "SLURM_CPUS_PER_TASK"):
        cores = min(cores, per_task)
    elif together := _number(environment, "LOCAL_WORLD_SIZE") or _number(environment, "SLURM_NTASKS_PER_NODE"):
        cores /= together
    return max(1, math.floor(min([cores, *quotas(root)])))


def quotas(root: Path = Path("/")) -> Iterator[float]:
    """Yield the CPU quota, in cores, of every control group that this process is in and that has one."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # another system than Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            yield from _of_levels(root / "sys/fs/cgroup", path, _quota_v2)
        elif "cpu" in controllers.split(","):
            yield from _of_levels(root / "sys/fs/cgroup" / controllers, path, _quota_v1)
            yield from _of_levels(root / "sys/fs/cgroup/cpu", path, _quota_v1)


def _of_levels(mount: Path, path: str, quota: Callable[[Path], float | None]) -> Iterator[float]:
    """Yield the quotas of a control group and of those that it is in; in a container, the mount is its own group."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        try:
            cores = quota(mount.joinpath(*parts[:depth]))
        except (OSError, ValueError):  # no such level or no such file, or not a number
            continue
        if cores is not None:
            yield cores


def _quota_v2(group: Path) -> float | None:
    quota, period = (group / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(group: Path) -> float | None:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    return None if quota <= 0 else quota / int((group / "cpu.cfs_period_us").read_text())


def _number(environment: Mapping[str, str], name: str) -> int:
    """Return the positive integer of a variable; 0 if it is not set, or anything else."""
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else 0
