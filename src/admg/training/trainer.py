"""The training loop, which is the same for every task.

Step k depends only on the seed and k (batch, noise, timesteps, dropout), so a run that was killed and resumed computes
what an uninterrupted run would have computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Generic

import torch
import torch.distributed as dist

from admg.data import ImageDataset, batches, from_dataset
from admg.data.split import known_labels
from admg.engine import adapt_threads
from admg.engine.device import Processes, choose_device
from admg.engine.memory import peak_memory
from admg.files import check_output_folder
from admg.warn import warn

from . import checkpointing, distributed, ema_state, run_directory, run_settings, snapshots
from .card import RunDetails
from .choices import record_of
from .config import TrainConfig
from .defaults import fill_defaults
from .loss_monitor import LossMonitor
from .opening import check_fits
from .prefetch import prefetch
from .recorder import Recorder
from .run_models import RunModels
from .services import RunFacts, open_services, services_of
from .step import Learner
from .stopping import deferred_interrupt
from .tasks import M, Task
from .trackers import Tracker
from .validation import Measure


class TrainingRun(Iterator[dict[str, float]], Generic[M]):
    """A training run: an iterator over `config.steps` optimiser steps.

    Each step yields its measurements: "step", "loss" and the terms of the loss, "grad_norm", "lr", "images_per_second",
    "data_wait" (share of the time spent waiting for images) and "memory_gib" (peak memory of the device, or of the
    process on a CPU). The run directory gets checkpoints/ (to resume from), model/ (the averaged weights), log.csv,
    metrics.jsonl, curves.png, samples/ and tensorboard/. A run directory that holds a checkpoint is resumed.

    Under torchrun or srun, all processes train together, each on its part of every batch; the first one writes the run
    directory. The result does not depend on their number, up to rounding, unless the network has dropout.

    task: network and loss, see `tasks`; the run keeps a copy, so that later changes of its fields have no effect
    dataset: training images, see `admg.data`
    out: run directory
    provenance: entries for the "training" section of the model's config.json, such as the name of the data
    measures: periodic measurements with the averaged weights, such as the loss on held-out images
    overwrite: start over in a directory that holds another run, whose files are removed

    A step without a finite loss or gradient is skipped. After ten of them in a row, if the loss is far above its level
    for 25 steps, or if the state that is to be saved holds NaN, the run returns to its last good checkpoint
    automatically, with a warning.

    Ctrl-C ends the run after the current step, with a checkpoint, and then raises KeyboardInterrupt. A loop that is
    left by `break` pauses the run, whose directory stays locked until it ends or `close()` is called: use `stop()`
    instead, which ends the loop with a checkpoint.

    Raises CheckpointError, which is a ValueError, if `out` holds a run of another network or with other settings;
    ValueError if the images or labels are not those of the network, if the batch cannot be divided among the processes,
    or if another process trains in `out`. When iterated: FloatingPointError if there is no checkpoint to go back to,
    and ProcessLostError, which is an OSError, if another process has ended. The steps seed torch's global generator.
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
        for measure in self.measures:
            if measure.every < 1:
                raise ValueError(f"every of {type(measure).__name__} must be at least 1, got {measure.every}")
        self.task, self.dataset, self.out = task, from_dataset(dataset), Path(out).expanduser()
        dataset = self.dataset
        check_fits(task, dataset)
        check_labels, labels = getattr(task, "check_labels", None), known_labels(dataset)
        if check_labels is not None and labels is not None:
            check_labels(torch.from_numpy(labels))
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
        self.first_step = self.recorder.saved = self.step
        """Number of steps done when the run was started."""
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
        details = RunDetails(self.out, self.dataset, self.learner.device, self.processes.count)
        self.models = RunModels(self.task, self.learner, details, self.provenance)
        self.recorder = Recorder(self.out, self.models, self.measures, self.health, self.processes, lambda: self._stop)
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
        begun = [str(average.profile) for average in self.learner.averages if average.count == 0]
        if begun and self.step >= self.config.steps:
            raise ValueError(
                f"the run in {self.out} is finished, so that the average {begun[0]} would only begin: raise steps, or "
                "reconstruct it from snapshots (admg ema)"
            )
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
            if self.writes:
                self.recorder.tracker = stack.enter_context(closing(self._tracker()))
            if self.step >= self.config.steps:
                self._complete()
            while self.step < self.config.steps and not self.stopped:
                yield from self._train_until_rollback()
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

    def _train_until_rollback(self) -> Generator[dict[str, float]]:
        """Take steps to the end, or until the run has gone back to a checkpoint."""
        config, processes, recorder = self.config, self.processes, self.recorder
        stream = batches(
            self.dataset,
            config.batch_size,
            seed=config.seed,
            start=self.step,
            part=(processes.rank, processes.count),
            workers=config.workers,
            sampling=config.class_sampling,
        )
        recorder.resume(self.step, self._unfinished_row)
        with closing(prefetch(self.task, stream, config.seed, self.step, self.learner.device, processes)) as prefetched:
            while self.step < config.steps and not self.stopped:
                with self._reporting_failures():
                    row = self._step(self.learner, prefetched)
                    fp16 = "loss_scale" in row  # in which skipped steps are usual
                    taken = math.isfinite(row["loss"]) if fp16 else not row["skipped"]
                    self.stopped = distributed.any_of(self._stop, processes, self.learner.device)
                    problem = self.health.add(row["loss"], taken)
                    if problem is None and recorder.saves_state(self.step, self.stopped):
                        problem = self._nonfinite_state()
                    if problem is not None:
                        self._roll_back(problem)
                        return
                    recorder.record(self.step, row, self.stopped)
                yield {"step": self.step, **row}

    def _nonfinite_state(self) -> str | None:
        """Return a description of numbers in the state that are not finite, or None. All processes must call this."""
        nonfinite = self.learner.first_nonfinite()
        if not distributed.any_of(nonfinite is not None, self.processes, self.learner.device):
            return None
        return f"the {nonfinite or 'weights of another process'} are not finite"

    def _roll_back(self, problem: str) -> None:
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
        self.recorder.rewind(self.step)
        if self.writes:
            slower = f", with the learning rate times {factor:g}" if factor < 1 else ""
            warn(f"{problem}: returning from step {failed} to the checkpoint of step {self.step}{slower}")

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

    def _complete(self) -> None:
        """Write the missing files of a finished run that was killed after its last checkpoint."""
        with self._reporting_failures():
            if not distributed.from_first(lambda: self.models.are_written(self.step), self.processes):
                self.recorder.complete(self.step, self._unfinished_row)

    @property
    def model(self) -> M:
        """The model with the averaged weights, in evaluation mode: of the first average, if there are several.

        It shares its weights with the run: they change with each further step. If the network is sharded, all processes
        must access it together, and the first one gets the weights.
        """
        return self.models.of(self.learner.average, self.step)

    @property
    def saved(self) -> int:
        """Number of steps of the last checkpoint."""
        return self.recorder.saved

    @property
    def metrics(self) -> Mapping[str, float]:
        """Latest measurements, as of the last checkpoint."""
        return self.models.metrics

    @property
    def other_models(self) -> list[Path]:
        """Folders of the models with the other averages that `config.ema` names."""
        return [self.models.folder_of(average) for average in self.models.averages[1:]]

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(p.numel() for p in self.learner.network.parameters())

    def __next__(self) -> dict[str, float]:
        with deferred_interrupt(self.stop) as interrupt:
            row = next(self._steps)
        if interrupt.received:
            for _ in self._steps:  # ends with a checkpoint, after at most one step
                pass
            raise KeyboardInterrupt
        return row

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
