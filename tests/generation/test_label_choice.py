"""Labels of a run: balanced, random, and as given."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import arrays, succeed

from admg.generation.labels import random_labels, shares


def test_random_labels_depend_on_the_seed_but_not_on_the_number_of_images():
    labels = random_labels(3, 10, 1000)
    assert random_labels(3, 10, 20) == labels[:20] and random_labels(4, 10, 1000) != labels
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10 and counts.min() > 70 and counts.max() < 130
    assert shares(range(5), 12) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--labels", "balanced", "--num", 7], [0, 1, 2, 3, 4, 0, 1]),
        (["--labels", "balanced"], [*range(5)] * 8),
        (["--num", 3], random_labels(0, 5, 3)),
        (["--labels", "random", "--num", 7], random_labels(0, 5, 7)),
        (["--labels", "ankle boot, two,3", "--num", 4], [4, 2, 3, 4]),
        (["--labels", "1"], [1] * 8),
    ],
)
def test_labels(capsys, folders, tmp_path, arguments, expected):
    options = ["--model", folders["model"], "--steps", 1, "--no-images", "--out", tmp_path]
    succeed(capsys, "sample", *options, *arguments)
    images, labels = arrays(next(tmp_path.glob("samples*.npz")))
    assert labels.tolist() == expected and len(images) == len(expected) and not (tmp_path / "images").exists()


def test_labels_without_effect_are_not_written(capsys, folders, tmp_path):
    options = ["--model", folders["model"], "--steps", 1, "--unconditional", "--num", 3, "--out", tmp_path]
    succeed(capsys, "sample", *options)
    assert arrays(tmp_path / "samples_3x8x8x1.npz")[1] is None
    assert (tmp_path / "images" / "sample_000002.png").exists()
