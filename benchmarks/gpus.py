"""What `--gpus` costs: one command that samples in several processes, compared with as many independent commands.

    python benchmarks/gpus.py --processes 2 --rounds 3

It runs on a CPU: each process has one core, which stands for a GPU. In turn, it times one command for some images; N
such commands at once, which share nothing; and one command that starts N processes, as `--gpus N` does, for N times as
many images. The processes of one launch divide the images and wait for each other at the end, and the first writes the
file. The third time divided by the second is what sharing a command costs; the second divided by the first is what the
machine loses when N processes are busy. The images of the launch are compared with those of one process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from speed import spread

from admg.cli.launch import launch


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--images", type=int, default=96, help="of one process")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:

        def sample(name: str, images: int) -> list[str]:
            out = ["--device", "cpu", "--precision", "fp32", "--out", str(Path(folder, name))]
            return ["sample", "--num", str(images), "--steps", str(args.steps), "--batch-size", "16", *out]

        rounds = []
        for r in range(args.rounds + 1):  # the first fills the cache of the disk
            one = [sample(f"alone{r}", args.images)]
            several = [sample(f"apart{r}-{i}", args.images) for i in range(args.processes)]
            shared = sample(f"shared{r}", args.processes * args.images)
            rounds.append((together(one), together(several), launched(args.processes, shared)))
        together([sample("one", args.processes * args.images)])
        difference = np.abs(pixels(Path(folder, "shared0")) - pixels(Path(folder, "one"))).max()
    rows = list(zip(*rounds[1:]))
    n = args.processes
    print(f"| {args.images} images for each process, {args.steps} guided steps | seconds |\n| --- | ---: |")
    for name, values in zip(("one process", f"{n} commands at once", f"one command in {n} processes"), rows):
        print(f"| {name} | {spread(list(values), '{:.2f}')} |")
    print(f"\none command / {n} commands: {spread([c / b for _, b, c in rounds[1:]], '{:.2f}')}")
    print(f"{n} commands / one process: {spread([b / a for a, b, _ in rounds[1:]], '{:.2f}')}")
    print(f"largest difference from the images of one process: {difference:.0f} levels of 255")


def together(commands: list[list[str]]) -> float:
    """Run commands at the same time, and return the seconds that they took."""
    start = time.perf_counter()
    running = [
        subprocess.Popen([sys.executable, "-m", "admg", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for words in commands
    ]
    if any([process.wait() for process in running]):
        raise SystemExit(f"gpus: error: `admg {' '.join(commands[0])}` failed")
    return time.perf_counter() - start


def launched(count: int, words: list[str]) -> float:
    """Run a command as `--gpus` does, and return the seconds that it took."""
    start = time.perf_counter()
    if code := launch(count, words):
        raise SystemExit(code)
    return time.perf_counter() - start


def pixels(folder: Path) -> np.ndarray:
    (file,) = folder.glob("samples_*.npz")
    with np.load(file) as content:
        return content["arr_0"].astype(int)


if __name__ == "__main__":
    main()
