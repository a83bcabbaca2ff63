"""Labels of a run: balanced, random, and as given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TRUNK, arrays, randomised, refused, succeed

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.generation.labels import (
    TypedLabel,
    cycle_labels,
    is_single,
    label_number,
    random_labels,
    resolve_labels,
    typed_labels,
)
from admg.models import UNet, UNetConfig


def test_random_labels_depend_on_the_seed_but_not_on_the_number_of_images():
    labels = random_labels(3, 10, 1000)
    assert random_labels(3, 10, 20) == labels[:20] and random_labels(4, 10, 1000) != labels
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10 and counts.min() > 70 and counts.max() < 130
    assert cycle_labels(range(5), 12) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


@pytest.mark.thorough
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


NUMERIC = Labels(4, ("1", "2", "3", "10"))


@pytest.fixture
def numeric(tiny_model) -> Model:
    """A model whose labels are named 1, 2, 3, 10, as class folders of these names give."""
    network = UNet(UNetConfig(**TRUNK, num_classes=4))
    return Model(randomised(network, 0), tiny_model.diffusion, tiny_model.shape, NUMERIC, tiny_model.config)


@pytest.mark.parametrize(
    "labels, expected",
    [
        ([0, 1, 3], [0, 1, 3]),
        (["1", "10", "3"], [0, 3, 2]),
        (["1", 1, None], [0, 1, None]),
        (torch.tensor([0, -1, 2]), [0, None, 2]),
        ([0, -1, "10", np.int64(-1)], [0, None, 3, None]),
        (-1, [None]),
        (np.array([1, 3], np.uint8), [1, 3]),
        ([np.int64(2), torch.tensor(1)], [2, 1]),
        (2, [2]),
        (torch.tensor(2), [2]),
        ("2", [1]),
        ([TypedLabel("0"), TypedLabel("10")], [0, 3]),
    ],
)
def test_an_integer_is_a_number_and_text_is_a_name(numeric, labels, expected):
    assert resolve_labels(numeric, None, labels) == expected
    assert is_single(labels) == (len(expected) == 1)


@pytest.mark.parametrize(
    "labels", [["0"], [1.0], [-1.0], [-2], ["-1"], [0.5], torch.tensor([1.0]), [4], [np.bool_(True)]]
)
def test_what_is_neither_a_number_nor_a_name_is_refused(numeric, labels):
    with pytest.raises(ValueError, match="label"):
        resolve_labels(numeric, None, labels)


def test_text_that_is_a_name_and_another_number_is_reported(numeric):
    with pytest.warns(UserWarning, match="label '2' is the one of this name, number 1; number 2 is '3'") as caught:
        assert typed_labels(numeric, None, ["2", "0", "10", 2]) == [1, 0, 3, 2]
    assert len(caught) == 1  # 0 is no name, and 10 no number


def test_text_waits_for_the_labels_of_a_classifier(numeric):
    bare = replace(numeric, labels=Labels(0))
    typed = typed_labels(bare, None, ["2", 2])
    assert [label_number(NUMERIC, label) for label in typed] == [1, 2]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "content, expected",
    [
        ("label = [1, 3]", [1, 3]),
        ('label = ["1", "10", "0"]', [0, 3, 0]),
        ('label = ["1", 1]', [0, 1]),
        ("labels = 1", [1]),
        ("labels = [1, 3]", [1, 3]),
        ('labels = "1,10"', [0, 3]),
        ('labels = ["1", 1]', [0, 1]),
    ],
)
def test_an_integer_in_a_toml_file_is_a_number(capsys, numeric, tmp_path, content, expected):
    numeric.save(tmp_path / "model")
    (tmp_path / "c.toml").write_text(content)
    options = ["--model", tmp_path / "model", "--config", tmp_path / "c.toml", "--steps", 1, "--out", tmp_path / "out"]
    succeed(capsys, "sample", *options, "--num", len(expected))
    assert arrays(next((tmp_path / "out").glob("samples*.npz")))[1].tolist() == expected


def test_labels_of_a_toml_file_that_are_no_labels_are_refused(capsys, tmp_path):
    for content in ("label = [1.5]", "label = [true]", "labels = 1.5"):
        (tmp_path / "c.toml").write_text(content)
        message = refused(capsys, "sample", "--config", tmp_path / "c.toml")
        assert "c.toml: --label" in message and "must be integers or text" in message
