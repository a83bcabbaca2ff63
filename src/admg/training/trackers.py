"""Recording of measurements during training: means over steps, in the log and in services such as TensorBoard."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .curves import plot_log
from .log import Log
from .services import TolerantService

LAST_VALUE_METRICS = {"memory_gib"}
"""Measurements for which a row has the last value instead of the mean."""
RATES = {"images_per_second", "data_wait"}
"""Measurements per time: in their mean a step counts by its duration, or few slow steps would hardly show."""


class Tracker:
    """Averages the measurements of steps, and periodically writes a row to the log and to services.

    out: run directory
    step: number of steps done; later rows of an existing log are dropped, since their steps will be repeated
    services: services that get the same numbers, and the pictures
    """

    def __init__(self, out: Path, step: int, services: Sequence[TolerantService] = ()):
        self.out, self.services = out, services
        self.log = Log(out, step)
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, float] = defaultdict(float)
        self.metrics: dict[str, float] = {}
        self.latest: dict[str, float] = {}

    def add(self, measurements: Mapping[str, float]) -> None:
        """Add the measurements of one step to the means of the next row, except those that are not finite."""
        duration = 1 / measurements.get("images_per_second", 1.0)  # all steps have as many images
        for name, value in measurements.items():
            weight = duration if name in RATES else 1.0
            if name in LAST_VALUE_METRICS:
                self.metrics[name] = value
            elif math.isfinite(value):
                self.sums[name] += weight * value
                self.counts[name] += weight

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add metrics, such as a validation loss, to the next row unchanged."""
        self.metrics |= metrics
        self.latest |= metrics

    def add_pictures(self, folder: Path, step: int) -> None:
        """Show the pictures of this step, which are in a folder, in the services."""
        for path in sorted(folder.glob(f"*_{step:07d}.png")):
            for service in self.services:
                service.picture(path.stem.removesuffix(f"_{step:07d}").replace("step", "samples"), path, step)

    def write_row(self, step: int, images: int) -> None:
        """Write the means over the steps since the last row."""
        values = {name: total / self.counts[name] for name, total in self.sums.items()} | self.metrics
        self.latest |= values
        self.log.append(step, images, values)
        for service in self.services:
            service.scalars(values, step)
        self.sums.clear()
        self.counts.clear()
        self.metrics = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the unfinished row and the checksum of the log, for a checkpoint."""
        about = {"latest": dict(self.latest), "log": self.log.checksum}
        return {"sums": dict(self.sums), "counts": dict(self.counts), "metrics": dict(self.metrics), **about}

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Restore the result of `state_dict`: the next row equals that of a run without interruption."""
        if state is not None:
            self.sums.update(state["sums"])
            self.counts.update(state["counts"])
            self.metrics |= state.get("metrics", {})  # measured before the row was due
            self.latest |= state.get("latest", {})
            self.log.check(state.get("log", ""))

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, which will be repeated."""
        self.log.rewind(step)
        self.sums.clear()
        self.counts.clear()
        self.metrics = {}

    def plot(self) -> None:
        """Draw curves.png."""
        plot_log(self.log.rows, self.out / "curves.png")

    def flush(self) -> None:
        """Flush the services, so that a checkpoint is never ahead of them."""
        for service in self.services:
            service.flush()

    def close(self) -> None:
        for service in self.services:
            service.close()
