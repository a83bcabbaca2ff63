"""The models that visitors can choose from, each with its classifier. No other model can be loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from admg.checkpoints import loading
from admg.checkpoints.labels import Labels
from admg.checkpoints.loading import as_model
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.published import SamplingSettings
from admg.diffusion.gaussian import Images, Index, Prediction
from admg.generation.guide_specs import load_classifier_for


@dataclass(frozen=True)
class Entry:
    """A model of the catalog.

    name: argument of admg.load
    classifier_name: argument of admg.load_classifier; "" if there is none
    """

    name: str
    model: Model
    classifier_name: str = ""
    classifier: Classifier | None = None

    @property
    def labels(self) -> Labels:
        """The labels of the model, or else those of its classifier."""
        return self.model.labels if self.model.labels.count or self.classifier is None else self.classifier.labels

    @property
    def label_names(self) -> list[str]:
        """The name of each label, or its number as text."""
        return [self.labels.name(number) for number in range(self.labels.count)]

    @property
    def recommended(self) -> SamplingSettings:
        """The guidance scale, sampler and steps to start with."""
        return loading.recommended(self.name)


class Catalog:
    """The models of a studio, loaded once.

    names: "MODEL", an argument of admg.load, used with its own classifier if it has one; or "MODEL,CLASSIFIER"
    Raises ValueError like admg.load, and for an upsampler or a classifier that does not match its model.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str = "cpu"):
        if not names:
            raise ValueError("the studio needs at least one model")
        found = [_load(name, torch.device(device)) for name in names]
        self.entries = {entry.name: entry for entry in found}

    def __getitem__(self, name: Any) -> Entry:
        """Return the entry of a name. Raises ValueError for a name that is not in the catalog."""
        if not isinstance(name, str) or name not in self.entries:
            raise ValueError(f"unknown model {str(name)[:80]!r}: this studio has {', '.join(self.entries)}")
        return self.entries[name]

    @property
    def names(self) -> list[str]:
        return list(self.entries)

    @property
    def first(self) -> Entry:
        """The model that is selected initially."""
        return next(iter(self.entries.values()))


def _load(spec: str, device: torch.device) -> Entry:
    name, _, classifier = spec.partition(",")
    model = as_model(name)
    if model.upsamples:
        raise ValueError(f"{name} is an upsampler; the studio needs models that generate images from noise")
    chosen = classifier or loading.default_classifier(name) or ""
    loaded = load_classifier_for(model, chosen).to(device) if chosen else None
    return Entry(name, model.to(device), chosen, loaded)


@dataclass(repr=False)
class Interruptible(Model):
    """A model that calls `before` before each evaluation of its network, for jobs that can be stopped at any step."""

    before: Callable[[], Any] = lambda: None

    def predict(self, x: Images, t: Index, y: Tensor | None = None, clip: bool = True) -> Prediction:
        self.before()
        return super().predict(x, t, y, clip)

    def predict_both(self, x: Images, t: Index, y: Tensor) -> tuple[Prediction, Prediction]:
        self.before()
        return super().predict_both(x, t, y)


def interruptible(model: Model, before: Callable[[], Any]) -> Interruptible:
    """Return a copy of the model, with the same network, that calls `before` before each evaluation."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return Interruptible(**fields | {"before": before})
