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
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..checkpoints.weights import CheckpointError, load_pickle
from ..data import batches
from ..files import atomic
from ..precision import Precision, autocast
from .curves import plot_log


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    steps: optimiser steps in all, those before a resumption included
    batch_size: images per step
    lr: learning rate of AdamW, after the warm-up
    warmup: steps over which the learning rate grows linearly from 0
    weight_decay: of AdamW
    ema: decay of the exponential moving average of the weights; it begins small and rises to this
    grad_clip: largest norm of the gradient
    precision: auto, fp32 or bf16 (mixed); auto takes bf16 where the processor has it natively
    seed: of everything random
    workers: processes that load images; 0: none, for data in memory
    device: cpu or cuda; auto takes cuda if there is one
    log_every: steps between rows of log.csv
    checkpoint_every: steps between checkpoints
    preview_every: steps between pictures of samples or validations
    """

    steps: int = 100_000
    batch_size: int = 64
    lr: float = 3e-4
    warmup: int = 500
    weight_decay: float = 0.0
    ema: float = 0.9999
    grad_clip: float = 1.0
    precision: Precision = "auto"
    seed: int = 0
    workers: int = 0
    device: str = "auto"
    log_every: int = 50
    checkpoint_every: int = 500
    preview_every: int = 1000

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "preview_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")


class Task(Protocol):
    """What is learned: a loss, and what to do with the averaged network now and then."""

    network: nn.Module

    def loss(self, x: Tensor, y: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Terms (N,) of each image, "loss" among them."""
        ...

    def preview(self, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Draw or measure what the averaged network can do; figures to log."""
        ...

    def save(self, network: nn.Module, folder: Path, training: dict[str, Any]) -> None:
        """Write the averaged network as a native checkpoint."""
        ...


def train(task: Task, dataset: Any, out: Path, config: TrainConfig, provenance: dict[str, Any]) -> Iterator[dict]:
    """Train until config.steps, resuming from `out` if it holds a checkpoint; yields the figures of every step.

    Writes in `out`: checkpoint.pt (to resume), model/ (averaged weights), log.csv, curves.png, samples/, tensorboard/.
    CheckpointError: `out` holds a run of another network.
    """
    device = torch.device(config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    network = task.network.to(device).train()
    average = AveragedModel(network, multi_avg_fn=_ema(config.ema))
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    step = _resume(out / "checkpoint.pt", network, average, optimizer)
    log = Log(out, step)
    stream = batches(dataset, config.batch_size, seed=config.seed, start=step, workers=config.workers)

    while step < config.steps:
        started = time.perf_counter()
        x, y = next(stream)
        generator = torch.Generator().manual_seed(step_seed(config.seed, step))
        torch.manual_seed(step_seed(config.seed, step) + 1)  # dropout draws from torch's global random numbers
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
        with autocast(config.precision, device):
            terms = task.loss(x.to(device), y.to(device), generator)
        loss = terms["loss"].mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss.item()} at step {step}; try a smaller lr or fp32")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(network)
        step += 1

        row = {name: value.detach().float().mean().item() for name, value in terms.items()}
        row |= {"grad_norm": norm.item(), "lr": optimizer.param_groups[0]["lr"]}
        row["images_per_second"] = len(x) / (time.perf_counter() - started)
        log.add(step, row)
        last = step == config.steps
        if step % config.preview_every == 0 or last:
            network.eval()
            average.eval()
            log.add_figures(step, task.preview(average.module, out / "samples", step))
            network.train()
        if step % config.log_every == 0 or last:
            log.flush(step, images=step * config.batch_size)
        if step % config.checkpoint_every == 0 or last:
            figures = {"steps": step, "images": step * config.batch_size, **log.latest, **provenance}
            task.save(average.module, out / "model", {**figures, "train": asdict(config)})
            state = {"network": network.state_dict(), "average": average.state_dict()}
            with atomic(out / "checkpoint.pt") as temporary:
                torch.save({"step": step, "optimizer": optimizer.state_dict(), **state}, temporary)
            log.plot()
        yield {"step": step, **row}
    log.close()


def step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def _ema(decay: float):
    """Exponential moving average whose decay rises as (1 + n) / (10 + n) up to `decay`, for all tensors at once."""

    @torch.no_grad()
    def update(average: list[Tensor], current: list[Tensor], n: Tensor | int) -> None:
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + int(n)) / (10 + int(n))))

    return update


def _resume(path: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Fill all three from the checkpoint, if there is one; the number of steps already done."""
    if not path.exists():
        return 0
    try:
        state = load_pickle(path)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"]
    except Exception as error:  # torch raises many kinds for a foreign or truncated file
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"cannot resume from {path}: {reason}; give another --out or remove it") from None


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
