"""Measure the speed and memory use of admg, diffusers and OpenAI's guided-diffusion with the same weights.

    python benchmarks/speed.py --reference ../guided-diffusion                         # minutes to hours on a CPU
    python benchmarks/speed.py --models adm-256 --batch 32 --device cuda --reference ../guided-diffusion

The models have the architectures of the shipped fashion-mnist and of the paper, with random weights. The parts are:

    forward    output of the network
    gradient   ∇ log p(y | x_t) of the classifier
    step       one step of classifier-guided DDIM
    training   one training step: loss, gradient, AdamW and EMA

The sides are:

    admg       the library as shipped, inside sample() and inside a training run
    diffusers  UNet2DModel; it has no classifier guidance, and its training loss is the error of eps alone
    reference  an unmodified checkout of github.com/openai/guided-diffusion, in float32 on a CPU and fp16 on a GPU

The results of all sides are compared before anything is timed. Each side runs in a process of its own, and the sides
take turns. The speedup is the time of a side divided by the time of admg in the same round; the table shows the median
with the minimum and the maximum. FLOPs are counted from the architecture (convolutions and matrix products as written)
and compared with the throughput of a square matrix product, measured in the same round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import GOOD, MODELS, PARTS, Setting, Unable, flops
from rivals import check_reference
from turns import Worker

from admg.cli.main import Parser, one_line
from admg.engine.compiling import compiles
from admg.engine.device import choose_device
from admg.engine.precision import DTYPES, resolve
from admg.files import atomic

BATCHES = {"fashion-mnist": (16, 256), "adm-64": (1, 64), "adm-128": (1, 32), "adm-256": (1, 16), "tiny": (4, 4)}
"""Default batch size of each model on a CPU and on a GPU."""
AGREE = {"fp32": 2e-3, "bf16": 0.2, "fp16": 0.2}
"""Largest allowed relative root-mean-square difference between the results of two sides."""
STEPS = {"reference": 250, "admg": 10}
"""Network evaluations for samples of the same quality: with DDPM, and with the sampler in GOOD."""


@dataclass
class Row:
    """Measurements of one side for one part.

    seconds: time of one call in each round
    peaks: FLOP/s of a square matrix product in each round
    memory: peak memory in bytes, None if the system does not report it
    difference: relative root-mean-square difference from the result of the first side
    note: reason why the side was not measured
    """

    side: str
    part: str
    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    memory: int | None = None
    difference: float | None = None
    note: str = ""


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", default="fashion-mnist,adm-64,adm-128,adm-256", help="comma-separated models (default: all four)")
    add("--parts", default=",".join(PARTS), help=f"comma-separated parts of {', '.join(PARTS)} (default: all)")
    add("--reference", default="", metavar="DIR", help="checkout of guided-diffusion (default: not measured)")
    add("--no-diffusers", action="store_true", help="do not measure diffusers")
    add("--batch", type=int, default=0, help="batch size (default: depends on the model)")
    add("--threads", type=int, default=0, help="number of CPU threads (default: chosen by torch)")
    add("--device", default="auto", help="cpu or cuda (default: cuda if available)")
    add("--precision", default="auto", help="precision of admg and diffusers: auto, fp32, bf16 or fp16 (default: auto)")
    add("--compile", default="auto", help="torch.compile for admg: auto, on or off (default: auto)")
    add("--compile-diffusers", action="store_true", help="compile diffusers with torch.compile, which takes minutes")
    add("--rounds", type=int, default=5, help="number of measurements per side (default: 5)")
    add("--seconds", type=float, default=2.0, help="minimum duration of a measurement in seconds (default: 2)")
    add("--whole", action="store_true", help="also measure whole samples, including DDPM with 250 steps")
    add("--json", metavar="FILE", help="JSON file for all measurements")
    args = parser.parse_args(argv)
    try:
        results = []
        for setting in settings_of(args):
            rows = measure(setting, args)
            results.append({"setting": asdict(setting), "rows": [asdict(row) for row in rows]})
            if args.json:
                with atomic(Path(args.json)) as temporary:
                    temporary.write_text(json.dumps({"machine": machine(setting), "models": results}, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"speed: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """Return the setting of each model. Raises ValueError if an option is invalid."""
    device = choose_device(args.device)
    for name, values, allowed in (("models", args.models, MODELS), ("parts", args.parts, PARTS)):
        unknown = [value for value in values.split(",") if value not in allowed]
        if unknown:
            raise ValueError(f"--{name}: unknown {unknown[0]!r}, expected one of {', '.join(allowed)}")
    if args.rounds < 1 or args.batch < 0 or args.threads < 0 or args.seconds < 0:
        raise ValueError("--rounds must be at least 1; --batch, --threads and --seconds must not be negative")
    if args.reference:
        check_reference(args.reference)
    return [
        Setting(
            model=model,
            batch=args.batch or BATCHES[model][device.type != "cpu"],
            device=str(device),
            threads=args.threads or torch.get_num_threads(),
            precision=resolve(args.precision, device),
            compile="on" if compiles(args.compile) else "off",
            compile_diffusers=args.compile_diffusers,
            reference=args.reference,
        )
        for model in args.models.split(",")
    ]


def measure(setting: Setting, args: argparse.Namespace) -> list[Row]:
    """Measure all parts of a model, printing each row of its table as it becomes available."""
    print(f"\n{machine(setting)}\n")
    print(f"**{setting.model}**, batch {setting.batch}\n")
    print("| part | side | seconds | speedup of admg | memory, MB | GFLOP/s | share of peak | difference |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    sides = ["admg", *([] if args.no_diffusers else ["diffusers"]), *(["reference"] if args.reference else [])]
    parts = [*args.parts.split(","), *(["sample"] if args.whole else [])]
    table: dict[str, list[Row]] = {}
    with workers(sides, setting) as processes:
        for part in parts:
            work = 0 if part == "sample" else flops(setting, part)
            rounds = 1 if part == "sample" else args.rounds
            table[part] = list(measure_part(part, processes, setting, rounds, args.seconds))
            for row in table[part]:
                print(line(row, table[part][0], work), flush=True)
    if extra := good_sample(table):
        print(f"\n{extra}")
    return [row for rows in table.values() for row in rows]


@contextmanager
def workers(sides: list[str], setting: Setting) -> Iterator[list[Worker]]:
    """Context manager that starts one process per side and ends them on exit."""
    made = [Worker(side, setting) for side in sides]
    try:
        yield made
    finally:
        for worker in made:
            worker.close()


def measure_part(part: str, processes: list[Worker], setting: Setting, rounds: int, seconds: float) -> Iterator[Row]:
    """Yield one row per side. Raises ValueError if the sides compute different results."""
    rows, able, expected = [], [], None
    for worker in processes:
        row = Row(worker.side, part)
        rows.append(row)
        try:
            found = worker.prepare(part)
        except Unable as error:
            row.note = str(error)
            continue
        able.append((worker, row))
        if found is None:
            continue
        if expected is None:
            expected = found
        row.difference = difference(expected, found)
        if not row.difference <= AGREE[setting.precision if setting.device == "cpu" else "fp16"]:
            raise ValueError(
                f"{setting.model}, {part}: {row.side} computes a different result (difference {row.difference:.2g})"
            )
    dtype = str(DTYPES[setting.precision]).removeprefix("torch.")
    for worker, _ in able:
        if part != "sample":
            worker.seconds(0)  # warm-up
    for number in range(rounds):
        peak = able[0][0].matmul(dtype)
        for worker, row in able[number % len(able) :] + able[: number % len(able)]:
            row.seconds.append(worker.seconds(seconds))
            row.peaks.append(peak)
    for worker, row in able:
        row.memory = worker.peak()
        worker.finish()
    yield from rows


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the relative root-mean-square difference, over the leading elements if the lengths differ."""
    if expected.shape != found.shape:
        expected = expected[: len(found)]
    return float(np.sqrt(np.square(found - expected, dtype=np.float64).mean() / np.square(expected).mean()))


