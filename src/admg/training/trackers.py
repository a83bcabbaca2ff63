"""What a run records while it trains: means over steps in its log, and the same in TensorBoard and other services."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from .curves import plot_log
from .log import Log
from .services import Guarded

LAST = {"memory_gib"}
"""Measurements of which a row has the last value rather than the mean."""


class Tracker:
    """Averages the measurements of steps, and now and then writes a row of them to the log and to services.

    out: run directory
    step: number of steps done; later rows of an existing log are dropped, since their steps will be repeated
    services: services that get the same numbers, and the pictures
    """

    def __init__(self, out: Path, step: int, services: Sequence[Guarded] = ()):
        self.out, self.services = out, services
        self.log = Log(out, step)
        self.sums: dict[str, float] = defaultdict(float)
        self.count = 0
        self.metrics: dict[str, float] = {}
        self.latest: dict[str, float] = {}

    def add(self, measurements: Mapping[str, float]) -> None:
        """Add the measurements of one step to the means of the next row."""
        self.count += 1
        for name, value in measurements.items():
            if name in LAST:
                self.metrics[name] = value
            else:
                self.sums[name] += value

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add metrics, such as a validation loss, to the next row as they are."""
        self.metrics |= metrics
        self.latest |= metrics

    def add_pictures(self, folder: Path, step: int) -> None:
        """Show the pictures of this step, which are in a folder, in the services."""
        for path in sorted(folder.glob(f"*_{step:07d}.png")):
            for service in self.services:
                service.picture(path.stem.removesuffix(f"_{step:07d}").replace("step", "samples"), path, step)

    def write_row(self, step: int, images: int) -> None:
        """Write the means over the steps since the last row."""
        values = {name: total / self.count for name, total in self.sums.items()} | self.metrics
        self.latest |= values
        self.log.append(step, images, values)
        for service in self.services:
            service.scalars(values, step)
        self.sums.clear()
        self.metrics, self.count = {}, 0

    def plot(self) -> None:
        """Draw curves.png."""
        plot_log(self.log.rows, self.out / "curves.png")

    def close(self) -> None:
        for service in self.services:
            service.close()
