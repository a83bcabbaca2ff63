"""The comparison of two settings: label accuracy, diversity, and the difference of the same seeds."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from admg.generation.samples import Samples
from admg.studio.comparing import compare, difference, diversity, evaluate_samples
from admg.studio.sampling import Result, run_sampling
from admg.studio.settings import Settings


def samples(values, labels):
    """Images of 2x2 pixels of one grey level each, from -1 to 1."""
    x = torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    return Samples(x, torch.tensor(labels), ("",) * len(labels))


def test_diversity_is_the_rms_difference_of_pairs_with_the_same_label():
    black, white = -1.0, 1.0
    assert diversity(samples([black, white], [3, 3])) == 1.0
    assert diversity(samples([black, white], [3, 4])) is None
    assert diversity(samples([black, black, white], [3, 3, 3])) == pytest.approx(math.sqrt(2 / 3))
    assert diversity(samples([black, white, white, white], [0, 0, 1, 1])) == pytest.approx(math.sqrt(1 / 2))


def test_difference_is_the_rms_of_the_same_images():
    assert difference(samples([-1.0, 1.0], [0, 0]), samples([1.0, 1.0], [0, 0])) == pytest.approx(math.sqrt(1 / 2))


def test_accuracy_counts_what_the_classifier_says(entry):
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = entry.classifier(x, torch.zeros(6)).argmax(1)
    labels = found.clone()
    labels[0] = (labels[0] + 1) % 5
    labels[1] = -1
    side = evaluate_samples(entry, Result(Settings(model=entry.name), Samples(x, labels, ("",) * 6), []))
    assert (side.correct, side.labelled) == (4, 5)
    assert side.accuracy.startswith("80% (") and side.accuracy.endswith("4 of 5")


@pytest.mark.thorough
def test_both_sides_have_the_same_seeds(entry, job):
    a = Settings(model=entry.name, labels=("two",), num=2, steps=2, guidance="none")
    b = dataclasses.replace(a, guidance="classifier", scale=50.0)
    found = compare(entry, a, b, job)
    assert torch.equal(found.a.result.samples.x, run_sampling(entry, a, job).samples.x)
    assert torch.equal(found.b.result.samples.x, run_sampling(entry, b, job).samples.x)
    assert found.difference == difference(found.a.result.samples, found.b.result.samples) > 0
    assert [row[0].split(" ")[0] for row in found.table()] == ["label", "diversity", "difference"]
