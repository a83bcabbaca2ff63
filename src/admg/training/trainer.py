"""The training loop, which is the same for every task.

Step k depends only on the seed and k (batch, noise, timesteps, dropout), so a run that was killed and resumed computes
what an uninterrupted run would have computed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic

import torch
from torch import nn

from admg.data import ImageDataset, batches
from admg.engine.device import choose_device

from . import checkpointing
from .config import TrainConfig
from .prefetch import prefetch
from .step import Learner, check_finite
from .tasks import M, Task
from .trackers import Tracker


class TrainingRun(Iterator[dict[str, float]], Generic[M]):
    """A training run: an iterator over optimiser steps, which ends after `config.steps` of them.

    Each step yields its measurements: "step", "loss" and the terms of the loss, "grad_norm", "lr" and
    "images_per_second". The run directory gets checkpoint.pt (to resume from), model/ (the averaged weights), log.csv,
    curves.png, samples/ and tensorboard/. A run directory that holds a checkpoint is resumed.

    task: what is learned
    dataset: training images, see `admg.data`
    out: run directory
    provenance: entries for the "training" section of the model's config.json, such as the name of the data

    Raises CheckpointError, which is a ValueError, if `out` holds a run of another network; FloatingPointError, when
    iterated, if the loss is no longer finite. The steps seed torch's global generator.
    """

    def __init__(
        self,
        task: Task[M],
        dataset: ImageDataset,
        out: Path | str,
        config: TrainConfig | None = None,
        provenance: Mapping[str, Any] | None = None,
    ):
        self.task, self.dataset, self.out = task, dataset, Path(out)
        self.config = config or TrainConfig()
        self.learner = Learner(task, self.config, choose_device(self.config.device))
        self.step = self.first_step = checkpointing.resume(self.out, self.learner)
        self.provenance = dict(provenance or {})
        self.metrics: dict[str, float] = {}
        self._steps = self._train()

    def _train(self) -> Generator[dict[str, float]]:
        config, learner, task = self.config, self.learner, self.task
        stream = batches(self.dataset, config.batch_size, seed=config.seed, start=self.step, workers=config.workers)
        prefetched = prefetch(task, stream, config.seed, self.step, learner.device)
        with closing(Tracker(self.out, self.step)) as tracker, closing(prefetched):
            while self.step < config.steps:
                started = time.perf_counter()
                means = learner.step(self.step, next(prefetched))
                self.step += 1
                row = dict(zip(means, torch.stack(list(means.values())).tolist()))  # waits for the GPU
                check_finite(row["loss"], self.step - 1)
                row |= {"lr": learner.lr, "images_per_second": config.batch_size / (time.perf_counter() - started)}
                tracker.add(row)
                if self._due(config.preview_every):
                    tracker.add_metrics(self._preview(learner.average.network))
                if self._due(config.log_every):
                    tracker.write_row(self.step, self.step * config.batch_size)
                if self._due(config.checkpoint_every):
                    self.metrics = tracker.latest
                    self.model.save(self.out / "model")
                    checkpointing.save(self.out, learner, self.step)
                    tracker.plot()
                yield {"step": self.step, **row}

    def _preview(self, network: nn.Module) -> dict[str, float]:
        try:
            return self.task.preview(network, self.out / "samples", self.step)
        except FloatingPointError as error:  # the loss is finite, so that training goes on
            warnings.warn(f"no preview at step {self.step}: {error}", stacklevel=2)
            return {}

    def _due(self, every: int) -> bool:
        """Whether something is done at this step: every so many steps, and at the last one."""
        return self.step % every == 0 or self.step == self.config.steps

    @property
    def model(self) -> M:
        """The model with the averaged weights, in evaluation mode.

        It shares its weights with the run: they change with each further step.
        """
        state = {"steps": self.step, "images": self.step * self.config.batch_size, **self.metrics}
        training = {**state, **self.provenance, "train": asdict(self.config)}
        return self.task.as_model(self.learner.average.network, training)

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self.learner.network.parameters())

    def __next__(self) -> dict[str, float]:
        return next(self._steps)

    def close(self) -> None:
        """Stop the run, and release its files and threads. Steps since the last checkpoint are lost."""
        self._steps.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.out}: step {self.step} of {self.config.steps})"
