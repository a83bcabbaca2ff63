"""The log of a run: log.csv, TensorBoard scalars and curves.png."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from admg.files import atomic

from .curves import plot_log


class Tracker:
    """Averages the measurements of steps, and writes a row of them to log.csv and TensorBoard now and then.

    out: run directory
    step: number of steps done; later rows of an existing log.csv are dropped, since their steps will be repeated
    """

    def __init__(self, out: Path, step: int):
        self.path = out / "log.csv"
        self.sums: dict[str, float] = defaultdict(float)
        self.count = 0
        self.metrics: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.rows: list[dict[str, str]] = []
        if step and self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        self.tensorboard: Any = None
        with suppress(ImportError):  # an optional package
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def add(self, measurements: Mapping[str, float]) -> None:
        """Add the measurements of one step to the means of the next row."""
        self.count += 1
        for name, value in measurements.items():
            self.sums[name] += value

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add metrics, such as a validation accuracy, to the next row as they are."""
        self.metrics = dict(metrics)
        self.latest |= metrics

    def write_row(self, step: int, images: int) -> None:
        """Write the means over the steps since the last row."""
        means = {name: total / self.count for name, total in self.sums.items()} | self.metrics
        self.latest |= means
        self.rows.append({"step": str(step), "images": str(images)} | {k: f"{v:.6g}" for k, v in means.items()})
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with atomic(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        for name, value in means.items():
            if self.tensorboard and math.isfinite(value):
                self.tensorboard.add_scalar(name, value, step)
        self.sums.clear()
        self.metrics, self.count = {}, 0

    def plot(self) -> None:
        """Draw curves.png."""
        plot_log(self.rows, self.path.with_name("curves.png"))

    def close(self) -> None:
        if self.tensorboard:
            self.tensorboard.close()
