"""The training loop, which is the same for every task.

Step k depends only on the seed and k (batch, noise, timesteps, dropout), so a run that was killed and resumed computes
what an uninterrupted run would have computed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
import torch.distributed as dist
from torch import nn

from admg.data import ImageDataset, batches
from admg.engine.device import Processes, choose_device
from admg.engine.memory import peak_memory

from . import averages, checkpointing, distributed, snapshots
from .card import RunDetails, write_card
from .choices import record_of
from .config import TrainConfig
from .defaults import settle
from .ema import EMA
from .prefetch import prefetch
from .services import RunFacts, open_services, services_of
from .step import Learner, check_finite
from .tasks import M, Task
from .trackers import Tracker
from .validation import Measure

Measured = Callable[[nn.Module, Path, int], dict[str, float]]
"""Draws or measures what a network has learned, given the folder of pictures and the step, and returns metrics."""


class TrainingRun(Iterator[dict[str, float]], Generic[M]):
    """A training run: an iterator over optimiser steps, which ends after `config.steps` of them.

    Each step yields its measurements: "step", "loss" and the terms of the loss, "grad_norm", "lr", "images_per_second",
    "data_wait" (share of the time spent waiting for images) and "memory_gib" (peak memory of the device, or of the
    process on a CPU). The run directory gets checkpoint.pt (to resume from), model/ (the averaged weights), log.csv,
    metrics.jsonl, curves.png, samples/ and tensorboard/. A run directory that holds a checkpoint is resumed.

    Under torchrun or srun, all processes train together, each on its part of every batch; the first one writes the run
    directory. The result does not depend on their number, up to rounding, unless the network has dropout.

    task: what is learned
    dataset: training images, see `admg.data`
    out: run directory
    provenance: entries for the "training" section of the model's config.json, such as the name of the data
    measures: what is measured with the averaged weights now and then, such as the loss on held-out images

    Raises CheckpointError, which is a ValueError, if `out` holds a run of another network; ValueError if the batch
    cannot be divided among the processes; FloatingPointError, when iterated, if the loss is no longer finite, and
    ProcessLost, which is an OSError, if another of the processes has ended. The steps seed torch's global generator.
    """

    def __init__(
        self,
        task: Task[M],
        dataset: ImageDataset,
        out: Path | str,
        config: TrainConfig | None = None,
        provenance: Mapping[str, Any] | None = None,
        measures: Sequence[Measure] = (),
    ):
        self.measures = tuple(measures)
        self.task, self.dataset, self.out = task, dataset, Path(out)
        self.config = settle(config or TrainConfig(), record_of(self.out))
        device = choose_device(self.config.device)
        distributed.share_of(self.config.batch_size, self.config.accumulate, Processes.from_environment())
        self._group_is_ours = not dist.is_initialized()
        self.processes = distributed.join(device, alone=self.config.shard)
        self.watch = distributed.watch(self.processes)
        try:
            with self._guard():
                self.config = averages.continued(self.config, checkpointing.read(self.out, mmap=True), self.out)
                self.learner = Learner(task, self.config, device, self.processes)
                self.step = self.first_step = checkpointing.resume(self.out, self.learner)
                distributed.check_equal(self.step, "step that they resume from", self.processes)
        except BaseException:
            self._leave()
            raise
        self.provenance = dict(provenance or {})
        self.metrics: dict[str, float] = {}
        self.saved = self.step
        """Number of steps of the last checkpoint."""
        self._steps = self._train()

    def _train(self) -> Generator[dict[str, float]]:
        config, learner, processes = self.config, self.learner, self.processes
        part = (processes.rank, processes.count)
        stream = batches(
            self.dataset,
            config.batch_size,
            seed=config.seed,
            start=self.step,
            part=part,
            workers=config.workers,
            sampling=config.class_sampling,
        )
        prefetched = prefetch(self.task, stream, config.seed, self.step, learner.device, processes)
        with closing(prefetched), ExitStack() as stack:
            tracker = stack.enter_context(closing(self._tracker())) if self.writes else None
            if self.writes:
                snapshots.remove_after(self.out, self.step)
            while self.step < config.steps:
                with self._guard():
                    row = self._step(learner, prefetched)
                    self._record(row, tracker)
                yield {"step": self.step, **row}
            with self._guard():
                distributed.wait_for_all(processes)  # the first process may hold the store of the others

    def _step(self, learner: Learner, prefetched: Iterator[tuple[torch.Tensor, ...]]) -> dict[str, float]:
        """Take one step, and return its measurements."""
        started = time.perf_counter()
        drawn = next(prefetched)
        waited = time.perf_counter() - started
        means = learner.step(self.step, drawn)
        self.step += 1
        row = dict(zip(means, torch.stack(list(means.values())).tolist()))  # waits for the GPU
        check_finite(row["loss"], self.step - 1)
        return row | {"lr": learner.lr} | self._costs(waited, time.perf_counter() - started)

    def _guard(self) -> AbstractContextManager[None]:
        """Return the context of what may fail in this process, or because another one has ended."""
        return nullcontext() if self.watch is None else self.watch.guard()

    def _tracker(self) -> Tracker:
        facts = RunFacts(self.out, self.step, {**self.provenance, "train": asdict(self.config)})
        return Tracker(self.out, self.step, open_services(services_of(self.config.log), facts))

    def _costs(self, waited: float, seconds: float) -> dict[str, float]:
        """Return what a step cost.

        waited: seconds until its images were there
        """
        costs = {"images_per_second": self.config.batch_size / seconds, "data_wait": waited / seconds}
        memory = peak_memory(self.learner.device)
        return costs if memory is None else costs | {"memory_gib": memory / 2**30}

    @property
    def writes(self) -> bool:
        """Whether this process writes the run directory: the first one does."""
        return self.processes.rank == 0

    def _record(self, row: dict[str, float], tracker: Tracker | None) -> None:
        """Write the log, previews and a checkpoint, each if it is due, in the process that has the tracker."""
        config = self.config
        if tracker is not None:
            tracker.add(row)
        self._measure(tracker)
        if tracker is not None and self._due(config.log_every):
            tracker.write_row(self.step, self.step * config.batch_size)
        if config.ema_snapshots and self._due(config.ema_snapshots):
            snapshots.save(self.out, self.learner.averages, self.step, config.ema_snapshots, self.writes)
        if self._due(config.checkpoint_every):
            self._save(tracker)

    def _measure(self, tracker: Tracker | None) -> None:
        """Draw previews and measure the averaged network, each if it is due."""
        due: list[Measured] = [self.task.preview] if self._due(self.config.preview_every) else []
        due += [partial(measure, self.task) for measure in self.measures if self._due(measure.every)]
        if not due:
            return
        network = self.learner.averaged_network()
        if tracker is not None:
            for measured in due:
                tracker.add_metrics(self._measured(measured, network))
            tracker.add_pictures(self.out / "samples", self.step)

    def _save(self, tracker: Tracker | None) -> None:
        """Write the models with their cards, the checkpoint and the curves."""
        learner = self.learner
        self.metrics = {} if tracker is None else tracker.latest
        saved: dict[Path, M] = {}
        for average in learner.averages[: len(self.config.profiles)]:
            model, folder = self.model_of(average), self.out / averages.folder_of(average, learner.average)
            if tracker is not None:
                model.save(folder)
                saved[folder] = model
        if tracker is not None or self.config.shard:  # then every process writes its part
            checkpointing.save(self.out, checkpointing.state_of(learner, self.step), self.processes)
        if tracker is not None:
            tracker.plot()
            self._write_cards(saved)
        self.saved = self.step

    def _write_cards(self, saved: Mapping[Path, M]) -> None:
        """Write the cards of models; what goes wrong never stops the training."""
        run = RunDetails(self.out, self.dataset, self.learner.device, self.processes.count)
        try:
            for folder, model in saved.items():
                write_card(folder, model, run)
        except Exception as error:  # such as a picture that cannot be read
            warnings.warn(f"no model card: {error}", stacklevel=2)

    def _measured(self, measured: Measured, network: nn.Module) -> dict[str, float]:
        """Return metrics of the averaged network; none if memory runs out, or if something becomes infinite."""
        try:
            return measured(network, self.out / "samples", self.step)
        except (FloatingPointError, torch.OutOfMemoryError) as error:  # the loss is finite, so that training goes on
            what = "preview" if measured == self.task.preview else "measurement"
            warnings.warn(f"no {what} at step {self.step}: {str(error).splitlines()[0]}", stacklevel=2)
            return {}

    def _due(self, every: int) -> bool:
        """Whether something is done at this step: every so many steps, and at the last one."""
        return self.step % every == 0 or self.step == self.config.steps

    @property
    def model(self) -> M:
        """The model with the averaged weights, in evaluation mode: of the first average, if there are several.

        It shares its weights with the run: they change with each further step. If the network is sharded, all processes
        must ask for the model together, and the first one gets the weights.
        """
        return self.model_of(self.learner.average)

    @property
    def other_models(self) -> list[Path]:
        """Folders of the models with the other averages that `config.ema` names."""
        first, *others = self.learner.averages[: len(self.config.profiles)]
        return [self.out / averages.folder_of(average, first) for average in others]

    def model_of(self, average: EMA) -> M:
        """Return the model with the weights of one of `learner.averages`, as `model` does."""
        state = {"steps": self.step, "images": self.step * self.config.batch_size, **self.metrics}
        training = {**state, **self.provenance, "average": str(average.profile), "train": asdict(self.config)}
        return self.task.as_model(self.learner.averaged_network(average), training)

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self.learner.network.parameters())

    def __next__(self) -> dict[str, float]:
        return next(self._steps)

    def close(self) -> None:
        """Stop the run, and release its files, threads and process group. Steps since the last checkpoint are lost."""
        self._steps.close()
        self._leave()

    def _leave(self) -> None:
        if self.watch is not None:
            self.watch.stop()
        if self._group_is_ours:
            distributed.leave()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.out}: step {self.step} of {self.config.steps})"
