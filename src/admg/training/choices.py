"""Defaults of options that are not given: those of the resumed run, or values chosen for the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from admg.checkpoints import native
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, SuperResConfig, UNetConfig

from .config import LABEL_DROPOUT, ObjectiveConfig, ResolvedConfig, TrainConfig
from .defaults import PROCESS, fill_defaults, network_defaults, unset_fields
from .initialisation import folder_to_resume

FROM_DATA = ("image_size", "image_channels", "num_classes", "learn_variance", "small_size")
"""Fields of a network that are determined by the data and by other options."""


@dataclass
class Choices:
    """Chooses the options of a run that were not given.

    image_size, images: side and number of the training images
    resumed: config.json of the run that is resumed, whose options are kept; {} for a new run
    initial: whether the run starts from a model, which has a network and a process
    made: the options that were chosen
    """

    image_size: int
    images: int
    resumed: Mapping[str, Any] = field(default_factory=dict)
    initial: bool = False
    made: dict[str, Any] = field(default_factory=dict)

    def training(self, config: TrainConfig | None) -> ResolvedConfig:
        """Return the options of training with a number for each."""
        settled = fill_defaults(config or TrainConfig(), self.resumed)
        if not isinstance(config, ResolvedConfig):
            self._chose({name: getattr(settled, name) for name in unset_fields(config or TrainConfig())})
        return settled

    def objective(self, given: ObjectiveConfig) -> ObjectiveConfig:
        """Return the objective with a share of labels to drop: if it is not given, that of the run."""
        if given.label_dropout is not None:
            return given
        training = self.resumed.get("training", {})
        before = (training.get("objective") or {}).get("label_dropout", training.get("label_dropout"))
        return dataclasses.replace(given, label_dropout=LABEL_DROPOUT if before is None else before)

    def process(
        self, given: DiffusionConfig | Mapping[str, Any] | None, defaults: Mapping[str, Any] = PROCESS
    ) -> DiffusionConfig | Mapping[str, Any]:
        """Return the diffusion process, or its fields: those that are not given are of the run, or of `defaults`."""
        if isinstance(given, DiffusionConfig):
            return given
        return self._filled(given or {}, self.resumed.get("diffusion") or defaults)

    def network(
        self, given: UNetConfig | ClassifierConfig | SuperResConfig | Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """Return the fields of the architecture that do not follow from the data."""
        if given is not None and not isinstance(given, Mapping):
            return dataclasses.asdict(given)
        recorded = {k: v for k, v in (self.resumed.get("network") or {}).items() if k not in FROM_DATA}
        return self._filled(given or {}, recorded or network_defaults(given or {}, self.image_size, self.images))

    def _filled(self, given: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
        if self.initial:
            return dict(given)
        self._chose({name: value for name, value in others.items() if name not in given})
        return {**others, **given}

    def _chose(self, values: Mapping[str, Any]) -> None:
        if not self.resumed:
            self.made.update(values)

    @property
    def record(self) -> dict[str, Any]:
        """The choices, for the provenance of the model: those of a run that is resumed are kept, as is its "init"."""
        before = self.resumed.get("training", {})
        kept = {name: before.get(name) for name in ("chosen", "init")} if self.resumed else {"chosen": self.made}
        return {name: value for name, value in kept.items() if value}


def record_of(out: Path | str) -> Mapping[str, Any]:
    """Return the content of config.json of the run in a directory; {} if there is none to resume."""
    folder = folder_to_resume(out)
    if folder is None:
        return {}
    about = native.read_about(folder)
    return {
        "network": dataclasses.asdict(about.network),
        "diffusion": dataclasses.asdict(about.diffusion),
        "training": about.training,
    }
