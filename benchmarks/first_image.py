"""Time from the start of a command to the first image, next to what cannot be avoided.

    python benchmarks/first_image.py --rounds 7

In turn, each in a process of its own: `import torch`; `import torch` and ten evaluations of the shipped network (with
the weights already there, which are random); and `admg sample --num 1 --steps 10` without guidance, which writes a
picture. Prints seconds by the clock and of processor time (median, minimum and maximum), and the ratio of the last to
the second in the same round.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TORCH = "import torch"
TEN = """
import torch
from admg.models import UNet, UNetConfig
from admg.engine import accelerate
network = UNet(UNetConfig(image_size=32, image_channels=1, channels=64, channel_mult=(1, 1, 2, 2), num_res_blocks=1,
                          attention_resolutions=(8,), head_channels=64, num_classes=10)).eval()
network = accelerate(network.requires_grad_(False))
x, y = torch.randn(1, 1, 32, 32), torch.tensor([1])
with torch.no_grad():
    for step in range(10):
        network(x, torch.tensor([step]), y)
"""


def seconds(command: list[str]) -> tuple[float, float]:
    """Return the seconds of a command by the clock and of processor time."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def text(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        sample = ["-m", "admg", "sample", "--num", "1", "--label", "coat", "--steps", "10", "--scale", "0"]
        sides = {
            "import torch": ["-c", TORCH],
            "import torch, ten evaluations": ["-c", TEN],
            "admg sample --num 1 --steps 10": [*sample, "--overwrite", "--out", str(out)],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(args.rounds + 1):  # the first fills the cache of the disk
            for name, words in sides.items():
                found[name].append(seconds([sys.executable, *words]))
    print("| | seconds by the clock | seconds of processor time |\n| --- | --: | --: |")
    for name, values in found.items():
        print(f"| {name} | {text([wall for wall, _ in values[1:]])} | {text([cpu for _, cpu in values[1:]])} |")
    ten, ours = (values[1:] for values in list(found.values())[1:])
    ratios = [[b[k] / a[k] for a, b in zip(ten, ours)] for k in (0, 1)]
    print(f"| ratio of the last two | {text(ratios[0])} | {text(ratios[1])} |")


if __name__ == "__main__":
    main()
