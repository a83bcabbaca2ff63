"""Comparison of two settings with the same seeds: label accuracy, and diversity within a label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from admg.evaluation.metrics.label_accuracy import label_accuracy
from admg.generation.samples import Samples

from .catalog import Entry
from .jobs import Job
from .sampling import Result, run_sampling
from .settings import Settings


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two settings.

    result: its images
    correct, labelled: number of images that the classifier assigns to their label, and number with a label
    diversity: root-mean-square difference between the pixels (0 to 1) of two images with the same label. None if no
        two images have the same label
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
    """Both sides. difference: root-mean-square difference between the pixels (0 to 1) of images with the same seed"""

    a: Side
    b: Side
    difference: float

    def table(self) -> list[list[str]]:
        """Return the rows of the table: quantity, A, B."""
        diversity = ["none" if side.diversity is None else f"{side.diversity:.3f}" for side in (self.a, self.b)]
        return [
            ["label accuracy (95 % interval)", self.a.accuracy, self.b.accuracy],
            ["diversity within a label (RMS)", *diversity],
            ["difference between A and B (RMS)", f"{self.difference:.3f}", ""],
        ]


def compare(entry: Entry, a: Settings, b: Settings, job: Job) -> Comparison:
    """Generate the images of both settings, reporting their frames, and compare them."""
    first = run_sampling(entry, a, job)
    second = run_sampling(entry, b, job)
    left, right = (evaluate_samples(entry, result) for result in (first, second))
    return Comparison(left, right, difference(first.samples, second.samples))


def evaluate_samples(entry: Entry, result: Result) -> Side:
    """Measure label accuracy, with the classifier at its lowest noise level, and diversity."""
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
    """Return the root-mean-square pixel difference of all pairs of images with the same label, in [0, 1]."""
    total, pairs = 0.0, 0
    images = samples.images.reshape(len(samples), -1).astype(np.float64) / 255
    for label in sorted(set(samples.labels.tolist())):
        same = images[samples.labels.numpy() == label]
        for i in range(len(same) - 1):
            total += float(((same[i + 1 :] - same[i]) ** 2).mean(1).sum())
            pairs += len(same) - 1 - i
    return float(np.sqrt(total / pairs)) if pairs else None


def difference(a: Samples, b: Samples) -> float:
    """Return the root-mean-square pixel difference between images with the same seed, in [0, 1]."""
    change = (a.images.astype(np.float64) - b.images.astype(np.float64)) / 255
    return float(np.sqrt((change**2).mean()))
