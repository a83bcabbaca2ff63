"""Measure how fast admg and OpenAI's guided-diffusion are beside busy processes.

    python benchmarks/contention.py --reference ../guided-diffusion --json contention.json

The parts are the guided step and the training step of the shipped model, as in speed.py. The sides are:

    admg              as the commands: barriers sleep soon, and the number of threads follows the load (admg.threads)
    admg, all cores   the same with one thread per core, whatever the load
    admg, 1 thread    the same with one thread
    admg, spinning    with the default of OpenMP
    reference         an unmodified checkout of guided-diffusion, with the default of OpenMP

Each side runs in a process of its own, and the sides take turns. Busy processes compute without pause, with the same
priority. The fair share of a side is its time alone, on as many threads as there are cores, times the number of
runnable threads over that of cores; the table shows that time divided by the measured one. With --quota, each side also
runs in a control group that may use only so many cores, which needs root; the fair share is then the time alone with
one thread, divided by the quota. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cases import Setting
from rivals import check_reference
from speed import machine, spread
from turns import Worker

from admg.cli.main import Parser, one_line
from admg.engine.device import choose_device
from admg.engine.precision import resolve
from admg.files import atomic
from admg.threads import available_cores, calm_barriers

PERIOD = 100_000
"""Microseconds of a period of the quota, Linux's default."""
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@dataclass(frozen=True)
class Side:
    """What is measured: the side of speed.py, how its threads wait, how many it has (0 for one per core), and whether
    that follows the load."""

    name: str
    side: str
    calm: bool
    threads: int = 0
    follow: bool = False


SIDES = (
    Side("admg", "admg", calm=True, follow=True),
    Side("admg, all cores", "admg", calm=True),
    Side("admg, 1 thread", "admg", calm=True, threads=1),
    Side("admg, spinning", "admg", calm=False),
    Side("reference", "reference", calm=False),
)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="contention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--reference", default="", metavar="DIR", help="checkout of guided-diffusion (default: not measured)")
    add("--parts", default="step,training", help="comma-separated parts of speed.py (default: step,training)")
    add(
        "--busy",
        default="0,1,2,4",
        help="comma-separated numbers of busy processes; 0 must be there (default: 0,1,2,4)",
    )
    add("--quota", type=float, default=0.0, metavar="CORES", help="quota of a further measurement (default: none)")
    add("--batch", type=int, default=16, help="batch size (default: 16)")
    add("--rounds", type=int, default=5, help="number of measurements per side (default: 5)")
    add("--seconds", type=float, default=2.0, help="minimum duration of a measurement in seconds (default: 2)")
    add("--json", metavar="FILE", help="JSON file for all measurements")
    args = parser.parse_args(argv)
    try:
        if args.reference:
            check_reference(args.reference)
        numbers = [int(number) for number in args.busy.split(",")]
        if numbers[0] != 0 or args.rounds < 1 or args.batch < 1 or not 0 <= args.quota <= 1:
            raise ValueError("--busy must begin with 0; --rounds and --batch must be at least 1, --quota from 0 to 1")
        device, cores = choose_device("cpu"), available_cores()
        setting = Setting("fashion-mnist", args.batch, "cpu", cores, resolve("auto", device), reference=args.reference)
        results = {part: measure(setting, part, numbers, args) for part in args.parts.split(",")}
        if args.json:
            with atomic(Path(args.json)) as temporary:
                temporary.write_text(json.dumps({"machine": machine(setting), "parts": results}, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"contention: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def measure(
    setting: Setting, part: str, numbers: list[int], args: argparse.Namespace
) -> dict[str, dict[int, list[float]]]:
    """Return the seconds of each side by the number of busy processes, printing the table."""
    print(f"\n{machine(setting)}\n\n**{part}**, batch {setting.batch}: seconds (share of the fair speed)\n")
    print("| side | " + " | ".join(f"{number} busy" for number in numbers) + " |")
    print("| --- |" + " ---: |" * len(numbers), flush=True)
    chosen = [side for side in SIDES if side.side != "reference" or args.reference]
    seconds: dict[str, dict[int, list[float]]] = {side.name: {} for side in chosen}
    with workers(chosen, setting) as processes:
        for worker in processes.values():
            worker.prepare(part)
            worker.seconds(0)  # warm-up
        for number in numbers:
            with busy(number):
                for _ in range(args.rounds):
                    for name, worker in processes.items():
                        seconds[name].setdefault(number, []).append(worker.seconds(args.seconds))
        limited = quota_times(processes, args)
        for worker in processes.values():
            worker.finish()
    for side in chosen:
        print(line(side, seconds, setting.threads), flush=True)
    alone = statistics.median(seconds["admg, 1 thread"][0])
    for name, values in limited.items():
        shares = [100 * alone / args.quota / value for value in values]
        share = "" if name == "reference" else f" ({spread(shares, '{:.0f}')} % of {args.quota:g} of one thread alone)"
        print(f"- {name}, a quota of {args.quota:g} cores: {statistics.median(values):.3g}{share}", flush=True)
    return seconds


def quota_times(processes: dict[str, Worker], args: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each side in a control group with the quota; of none without --quota."""
    found: dict[str, list[float]] = {}
    for _ in range(args.rounds if args.quota else 0):
        for name, worker in processes.items():
            with quota(worker.process.pid or 0, args.quota):
                found.setdefault(name, []).append(worker.seconds(args.seconds))
    return found


@contextmanager
def quota(process: int, cores: float, root: Path = Path("/sys/fs/cgroup")) -> Iterator[None]:
    """Context manager that lets a process use only so many cores. Raises OSError where control groups are read-only."""
    version_1 = (root / "cpu").is_dir()
    parent = root / "cpu" if version_1 else root
    group = parent / f"admg-contention-{process}"
    group.mkdir()
    try:
        if version_1:
            (group / "cpu.cfs_quota_us").write_text(str(round(cores * PERIOD)))
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
        else:
            (group / "cpu.max").write_text(f"{round(cores * PERIOD)} {PERIOD}")
        (group / "cgroup.procs").write_text(str(process))
        yield
    finally:
        with suppress(OSError):  # it has ended
            (parent / "cgroup.procs").write_text(str(process))
        group.rmdir()


def line(side: Side, seconds: dict[str, dict[int, list[float]]], cores: int) -> str:
    """Return the row of a side: the median time, and the share of the fair speed."""
    found = seconds[side.name]
    alone = statistics.median(seconds["admg, all cores" if side.side == "admg" else side.name][0])
    cells = []
    for number, values in found.items():
        fair = alone * (cores + number) / cores
        shares = [100 * fair / value for value in values]
        cells.append(f"{statistics.median(values):.3g} ({spread(shares, '{:.0f}')} %)")
    return f"| {side.name} | " + " | ".join(cells) + " |"


@contextmanager
def workers(sides: list[Side], setting: Setting) -> Iterator[dict[str, Worker]]:
    """Context manager that starts one process per side, with its way of waiting, and ends them on exit."""
    before = {name: os.environ.pop(name, None) for name in WAITING}
    made: dict[str, Worker] = {}
    try:
        for side in sides:
            if side.calm:
                calm_barriers()
            made[side.name] = Worker(
                side.side, replace(setting, threads=side.threads or setting.threads, follow=side.follow)
            )
            for name in WAITING:
                os.environ.pop(name, None)
        yield made
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})
        for worker in made.values():
            worker.close()


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Context manager that runs processes that compute without pause."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spin, daemon=True) for _ in range(number)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    sys.exit(main())
