"""One training loop for every network: AdamW, EMA, warm-up, clipping, mixed precision, and exact resumption.

Step k depends only on the seed and k (batch, noise, timesteps, dropout), so a run that was killed and resumed
computes what an unbroken one would have.
"""

from __future__ import annotations

import csv
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from admg.data import batches
from admg.engine.memory import keep_freed_memory
from admg.files import atomic

from .config import TrainConfig
from .curves import plot_log
from .feed import feed
from .learner import Learner, Task, check_finite


def train(task: Task, dataset: Any, out: Path, config: TrainConfig, provenance: dict[str, Any]) -> Iterator[dict]:
    """Train until config.steps, resuming from `out` if it holds a checkpoint; yields the figures of every step.

    Writes in `out`: checkpoint.pt (to resume), model/ (averaged weights), log.csv, curves.png, samples/, tensorboard/.
    CheckpointError: `out` holds a run of another network.
    """
    device = torch.device(config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory(device.type)
    learner = Learner(task, config, device)
    step = learner.resume(out / "checkpoint.pt")
    log = Log(out, step)
    stream = batches(dataset, config.batch_size, seed=config.seed, start=step, workers=config.workers)
    with closing(feed(task, stream, config.seed, step, device)) as fed:
        while step < config.steps:
            started = time.perf_counter()
            figures = learner.step(step, next(fed))
            step += 1
            row = dict(zip(figures, torch.stack(list(figures.values())).tolist()))  # here the CPU waits for a GPU
            check_finite(row["loss"], step - 1)  # on a GPU after the step, which would else wait twice
            row |= {"lr": learner.lr, "images_per_second": config.batch_size / (time.perf_counter() - started)}
            log.add(step, row)
            _now_and_then(learner, out, step, log, provenance)
            yield {"step": step, **row}
    log.close()


def _now_and_then(learner: Learner, out: Path, step: int, log: Log, provenance: dict[str, Any]) -> None:
    """Previews, rows of the log and checkpoints, as often as the configuration wants them and after the last step."""
    task, average, config = learner.task, learner.average.network, learner.config
    last, images = step == config.steps, step * config.batch_size
    if step % config.preview_every == 0 or last:
        log.add_figures(step, task.preview(average, out / "samples", step))
    if step % config.log_every == 0 or last:
        log.flush(step, images)
    if step % config.checkpoint_every == 0 or last:
        figures = {"steps": step, "images": images, **log.latest, **provenance}
        task.save(average, out / "model", {**figures, "train": asdict(config)})
        learner.save(out / "checkpoint.pt", step)
        log.plot()


class Log:
    """log.csv and TensorBoard scalars: means over the steps between rows. Resuming cuts off the rows to be redone."""

    def __init__(self, out: Path, step: int):
        self.path = out / "log.csv"
        self.sums: dict[str, float] = defaultdict(float)
        self.count = 0
        self.figures: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.rows: list[dict[str, str]] = []
        if step and self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        self.tensorboard: Any = None
        with suppress(ImportError):  # an optional package
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def add(self, step: int, row: dict[str, float]) -> None:
        self.count += 1
        for name, value in row.items():
            self.sums[name] += value

    def add_figures(self, step: int, figures: dict[str, float]) -> None:
        self.figures = figures
        self.latest |= figures

    def flush(self, step: int, images: int) -> None:
        means = {name: total / self.count for name, total in self.sums.items()} | self.figures
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
        self.figures, self.count = {}, 0

    def plot(self) -> None:
        plot_log(self.rows, self.path.with_name("curves.png"))

    def close(self) -> None:
        if self.tensorboard:
            self.tensorboard.close()
