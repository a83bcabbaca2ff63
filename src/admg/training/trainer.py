"""The training loop, which is the same for every task.

Step k depends only on the seed and k (batch, noise, timesteps, dropout), so a run that was killed and resumed computes
what an uninterrupted run would have computed.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from admg.checkpoints import native
from admg.checkpoints.card import CARD
from admg.checkpoints.model import content_of
from admg.checkpoints.provenance import without
from admg.checkpoints.weights import CheckpointError
from admg.data import ImageDataset, batches
from admg.disk import when_there_is_space
from admg.engine import adapt_threads
from admg.engine.device import Processes, choose_device
from admg.engine.memory import peak_memory
from admg.files import check_output_folder

from . import averages, checkpointing, distributed, run_directory, run_settings, snapshots
from .card import RunDetails, write_card
from .choices import record_of
from .config import TrainConfig
from .defaults import settle
from .ema import EMA
from .guard import Guard
from .prefetch import prefetch
from .services import RunFacts, open_services, services_of
from .step import Learner
from .tasks import M, Task
from .trackers import Tracker
from .validation import Measure

T = TypeVar("T")
Measured = Callable[[nn.Module, Path, int], dict[str, float]]
"""Draws or measures what a network has learned, given the folder of pictures and the step, and returns metrics."""


class TrainingRun(Iterator[dict[str, float]], Generic[M]):
    """A training run: an iterator over optimiser steps, which ends after `config.steps` of them.

    Each step yields its measurements: "step", "loss" and the terms of the loss, "grad_norm", "lr", "images_per_second",
    "data_wait" (share of the time spent waiting for images) and "memory_gib" (peak memory of the device, or of the
    process on a CPU). The run directory gets checkpoints/ (to resume from), model/ (the averaged weights), log.csv,
    metrics.jsonl, curves.png, samples/ and tensorboard/. A run directory that holds a checkpoint is resumed.

    Under torchrun or srun, all processes train together, each on its part of every batch; the first one writes the run
    directory. The result does not depend on their number, up to rounding, unless the network has dropout.

    task: what is learned
    dataset: training images, see `admg.data`
    out: run directory
    provenance: entries for the "training" section of the model's config.json, such as the name of the data
    measures: what is measured with the averaged weights now and then, such as the loss on held-out images
    overwrite: start over in a directory that holds another run, whose files are removed

    A step without a finite loss or gradient is skipped. After ten of them in a row, if the loss is far above its level
    for 25 steps, or if the state that is to be saved holds NaN, the run goes back to its last good checkpoint by
    itself, with a warning.

    Raises CheckpointError, which is a ValueError, if `out` holds a run of another network or with other settings;
    ValueError if the batch cannot be divided among the processes, or if another process trains in `out`. When iterated:
    FloatingPointError if there is no checkpoint to go back to, and ProcessLost, which is an OSError, if another of the
    processes has ended. The steps seed torch's global generator.
    """

    def __init__(
        self,
        task: Task[M],
        dataset: ImageDataset,
        out: Path | str,
        config: TrainConfig | None = None,
        provenance: Mapping[str, Any] | None = None,
        measures: Sequence[Measure] = (),
        overwrite: bool = False,
    ):
        self.measures = tuple(measures)
        self.task, self.dataset, self.out = task, dataset, Path(out)
        self.config = settle(config or TrainConfig(), {} if overwrite else record_of(self.out))
        device = choose_device(self.config.device)
        distributed.share_of(self.config.batch_size, self.config.accumulate, Processes.from_environment())
        if Processes.from_environment().count > 1 and self.config.disk_wait > distributed.LONGEST_WAIT:
            raise ValueError(
                f"disk_wait must be at most {distributed.LONGEST_WAIT} minutes with several processes, which wait for "
                f"the first one, got {self.config.disk_wait:g}"
            )
        self._group_is_ours = not dist.is_initialized()
        self.processes = distributed.join(device, alone=self.config.shard)
        self.watch = distributed.watch(self.processes)
        self.provenance = dict(provenance or {})
        self.metrics: dict[str, float] = {}
        self._names_measured: set[str] = set()
        self.health = Guard()
        self.stopped = self._stop = False
        self._overwrite = overwrite
        self._returns: list[int] = []
        self._found: list[Path] = []
        self.settings: Mapping[str, Any] = {}
        self.changes: Mapping[str, tuple[Any, Any]] = {}
        """Options that have changed since the run was last started, as (before, now); of the first process."""
        self._unfinished_row: Mapping[str, Any] | None = None
        try:
            with self._guard():
                self._begin(device)
        except BaseException:
            self._leave()
            raise
        self.first_step = self.saved = self.step
        """Number of steps of the last checkpoint."""
        self._steps = self._train()

    def _begin(self, device: torch.device) -> None:
        """Make what is trained, and restore the last checkpoint of the run directory, if it has one."""

        def look() -> Path | None:
            self.settings = run_settings.settings_of(self.task, self.dataset, self.config, self.provenance)
            self._found = checkpointing.saved(self.out)
            found = None if self._overwrite else checkpointing.latest(self.out)
            if not self._found:
                run_directory.check_no_samples(self.out)
            if found is not None:
                run_settings.check_settings(self.out, self.settings, run_settings.defaults_of(self.task))
                snapshots.check_spacing(self.out, self.config.ema_snapshots or 0, self._recorded_snapshots())
            elif not self._overwrite:
                run_directory.check_new(self.out)
            return found

        found = distributed.from_first(look, self.processes)
        if self.config.ema_snapshots is None:
            every = 0 if found is None else self._recorded_snapshots()
            self.config = replace(self.config, ema_snapshots=every)
        state = None if found is None else checkpointing.read(found, mmap=True)
        self.config = averages.continued(self.config, state, self.out)
        self.learner = Learner(self.task, self.config, device, self.processes)
        self.step = 0
        if found is not None:
            self._restore(found)
            self.changes = run_settings.changes(self.out, self.config, self.provenance) if self.writes else {}
        if self.writes:
            check_output_folder(self.out)  # last, so that what is refused leaves no empty directory

    def _recorded_snapshots(self) -> int:
        """Return the steps between snapshots when the run was last started, 0 for none."""
        record = run_settings.read(self.out) or {"options": {}}
        return int(record["options"].get("ema_snapshots") or 0)

    def _restore(self, checkpoint: Path) -> None:
        state = checkpointing.resume(checkpoint, self.learner)
        self.step = int(state["step"])
        self.health.load_state_dict(state.get("health", {}))
        self._unfinished_row = state.get("row")

    def stop(self) -> None:
        """Ask the run to end after the step that it is computing, with a checkpoint. Signal handlers may call this.

        With several processes, it is enough to ask one of them.
        """
        self._stop = True

    def _train(self) -> Generator[dict[str, float]]:
        with ExitStack() as stack:
            with self._guard():
                distributed.from_first(lambda: self._take_directory(stack), self.processes)
            tracker = stack.enter_context(closing(self._tracker())) if self.writes else None
            if self.step >= self.config.steps:
                self._complete(tracker)
            while self.step < self.config.steps and not self.stopped:
                yield from self._until_it_fails(tracker)
            with self._guard():
                distributed.wait_for_all(self.processes)  # the first process may hold the store of the others

    def _take_directory(self, stack: ExitStack) -> None:
        """Keep other processes out of the run directory until the stack is closed. Raises ValueError."""
        stack.enter_context(run_directory.taken(self.out))
        if self._overwrite:
            run_directory.clear(self.out)
        elif checkpointing.saved(self.out) != self._found:
            raise ValueError(f"another process has trained in {self.out} in the meantime: start again")
        else:
            run_directory.remove_after(self.out, self.step)  # what is damaged
            checkpointing.remove_old(self.out, self.config.keep_checkpoints, self.config.keep_every)
        run_settings.write(self.out, self.settings, self.config, self.provenance, self.step)

    def _until_it_fails(self, tracker: Tracker | None) -> Generator[dict[str, float]]:
        """Take steps to the end, or until the run has gone back to a checkpoint."""
        config, processes = self.config, self.processes
        stream = batches(
            self.dataset,
            config.batch_size,
            seed=config.seed,
            start=self.step,
            part=(processes.rank, processes.count),
            workers=config.workers,
            sampling=config.class_sampling,
        )
        if tracker is not None:
            snapshots.remove_after(self.out, self.step)
            tracker.resume(self._unfinished_row)
        with closing(prefetch(self.task, stream, config.seed, self.step, self.learner.device, processes)) as prefetched:
            while self.step < config.steps and not self.stopped:
                with self._guard():
                    row = self._step(self.learner, prefetched)
                    fp16 = "loss_scale" in row  # in which skipped steps are usual
                    taken = math.isfinite(row["loss"]) if fp16 else not row["skipped"]
                    self.stopped = distributed.any_of(self._stop, processes, self.learner.device)
                    if problem := self.health.add(row["loss"], taken) or self._spoilt():
                        self._go_back(problem, tracker)
                        return
                    self._record(row, tracker)
                yield {"step": self.step, **row}

    def _spoilt(self) -> str | None:
        """Return what is not finite of a state that would be saved after this step, or None."""
        config = self.config
        every = (config.checkpoint_every, *([config.ema_snapshots] if config.ema_snapshots else []))
        if not (self.stopped or any(map(self._due, every))):
            return None
        found = self.learner.spoilt()
        if not distributed.any_of(found is not None, self.processes, self.learner.device):
            return None
        return f"the {found or 'weights of another process'} are not finite"

    def _go_back(self, problem: str, tracker: Tracker | None) -> None:
        """Restore the last good checkpoint; if the run fails again without a further one, the checkpoint before it."""
        limit = self._returns[-1] if self._returns and self.saved <= self._returns[-1] else self.step
        good = distributed.from_first(lambda: run_directory.go_back(self.out, limit), self.processes)
        if good is None:
            further = "further " if self._returns else ""
            raise FloatingPointError(
                f"{problem} at step {self.step}, and there is no {further}checkpoint to go back to: choose a smaller lr"
            )
        failed, factor = self.step, self.learner.lr_factor * self.config.rollback_lr
        self._restore(good)
        self.learner.lr_factor = factor
        self._returns.append(self.step)
        self.saved = self.step
        if tracker is not None:
            tracker.rewind(self.step)
            slower = f", with the learning rate times {factor:g}" if factor < 1 else ""
            warnings.warn(
                f"{problem}: back from step {failed} to the checkpoint of step {self.step}{slower}", stacklevel=2
            )

    def _step(self, learner: Learner, prefetched: Iterator[tuple[torch.Tensor, ...]]) -> dict[str, float]:
        """Take one step, and return its measurements."""
        adapt_threads()
        started = time.perf_counter()
        drawn = next(prefetched)
        waited = time.perf_counter() - started
        means = learner.step(self.step, drawn)
        self.step += 1
        row = dict(zip(means, torch.stack(list(means.values())).tolist()))  # waits for the GPU
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
            self._patiently(partial(tracker.write_row, self.step, self.step * config.batch_size))
        if (every := config.ema_snapshots) and self._due(every):
            self._patiently(partial(snapshots.save, self.out, self.learner.averages, self.step, every, self.writes))
        ends = self.stopped or self.step == config.steps
        if ends or (self._due(config.checkpoint_every) and self.health.is_good):
            if not self.health.is_good:
                warnings.warn(f"step {self.step}, the last one, had no finite loss, or one far too high", stacklevel=2)
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
                tracker.add_metrics(self._patiently(partial(self._measured, measured, network)))
            tracker.add_pictures(self.out / "samples", self.step)

    def _save(self, tracker: Tracker | None) -> None:
        """Write a checkpoint, and then the curves and the models with their cards, which never stop the training."""
        config, learner = self.config, self.learner
        self.metrics = {} if tracker is None else tracker.latest
        if tracker is not None:
            tracker.flush()
        if tracker is not None or config.shard:  # then every process writes its part
            state = checkpointing.state_of(learner, self.step) | {"health": self.health.state_dict()}
            state |= {} if tracker is None else {"row": tracker.state_dict()}
            kept = config.keep_checkpoints, config.keep_every
            self._patiently(partial(checkpointing.save, self.out, state, self.processes, *kept, self._descriptions()))
        self.saved = self.step
        self._write_models(tracker)

    def _patiently(self, write: Callable[[], T]) -> T:
        """Return what a function returns that writes something; it is called again when there is space for it."""
        return when_there_is_space(write, self.config.disk_wait, lambda: self._stop)

    def _complete(self, tracker: Tracker | None) -> None:
        """Write what is missing of a finished run that was killed after its last checkpoint."""
        named = self.learner.averages[: len(self.config.profiles)]
        folders = [self.out / averages.folder_of(average, named[0]) for average in named]
        with self._guard():
            whole = distributed.from_first(lambda: all(is_of_step(f, self.step) for f in folders), self.processes)
            if not whole:
                if tracker is not None:
                    tracker.resume(self._unfinished_row)
                    self.metrics = tracker.latest
                self._write_models(tracker)

    def _write_models(self, tracker: Tracker | None) -> None:
        """Write the curves and the models with their cards. If the network is sharded, all processes must call this."""
        config, learner = self.config, self.learner
        if tracker is not None:
            not_fatal("curves.png", tracker.plot)
        details = RunDetails(self.out, self.dataset, learner.device, self.processes.count)
        for average in learner.averages[: len(config.profiles)]:
            model, folder = self.model_of(average), self.out / averages.folder_of(average, learner.average)
            details = replace(details, samples=average is learner.average)
            if tracker is not None and not_fatal(f"the model in {folder}", partial(model.save, folder)):
                not_fatal(f"the model card in {folder}", partial(write_card, folder, model, details))

    def _descriptions(self) -> dict[str, Mapping[str, Any]]:
        """Return what a checkpoint says of the run, in case the files outside that say it are damaged."""
        found: dict[str, Mapping[str, Any]] = {}
        with suppress(ValueError, TypeError):  # of a task or of provenance that cannot be written
            model = self.task.as_model(self.learner.plain, self._training_record(self.learner.average))
            found[native.CONFIG] = json.loads(json.dumps(content_of(model)))
        record = run_settings.read(self.out)
        return found if record is None else found | {run_settings.FILE: record}

    def _measured(self, measured: Measured, network: nn.Module) -> dict[str, float]:
        """Return metrics of the averaged network; none if memory or the disk is full, or a number is infinite."""
        try:
            found = measured(network, self.out / "samples", self.step)
            self._names_measured |= found.keys()
            return found
        except (FloatingPointError, torch.OutOfMemoryError) as error:  # the loss is finite, so that training goes on
            what = "preview" if measured == self.task.preview else "measurement"
            warnings.warn(f"no {what} at step {self.step}: {str(error).splitlines()[0]}", stacklevel=2)
            return {}

    def _due(self, every: int) -> bool:
        """Whether something is done at this step: at every multiple of `every`, and at the last one."""
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
        return self.task.as_model(self.learner.averaged_network(average), self._training_record(average))

    def _training_record(self, average: EMA) -> dict[str, Any]:
        """Return how the weights of an average were trained."""
        metrics = self.metrics
        if average is not self.learner.average:  # it was not measured
            metrics = without(metrics, *self._names_measured)
        state = {"steps": self.step, "images": self.step * self.config.batch_size, **metrics}
        return {**state, **self.provenance, "average": str(average.profile), "train": asdict(self.config)}

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


def is_of_step(folder: Path, step: int) -> bool:
    """Whether a folder holds a whole model of this step, and its card."""
    try:
        native.verify(folder)
        return native.read_about(folder).training.get("steps") == step and (folder / CARD).exists()
    except CheckpointError:
        return False


def not_fatal(what: str, action: Callable[[], object]) -> bool:
    """Write something beside the checkpoint, which is there, and return whether that worked. An error is a warning."""
    try:
        action()
    except Exception as error:  # such as a picture that cannot be read
        warnings.warn(f"could not write {what}: {error}; the checkpoint is there", stacklevel=2)
        return False
    return True
