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

from . import checkpointing, distributed, ema_state, run_directory, run_settings, snapshots
from .card import RunDetails, write_card
from .choices import record_of
from .config import TrainConfig
from .defaults import fill_defaults
from .ema import EMA
from .loss_monitor import LossMonitor
from .prefetch import prefetch
from .services import RunFacts, open_services, services_of
from .step import Learner
from .tasks import M, Task
from .trackers import Tracker
from .validation import Measure

T = TypeVar("T")
MetricsFunction = Callable[[nn.Module, Path, int], dict[str, float]]
"""(network, folder for pictures, step) -> metrics."""


class TrainingRun(Iterator[dict[str, float]], Generic[M]):
    """A training run: an iterator over `config.steps` optimiser steps.

    Each step yields its measurements: "step", "loss" and the terms of the loss, "grad_norm", "lr", "images_per_second",
    "data_wait" (share of the time spent waiting for images) and "memory_gib" (peak memory of the device, or of the
    process on a CPU). The run directory gets checkpoints/ (to resume from), model/ (the averaged weights), log.csv,
    metrics.jsonl, curves.png, samples/ and tensorboard/. A run directory that holds a checkpoint is resumed.

    Under torchrun or srun, all processes train together, each on its part of every batch; the first one writes the run
    directory. The result does not depend on their number, up to rounding, unless the network has dropout.

    task: network and loss, see `tasks`
    dataset: training images, see `admg.data`
    out: run directory
    provenance: entries for the "training" section of the model's config.json, such as the name of the data
    measures: periodic measurements with the averaged weights, such as the loss on held-out images
    overwrite: start over in a directory that holds another run, whose files are removed

    A step without a finite loss or gradient is skipped. After ten of them in a row, if the loss is far above its level
    for 25 steps, or if the state that is to be saved holds NaN, the run returns to its last good checkpoint
    automatically, with a warning.

    Raises CheckpointError, which is a ValueError, if `out` holds a run of another network or with other settings;
    ValueError if the batch cannot be divided among the processes, or if another process trains in `out`. When iterated:
    FloatingPointError if there is no checkpoint to go back to, and ProcessLostError, which is an OSError, if another
    process has ended. The steps seed torch's global generator.
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
        self.config = fill_defaults(config or TrainConfig(), {} if overwrite else record_of(self.out))
        device = choose_device(self.config.device)
        distributed.share_of(self.config.batch_size, self.config.accumulate, Processes.from_environment())
        if Processes.from_environment().count > 1 and self.config.disk_wait > distributed.MAX_WAIT_MINUTES:
            raise ValueError(
                f"disk_wait must be at most {distributed.MAX_WAIT_MINUTES} minutes with several processes, which wait "
                f"for the first one, got {self.config.disk_wait:g}"
            )
        self._group_is_ours = not dist.is_initialized()
        self.processes = distributed.join(device, alone=self.config.shard)
        self.heartbeat = distributed.start_heartbeat(self.processes)
        self.provenance = dict(provenance or {})
        self.metrics: dict[str, float] = {}
        self._measured_metrics: set[str] = set()
        self.health = LossMonitor()
        self.stopped = self._stop = False
        self._overwrite = overwrite
        self._rollback_steps: list[int] = []
        self._checkpoints: list[Path] = []
        self.settings: Mapping[str, Any] = {}
        self.changes: Mapping[str, tuple[Any, Any]] = {}
        """Options changed since the last start, as (old, new) pairs; in the first process."""
        self._unfinished_row: Mapping[str, Any] | None = None
        try:
            with self._reporting_failures():
                self._initialise(device)
        except BaseException:
            self._shut_down()
            raise
        self.first_step = self.saved = self.step
        """Number of steps of the last checkpoint."""
        self._steps = self._train()

    def _initialise(self, device: torch.device) -> None:
        """Create the learner, and restore the last checkpoint of the run directory if it has one."""

        def inspect_directory() -> Path | None:
            self.settings = run_settings.settings_of(self.task, self.dataset, self.config, self.provenance)
            self._checkpoints = checkpointing.saved_checkpoints(self.out)
            checkpoint = None if self._overwrite else checkpointing.latest(self.out)
            if not self._checkpoints:
                run_directory.check_no_samples(self.out)
            if checkpoint is not None:
                run_settings.check_settings(self.out, self.settings, run_settings.defaults_of(self.task))
                snapshots.check_spacing(self.out, self.config.ema_snapshots or 0, self._recorded_snapshots())
            elif not self._overwrite:
                run_directory.check_new(self.out)
            return checkpoint

        checkpoint = distributed.from_first(inspect_directory, self.processes)
        if self.config.ema_snapshots is None:
            every = 0 if checkpoint is None else self._recorded_snapshots()
            self.config = replace(self.config, ema_snapshots=every)
        state = None if checkpoint is None else checkpointing.read(checkpoint, mmap=True)
        self.config = ema_state.resume_profiles(self.config, state, self.out)
        self.learner = Learner(self.task, self.config, device, self.processes)
        self.step = 0
        if checkpoint is not None:
            self._restore(checkpoint)
            self.changes = run_settings.changes(self.out, self.config, self.provenance) if self.writes else {}
        if self.writes:
            check_output_folder(self.out)  # last: a refused run leaves no empty directory

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
        """Request the run to end after the current step, with a checkpoint. Signal handlers may call this.

        With several processes, calling it in one of them is enough.
        """
        self._stop = True

    def _train(self) -> Generator[dict[str, float]]:
        with ExitStack() as stack:
            with self._reporting_failures():
                distributed.from_first(lambda: self._take_directory(stack), self.processes)
            tracker = stack.enter_context(closing(self._tracker())) if self.writes else None
            if self.step >= self.config.steps:
                self._complete(tracker)
            while self.step < self.config.steps and not self.stopped:
                yield from self._train_until_rollback(tracker)
            with self._reporting_failures():
                distributed.wait_for_all(self.processes)  # the first process may hold the store of the others

    def _take_directory(self, stack: ExitStack) -> None:
        """Lock the run directory until the stack is closed. Raises ValueError if another process trains there."""
        stack.enter_context(run_directory.locked(self.out))
        if self._overwrite:
            run_directory.clear(self.out)
        elif checkpointing.saved_checkpoints(self.out) != self._checkpoints:
            raise ValueError(f"another process has trained in {self.out} in the meantime: start again")
        else:
            run_directory.remove_later_checkpoints(self.out, self.step)  # damaged checkpoints
            checkpointing.remove_old(self.out, self.config.keep_checkpoints, self.config.keep_every)
        run_settings.write(self.out, self.settings, self.config, self.provenance, self.step)

    def _train_until_rollback(self, tracker: Tracker | None) -> Generator[dict[str, float]]:
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
            snapshots.remove_later_snapshots(self.out, self.step)
            tracker.resume(self._unfinished_row)
        with closing(prefetch(self.task, stream, config.seed, self.step, self.learner.device, processes)) as prefetched:
            while self.step < config.steps and not self.stopped:
                with self._reporting_failures():
                    row = self._step(self.learner, prefetched)
                    fp16 = "loss_scale" in row  # in which skipped steps are usual
                    taken = math.isfinite(row["loss"]) if fp16 else not row["skipped"]
                    self.stopped = distributed.any_of(self._stop, processes, self.learner.device)
                    problem = self.health.add(row["loss"], taken) or self._nonfinite_state()
                    if problem is not None:
                        self._roll_back(problem, tracker)
                        return
                    self._record(row, tracker)
                yield {"step": self.step, **row}

    def _nonfinite_state(self) -> str | None:
        """Return a description of numbers that are not finite in a state to be saved after this step, or None."""
        config = self.config
        every = (config.checkpoint_every, *([config.ema_snapshots] if config.ema_snapshots else []))
        if not (self.stopped or any(map(self._due, every))):
            return None
        nonfinite = self.learner.first_nonfinite()
        if not distributed.any_of(nonfinite is not None, self.processes, self.learner.device):
            return None
        return f"the {nonfinite or 'weights of another process'} are not finite"

    def _roll_back(self, problem: str, tracker: Tracker | None) -> None:
        """Restore the last good checkpoint, or an earlier one if the run fails again before the next checkpoint."""
        limit = self.step
        if self._rollback_steps and self.saved <= self._rollback_steps[-1]:  # no new checkpoint since the last rollback
            limit = self._rollback_steps[-1]
        good = distributed.from_first(lambda: run_directory.roll_back(self.out, limit), self.processes)
        if good is None:
            further = "further " if self._rollback_steps else ""
            raise FloatingPointError(
                f"{problem} at step {self.step}, and there is no {further}checkpoint to go back to: choose a smaller lr"
            )
        failed, factor = self.step, self.learner.lr_factor * self.config.rollback_lr
        self._restore(good)
        self.learner.lr_factor = factor
        self._rollback_steps.append(self.step)
        self.saved = self.step
        if tracker is not None:
            tracker.rewind(self.step)
            slower = f", with the learning rate times {factor:g}" if factor < 1 else ""
            warnings.warn(
                f"{problem}: returning from step {failed} to the checkpoint of step {self.step}{slower}", stacklevel=2
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

    def _reporting_failures(self) -> AbstractContextManager[None]:
        """Return the context of code that may fail because another process has ended."""
        return nullcontext() if self.heartbeat is None else self.heartbeat.reporting_failures()

    def _tracker(self) -> Tracker:
        facts = RunFacts(self.out, self.step, {**self.provenance, "train": asdict(self.config)})
        return Tracker(self.out, self.step, open_services(services_of(self.config.log), facts))

    def _costs(self, waited: float, seconds: float) -> dict[str, float]:
        """Return the speed and memory of a step.

        waited: seconds of waiting for its images
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
        self._run_measures(tracker)
        if tracker is not None and self._due(config.log_every):
            self._retry_when_disk_is_full(partial(tracker.write_row, self.step, self.step * config.batch_size))
        if (every := config.ema_snapshots) and self._due(every):
            arguments = self.out, self.learner.averages, self.step, every, self.writes
            self._retry_when_disk_is_full(partial(snapshots.save, *arguments))
        ends = self.stopped or self.step == config.steps
        if ends or (self._due(config.checkpoint_every) and self.health.is_good):
            if not self.health.is_good:
                bad = f"step {self.step}, the last one, had a loss that was not finite or too high"
                warnings.warn(bad, stacklevel=2)
            self._save(tracker)

    def _run_measures(self, tracker: Tracker | None) -> None:
        """Draw previews and measure the averaged network, each if it is due."""
        due: list[MetricsFunction] = [self.task.preview] if self._due(self.config.preview_every) else []
        due += [partial(measure, self.task) for measure in self.measures if self._due(measure.every)]
        if not due:
            return
        network = self.learner.averaged_network()
        if tracker is not None:
            for function in due:
                tracker.add_metrics(self._retry_when_disk_is_full(partial(self._compute_metrics, function, network)))
            tracker.add_pictures(self.out / "samples", self.step)

    def _save(self, tracker: Tracker | None) -> None:
        """Write a checkpoint, and then the curves and the models with their cards, which never stop the training."""
        config, learner = self.config, self.learner
        self.metrics = {} if tracker is None else tracker.latest
        if tracker is not None:
            tracker.flush()
        if tracker is not None or config.shard:  # then every process writes its part
            state = checkpointing.checkpoint_state(learner, self.step) | {"health": self.health.state_dict()}
            state |= {} if tracker is None else {"row": tracker.state_dict()}
            retention = config.keep_checkpoints, config.keep_every
            arguments = self.out, state, self.processes, *retention, self._descriptions()
            self._retry_when_disk_is_full(partial(checkpointing.save, *arguments))
        self.saved = self.step
        self._write_models(tracker)

    def _retry_when_disk_is_full(self, write: Callable[[], T]) -> T:
        """Return the result of a function that writes files; it is called again when the disk has space."""
        return when_there_is_space(write, self.config.disk_wait, lambda: self._stop)

    def _complete(self, tracker: Tracker | None) -> None:
        """Write the missing files of a finished run that was killed after its last checkpoint."""
        named = self.learner.averages[: len(self.config.profiles)]
        folders = [self.out / ema_state.folder_of(average, named[0]) for average in named]
        with self._reporting_failures():
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
            warn_on_error("curves.png", tracker.plot)
        details = RunDetails(self.out, self.dataset, learner.device, self.processes.count)
        for average in learner.averages[: len(config.profiles)]:
            model, folder = self.model_of(average), self.out / ema_state.folder_of(average, learner.average)
            details = replace(details, samples=average is learner.average)
            if tracker is not None and warn_on_error(f"the model in {folder}", partial(model.save, folder)):
                warn_on_error(f"the model card in {folder}", partial(write_card, folder, model, details))

    def _descriptions(self) -> dict[str, Mapping[str, Any]]:
        """Return the description of the run for a checkpoint, a backup in case the files outside are damaged."""
        descriptions: dict[str, Mapping[str, Any]] = {}
        with suppress(ValueError, TypeError):  # a task or provenance that cannot be serialised
            model = self.task.as_model(self.learner.plain, self._training_record(self.learner.average))
            descriptions[native.CONFIG] = json.loads(json.dumps(content_of(model)))
        record = run_settings.read(self.out)
        return descriptions if record is None else descriptions | {run_settings.FILE: record}

    def _compute_metrics(self, function: MetricsFunction, network: nn.Module) -> dict[str, float]:
        """Return metrics of the averaged network; none if memory or the disk is full, or a number is infinite."""
        try:
            metrics = function(network, self.out / "samples", self.step)
            self._measured_metrics |= metrics.keys()
            return metrics
        except (FloatingPointError, torch.OutOfMemoryError) as error:  # the loss is finite: training goes on
            what = "preview" if function == self.task.preview else "measurement"
            warnings.warn(f"no {what} at step {self.step}: {str(error).splitlines()[0]}", stacklevel=2)
            return {}

    def _due(self, every: int) -> bool:
        """Whether a periodic action is due at this step: at every multiple of `every`, and at the last step."""
        return self.step % every == 0 or self.step == self.config.steps

    @property
    def model(self) -> M:
        """The model with the averaged weights, in evaluation mode: of the first average, if there are several.

        It shares its weights with the run: they change with each further step. If the network is sharded, all processes
        must access it together, and the first one gets the weights.
        """
        return self.model_of(self.learner.average)

    @property
    def other_models(self) -> list[Path]:
        """Folders of the models with the other averages that `config.ema` names."""
        first, *others = self.learner.averages[: len(self.config.profiles)]
        return [self.out / ema_state.folder_of(average, first) for average in others]

    def model_of(self, average: EMA) -> M:
        """Return the model with the weights of one of `learner.averages`, as `model` does."""
        return self.task.as_model(self.learner.averaged_network(average), self._training_record(average))

    def _training_record(self, average: EMA) -> dict[str, Any]:
        """Return the provenance of the weights of an average."""
        metrics = self.metrics
        if average is not self.learner.average:  # it was not measured
            metrics = without(metrics, *self._measured_metrics)
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
        self._shut_down()

    def _shut_down(self) -> None:
        if self.heartbeat is not None:
            self.heartbeat.stop()
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


def warn_on_error(what: str, action: Callable[[], object]) -> bool:
    """Write files besides the existing checkpoint, and return whether this succeeded. Errors become warnings."""
    try:
        action()
    except Exception as error:  # such as a picture that cannot be read
        warnings.warn(f"could not write {what}: {error}; the checkpoint is not affected", stacklevel=2)
        return False
    return True
