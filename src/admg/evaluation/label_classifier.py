"""Classifiers that check whether samples show their label."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import nn

from admg.checkpoints import loading
from admg.checkpoints.model import Classifier
from admg.data.errors import listed
from admg.generation.identity import identity_of
from admg.generation.modes import evaluation_mode
from admg.models import ClassifierConfig
from admg.userfile import errors_of
from admg.warn import warn

from .features import custom
from .real_images import label_numbers
from .sources import Source

PredictLabels = Callable[[UInt8[np.ndarray, "n h w c"]], Int64[np.ndarray, " n"]]


@dataclass(frozen=True)
class LabelClassifier:
    """A classifier of clean images.

    name: name in reports
    predict: maps uint8 images (N, H, W, C) to label numbers (N,)
    numbers: the classifier's number of each label of the samples; None if the numbers are the same
    identity: checksum of weights, code and `numbers`; equal identities find the same labels
    """

    name: str
    predict: PredictLabels
    numbers: list[int] | None = None
    identity: str = ""

    def count_correct(self, source: Source, batch_size: int = 50) -> tuple[int, int]:
        """Return the number of labelled images that are assigned to their label, and the number of labelled images.

        Raises ValueError if there are no labels, or only -1, which stands for no label.
        """
        if source.labels is None:
            raise ValueError(f"{source.name} has no labels: label accuracy needs arr_1, or the names of classes")
        correct, count = 0, 0
        for start in range(0, len(source), batch_size):
            chosen = slice(start, start + batch_size)
            target = source.labels[chosen]
            target = target if self.numbers is None else np.array([self.numbers[k] if k >= 0 else -1 for k in target])
            labelled = target >= 0
            correct += int((self._predicted(source[chosen]) == target)[labelled].sum())
            count += int(labelled.sum())
        if not count:
            raise ValueError(f"{source.name} has only the label -1 (no label)")
        return correct, count

    def _predicted(self, images: UInt8[np.ndarray, "n h w c"]) -> Int64[np.ndarray, " n"]:
        """Return the labels of the images. Raises ValueError unless they are one whole number for each."""
        predicted = np.asarray(self.predict(images))
        if predicted.shape != (len(images),) or not np.issubdtype(predicted.dtype, np.integer):
            raise ValueError(
                f"{self.name} must return one integer label for each of {len(images)} images, got {predicted.dtype} "
                f"of shape {predicted.shape}"
            )
        return predicted


def load_label_classifier(
    classifier: str | Classifier | nn.Module | Any, source: Source, device: torch.device | str = "cpu"
) -> LabelClassifier:
    """Return a label classifier for the images of a source.

    classifier: a noisy classifier, or its name or folder, which is evaluated at the lowest noise level; a module that
        maps x (N, C, H, W) in [-1, 1] to logits; an object with a method predict(images), which maps uint8 images
        (N, H, W, C) to label numbers; or "file.py:name" of one of the latter two
    Raises ValueError if it is none of these, or if it does not fit the images or labels of the source.
    """
    device = torch.device(device)
    if isinstance(classifier, Classifier):
        return _noisy("classifier", classifier, source, device)
    if isinstance(classifier, Path):
        classifier = str(classifier)
    if isinstance(classifier, str) and ".py:" not in classifier:
        return _noisy(classifier, loading.load_classifier(classifier), source, device)
    if isinstance(classifier, str):
        loaded, digest = custom.from_file(classifier)
        name = classifier.rpartition(":")[2]
        spec = file = classifier
    else:
        loaded, digest, file = classifier, "", ""
        name = spec = type(classifier).__name__
    if source.label_names:
        raise ValueError(
            f"the labels of {source.name} are names, but those of {spec} are numbers: use an .npz with arr_1"
        )
    if callable(getattr(loaded, "predict", None)):
        predict = _in_eval_mode(lambda images: np.asarray(loaded.predict(images)), loaded, spec=file)
        return LabelClassifier(name, predict, None, _identity(loaded, digest))
    if isinstance(loaded, nn.Module):
        module = loaded.to(device)
        predict = _in_eval_mode(lambda images: _labels(module(to_x(images, device))), module, spec=file)
        return LabelClassifier(name, predict, None, _identity(loaded, digest))
    raise ValueError(f"{spec} must have a method predict(images) or be a torch.nn.Module")


def _in_eval_mode(predict: PredictLabels, *parts: Any, spec: str = "") -> PredictLabels:
    """Return the function with the modules of these objects in evaluation mode during each call.

    spec: `path/to/file.py:name` of a user's classifier, for error messages
    """

    def call(images: np.ndarray) -> np.ndarray:
        with evaluation_mode(*parts), errors_of(spec):
            return predict(images)

    return call


def _noisy(name: str, classifier: Classifier, source: Source, device: torch.device) -> LabelClassifier:
    classifier = classifier.to(device)
    _check(name, classifier, source)
    timestep = classifier.diffusion.timestep(0, device)

    def predict(images: np.ndarray) -> np.ndarray:
        return _labels(classifier(to_x(images, device), timestep.expand(len(images))))

    names = source.label_names or (source.names_of_numbers if classifier.labels.names else ())
    if not names and source.labels is not None and classifier.labels.names:
        warn(
            f"the labels of {source.name} are numbers, and their names are not known: they are taken for those of "
            f"{name} ({listed(classifier.labels.names, 3)})"
        )
    numbers = _numbers(classifier, names) if names else None
    predict_labels = _in_eval_mode(torch.inference_mode()(predict), classifier)
    return LabelClassifier(name, predict_labels, numbers, _identity(classifier, str(numbers)))


def _numbers(classifier: Classifier, names: Sequence[str]) -> list[int]:
    """Return the classifier's number of each name, -1 for "", the name of a label that no sample has."""
    found = iter(label_numbers(classifier.labels, [name for name in names if name]))
    return [next(found) if name else -1 for name in names]


def _identity(found: object, more: str) -> str:
    """Return a checksum of the object: its code, attributes and weights. more: its file, or its numbers of labels"""
    return hashlib.sha256(f"{more} {identity_of(found)}".encode()).hexdigest()[:24]


def to_x(images: UInt8[np.ndarray, "n h w c"], device: torch.device) -> torch.Tensor:
    """Return uint8 images as x (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device).float() / 127.5 - 1


def _labels(logits: torch.Tensor) -> np.ndarray:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"the label classifier must return logits (N, K) of at least 2 labels, got {tuple(logits.shape)}"
        )
    return logits.argmax(1).cpu().numpy()


def _check(name: str, classifier: Classifier, source: Source) -> None:
    """Raise ValueError if the classifier does not fit the images or labels of the source."""
    config = cast(ClassifierConfig, classifier.network.config)
    side, channels = config.image_size, config.image_channels
    if source.size != (side, side) or source.channels != channels:
        have = f"{source.channels}x{source.size[0]}x{source.size[1]}" if source.size else "different sizes"
        raise ValueError(f"classifier {name} expects images of {channels}x{side}x{side}, but {source.name} has {have}")
    if source.labels is not None and source.labels.max() >= classifier.labels.count:
        raise ValueError(
            f"{source.name} has a label {source.labels.max()}, but {name} has {classifier.labels.count} labels"
        )
