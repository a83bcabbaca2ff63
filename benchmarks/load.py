"""Time to load a large checkpoint, next to the time that the disk needs to read it once.

    sudo python benchmarks/load.py --folder /var/tmp --rounds 3

Writes ADM-256's network with random weights (2.2 GB) as a native checkpoint to a folder on the disk to measure, and in
turn: reads its file, and loads it (SHA-256, finite numbers, a network that is ready), each after the pages of the file
were dropped from memory, which needs root on Linux. Without root, both read from memory.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.diffusion.config import DiffusionConfig
from admg.models import UNet, UNetConfig

READ = "import sys; f = open(sys.argv[1], 'rb', buffering=0); b = bytearray(1 << 24)\nwhile f.readinto(b): pass"
LOAD = "import sys, time, admg; import admg.checkpoints.model; t = time.perf_counter(); admg.load(sys.argv[1])\n"
LOAD += "print(time.perf_counter() - t)"


def forget() -> bool:
    """Drop what the system keeps of files in memory; return whether it could."""
    subprocess.run(["sync"], check=True)
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        process = DiffusionConfig()
        network = UNet(UNetConfig(image_size=256, channels=256, num_classes=1000)).eval()
        Model(network, process.build(), (3, 256, 256), Labels(1000), process).save(Path(folder) / "model")
        del network
        weights = Path(folder) / "model" / "model.safetensors"
        size = weights.stat().st_size / 1e9
        read, load = [], []
        for _ in range(args.rounds):
            dropped = forget()
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", READ, str(weights)], check=True)
            read.append(time.perf_counter() - start)
            forget()
            subprocess.run(
                [sys.executable, "-c", "import admg.checkpoints.model"], check=True
            )  # the library, not the file
            done = subprocess.run([sys.executable, "-c", LOAD, folder + "/model"], check=True, capture_output=True)
            load.append(float(done.stdout.split()[-1]))
    print(f"{size:.2f} GB {'from the disk' if dropped else 'from memory'}, torch {torch.__version__}")
    for name, values in (("read", read), ("load", load)):
        print(f"{name}: {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
    ratios = [b / a for a, b in zip(read, load)]
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
