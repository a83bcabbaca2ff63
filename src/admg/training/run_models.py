"""The models that a run writes: one for each average of the weights that `config.ema` names, with its card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic

from admg.checkpoints import native
from admg.checkpoints.card import CARD
from admg.checkpoints.model import content_of
from admg.checkpoints.provenance import without
from admg.checkpoints.weights import CheckpointError
from admg.files import remove
from admg.warn import warn

from . import ema_state, run_settings
from .card import RunDetails, write_card
from .ema import EMA
from .step import Learner
from .tasks import M, Task


@dataclass
class RunModels(Generic[M]):
    """The averaged networks of a run as models, with their provenance.

    details: facts about the run for the cards
    provenance: entries for the "training" section of each config.json, such as the name of the data
    metrics: latest measurements, which are part of the provenance
    measured: names of the metrics that were measured with the first average, and do not describe the others
    """

    task: Task[M]
    learner: Learner
    details: RunDetails
    provenance: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured: set[str] = field(default_factory=set)

    @property
    def averages(self) -> Sequence[EMA]:
        """The averages that `config.ema` names, without those of the snapshots."""
        return self.learner.averages[: len(self.learner.config.profiles)]

    def folder_of(self, average: EMA) -> Path:
        """Return the folder of the model with this average."""
        return self.details.out / ema_state.folder_of(average, self.learner.average)

    def of(self, average: EMA, step: int) -> M:
        """Return the model with the weights of an average after `step` steps.

        It shares its weights with the run. If the network is sharded, all processes must call this together, and the
        first one gets the weights.
        """
        return self.task.as_model(self.learner.averaged_network(average), self._training_record(average, step))

    def write(self, step: int, writes: bool) -> None:
        """Write the models and their cards. What fails becomes a warning, since the training can go on.

        writes: whether this process writes; if the network is sharded, all processes must call this together
        """
        for average in self.averages:
            model, folder = self.of(average, step), self.folder_of(average)
            details = replace(self.details, samples=average is self.learner.average)
            if writes and warn_on_error(f"the model in {folder}", partial(model.save, folder)):
                warn_on_error(f"the model card in {folder}", partial(write_card, folder, model, details))
                self._remove_former(average)

    def _remove_former(self, average: EMA) -> None:
        """Remove an older model with this average, in the folder that it had before the averages were reordered."""
        former = self.details.out / ema_state.own_folder(average)
        if former != self.folder_of(average):
            remove(former)

    def are_written(self, step: int) -> bool:
        """Whether all models of this step are there, with their cards."""
        return all(is_of_step(self.folder_of(average), step) for average in self.averages)

    def descriptions(self, step: int) -> dict[str, Mapping[str, Any]]:
        """Return the description of the run for a checkpoint, a backup in case the files outside are damaged."""
        descriptions: dict[str, Mapping[str, Any]] = {}
        with suppress(ValueError, TypeError):  # a task or provenance that cannot be serialised
            model = self.task.as_model(self.learner.plain, self._training_record(self.learner.average, step))
            descriptions[native.CONFIG] = json.loads(json.dumps(content_of(model)))
        record = run_settings.read(self.details.out)
        return descriptions if record is None else descriptions | {run_settings.FILE: record}

    def _training_record(self, average: EMA, step: int) -> dict[str, Any]:
        """Return the provenance of the weights of an average."""
        config = self.learner.config
        metrics = self.metrics if average is self.learner.average else without(self.metrics, *self.measured)
        state = {"steps": step, "images": step * config.batch_size, **metrics}
        return {**state, **self.provenance, "average": str(average.profile), "train": asdict(config)}


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
        warn(f"could not write {what}: {error}; the checkpoint is not affected")
        return False
    return True
