"""What a run writes after its steps: the log, previews, snapshots of the averages, checkpoints and models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from admg.disk import when_there_is_space
from admg.engine.device import Processes
from admg.warn import warn

from . import checkpointing, snapshots
from .loss_monitor import LossMonitor
from .run_models import RunModels, warn_on_error
from .tasks import M
from .trackers import Tracker
from .validation import Measure

T = TypeVar("T")
MetricsFunction = Callable[[nn.Module, Path, int], dict[str, float]]
"""(network, folder for pictures, step) -> metrics."""


class Recorder(Generic[M]):
    """Writes the run directory. All processes call it after each step; the first one writes.

    out: run directory
    models: models of the run
    measures: periodic measurements with the averaged weights
    health: whether the training is failing, in which case there are no checkpoints
    stopping: returns whether the user has requested the run to end

    tracker: the log, which the run opens when it begins; None in all processes but the first
    saved: number of steps of the last checkpoint
    """

    def __init__(
        self,
        out: Path,
        models: RunModels[M],
        measures: Sequence[Measure],
        health: LossMonitor,
        processes: Processes,
        stopping: Callable[[], bool],
    ):
        self.out, self.models, self.measures, self.health, self.processes = out, models, measures, health, processes
        self.task, self.learner, self.config = models.task, models.learner, models.learner.config
        self.stopping = stopping
        self.tracker: Tracker | None = None
        self.saved = 0

    def resume(self, step: int, unfinished_row: Mapping[str, Any] | None) -> None:
        """Prepare for the steps after `step`: remove what a run that has gone further wrote after it.

        unfinished_row: state of the log in the checkpoint of this step
        """
        if self.tracker is not None:
            snapshots.remove_later_snapshots(self.out, step)
            self.tracker.resume(unfinished_row)

    def rewind(self, step: int) -> None:
        """Drop the rows of the log after a step to which the run has returned."""
        self.saved = step
        if self.tracker is not None:
            self.tracker.rewind(step)

    def saves_state(self, step: int, stopped: bool) -> bool:
        """Whether weights are saved after this step, in a checkpoint or a snapshot."""
        every = (self.config.checkpoint_every, *([self.config.ema_snapshots] if self.config.ema_snapshots else []))
        return stopped or any(self._due(step, steps) for steps in every)

    def record(self, step: int, row: Mapping[str, float], stopped: bool) -> None:
        """Write the log, previews, snapshots and a checkpoint, each if it is due after a step.

        row: measurements of the step
        stopped: whether it was the last one of this process
        """
        config, tracker = self.config, self.tracker
        if tracker is not None:
            tracker.add(row)
        measured = self._run_measures(step)
        if tracker is not None and (measured or self._due(step, config.log_every)):
            self._retry_when_disk_is_full(partial(tracker.write_row, step, step * config.batch_size))
        if (every := config.ema_snapshots) and self._due(step, every):
            arguments = self.out, self.learner.averages, step, every, tracker is not None
            self._retry_when_disk_is_full(partial(snapshots.save, *arguments))
        ends = stopped or step == config.steps
        if ends or (self._due(step, config.checkpoint_every) and self.health.is_good):
            if not self.health.is_good:
                bad = f"step {step}, the last one, had a loss that was not finite or too high"
                warn(bad)
            self._save(step)

    def complete(self, step: int, unfinished_row: Mapping[str, Any] | None) -> None:
        """Write the models of a finished run that was killed after its last checkpoint."""
        if self.tracker is not None:
            self.tracker.resume(unfinished_row)
            self.models.metrics = self.tracker.latest
        self._write_models(step)

    def _save(self, step: int) -> None:
        """Write a checkpoint, and then the curves and the models with their cards, which never stop the training."""
        config, tracker = self.config, self.tracker
        self.models.metrics = {} if tracker is None else tracker.latest
        if tracker is not None:
            tracker.flush()
        if tracker is not None or config.shard:  # then every process writes its part
            state = checkpointing.checkpoint_state(self.learner, step) | {"health": self.health.state_dict()}
            state |= {} if tracker is None else {"row": tracker.state_dict()}
            retention = config.keep_checkpoints, config.keep_every
            arguments = self.out, state, self.processes, *retention, self.models.descriptions(step)
            self._retry_when_disk_is_full(partial(checkpointing.save, *arguments))
        self.saved = step
        self._write_models(step)

    def _write_models(self, step: int) -> None:
        """Write the curves and the models with their cards. If the network is sharded, all processes must call this."""
        if self.tracker is not None:
            warn_on_error("curves.png", self.tracker.plot)
        self.models.write(step, self.tracker is not None)

    def _run_measures(self, step: int) -> bool:
        """Draw previews and measure the averaged network, each if it is due. Return whether there are new metrics."""
        due: list[MetricsFunction] = [self.task.preview] if self._due(step, self.config.preview_every) else []
        due += [partial(measure, self.task) for measure in self.measures if self._due(step, measure.every)]
        if not due:
            return False
        network = self.learner.averaged_network()  # by all processes together
        if self.tracker is None:
            return False
        metrics: dict[str, float] = {}
        for function in due:
            metrics |= self._retry_when_disk_is_full(partial(self._metrics_of, function, network, step))
        self.tracker.add_metrics(metrics)
        self.tracker.add_pictures(self.out / "samples", step)
        return bool(metrics)

    def _metrics_of(self, function: MetricsFunction, network: nn.Module, step: int) -> dict[str, float]:
        """Return metrics of the averaged network; none if memory or the disk is full, or a number is infinite."""
        try:
            metrics = function(network, self.out / "samples", step)
            self.models.measured |= metrics.keys()
            return metrics
        except (FloatingPointError, torch.OutOfMemoryError) as error:  # the loss is finite: training goes on
            what = "preview" if function == self.task.preview else "measurement"
            warn(f"no {what} at step {step}: {str(error).splitlines()[0]}")
            return {}

    def _due(self, step: int, every: int) -> bool:
        """Whether a periodic action is due after this step: at every multiple of `every`, and at the last step."""
        return step % every == 0 or step == self.config.steps

    def _retry_when_disk_is_full(self, write: Callable[[], T]) -> T:
        """Return the result of a function that writes files; it is called again when the disk has space."""
        return when_there_is_space(write, self.config.disk_wait, self.stopping)