# -- output ----------------------------------------------------------------------------------------------------------


def machine(setting: Setting) -> str:
    """Return a line with the processor, number of threads, version of torch and number formats."""
    built = ", diffusers compiled" if setting.compile_diffusers else ""
    if setting.device == "cpu":
        what = f"{processor()}, {setting.threads} threads, {torch.backends.cpu.get_cpu_capability()}"
        formats = f"admg and diffusers in {setting.precision}, guided-diffusion in fp32"
    else:
        what = torch.cuda.get_device_name(setting.device)
        formats = f"admg and diffusers in {setting.precision}, guided-diffusion in fp16"
    return f"{what}; torch {torch.__version__}; {formats}; compile {setting.compile}{built}"


def processor() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor() or "CPU")


def line(row: Row, ours: Row, work: int) -> str:
    """Return the table row of a side, compared with that of admg."""
    if not row.seconds:
        return f"| {row.part} | {row.side} | - | {row.note} | | | | |"
    ratios = [theirs / own for own, theirs in zip(ours.seconds, row.seconds)]
    rates = [work / seconds for seconds in row.seconds]
    shares = [rate / peak for rate, peak in zip(rates, row.peaks)]
    cells = [
        f"{statistics.median(row.seconds):.4g}",
        "" if row is ours else spread(ratios, "{:.2f}"),
        "-" if row.memory is None else f"{row.memory / 1e6:.0f}",
        f"{statistics.median(rates) / 1e9:.0f}" if work else "",
        f"{100 * statistics.median(shares):.0f} %" if work else "",
        "" if row is ours or row.difference is None else f"{row.difference:.1e}",
    ]
    return f"| {row.part} | {row.side} | " + " | ".join(cells) + " |"


def spread(values: list[float], form: str) -> str:
    """Return `median (minimum to maximum)`."""
    told: list[Callable[[list[float]], Any]] = [statistics.median, min, max]
    middle, least, largest = (form.format(function(values)) for function in told)
    return f"{middle} ({least} to {largest})"


def good_sample(table: dict[str, list[Row]]) -> str:
    """Return the speedup for a sample of the same quality, as measured or computed from the time per step."""
    rows = {(row.part, row.side): row.seconds for part in table.values() for row in part if row.seconds}
    what = f"a sample with {GOOD[0]} {GOOD[1]}, compared with 250 steps of DDPM in guided-diffusion"
    if ("sample", "reference") in rows:
        seconds = [rows["sample", side][0] for side in ("admg", "reference")]
        return f"{what}: {seconds[1] / seconds[0]:.1f} times as fast, measured ({seconds[0]:.4g} s, {seconds[1]:.4g} s)"
    if ("step", "reference") in rows and ("step", "admg") in rows:
        ratios = [
            STEPS["reference"] * b / (STEPS["admg"] * a)
            for a, b in zip(rows["step", "admg"], rows["step", "reference"])
        ]
        return f"{what}: {spread(ratios, '{:.1f}')} times as fast, from the time per step"
    return ""


if __name__ == "__main__":
    sys.exit(main())
