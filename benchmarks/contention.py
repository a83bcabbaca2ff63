"""Measure how fast admg and OpenAI's guided-diffusion are beside busy processes.

    python benchmarks/contention.py --reference ../guided-diffusion --json contention.json

The parts are the guided step and the training step of the shipped model, as in speed.py. The sides are:

    admg              with barriers that sleep soon (admg.threads), as the commands set them
    admg, 1 thread    the same with one thread
    admg, spinning    with the default of OpenMP
    reference         an unmodified checkout of guided-diffusion, with the default of OpenMP

Each side runs in a process of its own, and the sides take turns. Busy processes compute without pause, with the same
priority. The fair share of a side is its time alone, on as many threads as there are cores, times the number of
runnable threads over that of cores; the table shows that time divided by the measured one. Measure on a machine that
does nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@dataclass(frozen=True)
class Side:
    """What is measured: the side of speed.py, how its threads wait, and how many it has (0 for one per core)."""

    name: str
    side: str
    calm: bool
    threads: int = 0


SIDES = (
    Side("admg", "admg", calm=True),
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
    add("--batch", type=int, default=16, help="batch size (default: 16)")
    add("--rounds", type=int, default=5, help="number of measurements per side (default: 5)")
    add("--seconds", type=float, default=2.0, help="minimum duration of a measurement in seconds (default: 2)")
    add("--json", metavar="FILE", help="JSON file for all measurements")
    args = parser.parse_args(argv)
    try:
        if args.reference:
            check_reference(args.reference)
        numbers = [int(number) for number in args.busy.split(",")]
        if numbers[0] != 0 or args.rounds < 1 or args.batch < 1:
            raise ValueError("--busy must begin with 0; --rounds and --batch must be at least 1")
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
        for worker in processes.values():
            worker.finish()
    for side in chosen:
        print(line(side, seconds, setting.threads), flush=True)
    return seconds


def line(side: Side, seconds: dict[str, dict[int, list[float]]], cores: int) -> str:
    """Return the row of a side: the median time, and the share of the fair speed."""
    found = seconds[side.name]
    alone = statistics.median(seconds["admg" if side.side == "admg" else side.name][0])  # on all cores
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
            made[side.name] = Worker(side.side, replace(setting, threads=side.threads or setting.threads))
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
