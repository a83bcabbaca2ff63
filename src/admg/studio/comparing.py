"""Two settings on the same seeds, and what differs: how many images show their label, and how diverse they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from admg.evaluation.metrics.label_accuracy import label_accuracy
from admg.generation.samples import Samples

from .catalog import Entry
from .jobs import Job
from .sampling import Result, draw
from .settings import Settings


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two settings.

    result: its images
    correct, labelled: number of images that the classifier assigns to their label, of those that have one
    diversity: root mean square difference of the pixels of two images with the same label; white - black is 1. None if
        no two images have the same label
    """

    result: Result
    correct: int
    labelled: int
    diversity: float | None

    @property
    def accuracy(self) -> str:
        """The share of correct images with its 95 % confidence interval."""
        if not self.labelled:
            return "no labels"
        found = label_accuracy(self.correct, self.labelled)
        return f"{found.value:.0%} ({found.low:.0%} to {found.high:.0%}), {self.correct} of {self.labelled}"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sides with the same seeds. difference: root mean square difference between the images of the same seed"""

    a: Side
    b: Side
    difference: float

    def table(self) -> list[list[str]]:
        """Return rows of a table: quantity, A, B."""
        diversity = ["none" if side.diversity is None else f"{side.diversity:.3f}" for side in (self.a, self.b)]
        return [
            ["label accuracy (95 % interval)", self.a.accuracy, self.b.accuracy],
            ["diversity within a label (RMS)", *diversity],
            ["difference of the same seeds (RMS)", f"{self.difference:.3f}", ""],
        ]


def compare(entry: Entry, a: Settings, b: Settings, job: Job) -> Comparison:
    """Draw both, report their frames, and compare them."""
    first = draw(entry, a, job)
    second = draw(entry, b, job)
    left, right = (evaluate_samples(entry, result) for result in (first, second))
    return Comparison(left, right, difference(first.samples, second.samples))


def evaluate_samples(entry: Entry, result: Result) -> Side:
    """Return what the classifier says of the images at its lowest noise level, and how diverse they are."""
    samples = result.samples
    correct, labelled = 0, 0
    if entry.classifier is not None:
        device = entry.model.device
        with torch.no_grad():
            times = entry.classifier.diffusion.timestep(0, device).expand(len(samples))
            predicted = entry.classifier(samples.x.float().to(device), times).argmax(1).cpu()
        has_label = samples.labels >= 0
        correct, labelled = int((predicted == samples.labels)[has_label].sum()), int(has_label.sum())
    return Side(result, correct, labelled, diversity(samples))


def diversity(samples: Samples) -> float | None:
    """Return the root mean square difference of the pixels of all pairs of images with the same label, in [0, 1]."""
    total, pairs = 0.0, 0
    images = samples.images.reshape(len(samples), -1).astype(np.float64) / 255
    for label in sorted(set(samples.labels.tolist())):
        own = images[samples.labels.numpy() == label]
        for i in range(len(own) - 1):
            total += float(((own[i + 1 :] - own[i]) ** 2).mean(1).sum())
            pairs += len(own) - 1 - i
    return float(np.sqrt(total / pairs)) if pairs else None


def difference(a: Samples, b: Samples) -> float:
    """Return the root mean square difference of the pixels of the same images of two runs, in [0, 1]."""
    change = (a.images.astype(np.float64) - b.images.astype(np.float64)) / 255
    return float(np.sqrt((change**2).mean()))
