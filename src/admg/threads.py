"""The number of CPU threads, and their waiting for each other, on machines shared with other processes.

Nothing here imports torch: `calm_barriers` has no effect after OpenMP was loaded, which importing torch does.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

SPINS = "10000"
"""Turns of the loop in which GNU OpenMP waits before a thread sleeps: 0.1 to 0.5 ms; its default is 300,000."""


def calm_barriers(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait for others sleep within a millisecond. Call it before importing torch.

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


@dataclass(frozen=True)
class Reading:
    """Processor time used up to a moment, in seconds; the difference of two readings is the load of the machine.

    when: time of a monotonic clock
    cores: number of cores that this process may use
    all: by every process, on these cores
    own: by this process
    """

    when: float
    cores: int
    all: float
    own: float

    @classmethod
    def now(cls, root: Path = Path("/")) -> Reading | None:
        """Return the current reading; None where it is not available (systems other than Linux)."""
        try:
            cores = os.sched_getaffinity(0)
            ticks = busy_ticks((root / "proc/stat").read_text(), cores, polite=os.nice(0) > 0)
            return cls(time.monotonic(), len(cores), ticks / os.sysconf("SC_CLK_TCK"), time.process_time())
        except (OSError, ValueError, AttributeError):
            return None

    def others_until(self, later: Reading) -> float:
        """Return the number of cores that other processes used between two readings."""
        used = (later.all - self.all) - (later.own - self.own)
        return max(0.0, used / max(later.when - self.when, 1e-9))


def busy_ticks(stat: str, cores: set[int], polite: bool = False) -> int:
    """Return the clock ticks in which these cores were busy, from the text of /proc/stat.

    polite: whether to count the time of processes of low priority (nice), which give way to one of normal priority
    """
    busy = 0
    for line in stat.splitlines():
        name, *counts = line.split()
        if name[:3] == "cpu" and name[3:].isdecimal() and int(name[3:]) in cores:
            user, nice, system, _idle, _disk, interrupts, soft_interrupts, stolen = map(int, counts[:8])
            busy += user + nice * polite + system + interrupts + soft_interrupts + stolen
    return busy


def threads_beside(others: float, cores: int, all_cores: int) -> int:
    """Return the number of threads that suits a process while others use this many of the cores.

    Each operation waits for the slowest of its threads, and one thread on a shared core delays all the others.
    Therefore only as many threads are used as there are free cores. At least a quarter of the cores is claimed, since
    a single thread would leave a fully shared machine to the other processes.

    cores: number of cores available to the process, see `available_cores`
    all_cores: number of cores on which `others` was measured
    """
    free = math.floor(all_cores - others + 0.5)
    return max(1, min(cores, max(free, cores // 4)))


def quotas(root: Path = Path("/")) -> Iterator[float]:
    """Yield the CPU quota, in cores, of every control group that this process is in and that has one."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
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
