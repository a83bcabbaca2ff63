"""The classes of a data set: counts, and numbers in another data set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from admg.data import DataError, from_arrays, from_dataset
from admg.data.classes import class_counts, describe_classes, empty_classes, with_classes
from admg.data.spread import spread_indices
from admg.data.stream import spread_batches


def images(labels: object, **options: object):
    return from_arrays(np.zeros((len(labels), 4, 4), np.uint8), labels, **options)


def test_classes_and_counts_in_one_line():
    pets = images(["cat", "dog", "cat"], label_names=["dog", "bird", "cat"])
    assert describe_classes(pets) == "dog (1), bird (0), cat (2)" and empty_classes(pets) == ["bird"]
    assert describe_classes(images(["a\nb", "ä"])) == "'a\\nb' (1), ä (1)"
    many = images(np.repeat(np.arange(1000), np.arange(1000) % 3 + 1))
    assert describe_classes(many) == "0 (1), 1 (2), 2 (3), ..., 999 (1); 1 to 3 images each"
    assert class_counts(many).sum() == len(many)
    wrapped = from_dataset(torch.utils.data.TensorDataset(torch.rand(4, 1, 4, 4), torch.arange(4)))
    assert describe_classes(wrapped) == "0, 1, 2, 3" and class_counts(wrapped) is None and not empty_classes(wrapped)


def labels_of(dataset) -> list[int]:
    return dataset.batch(range(len(dataset)))[1].tolist()


def test_labels_are_matched_by_name():
    """Validation data that lacks a class numbers the others as training does."""
    validation = with_classes(images(["dog", "fox", "dog"]), ("cat", "dog", "fox"), "validation images")
    assert labels_of(validation) == [1, 2, 1] and validation.label_names == ("cat", "dog", "fox")
    assert empty_classes(validation) == ["cat"] and (validation.image_size, validation.channels, len(validation)) == (
        4,
        1,
        3,
    )
    declared = images(["dog", "dog"], label_names=["dog", "wolf"])  # no image is of the class wolf
    assert labels_of(with_classes(declared, ("cat", "dog"), "x")) == [1, 1]
    same = images(["cat", "dog"])
    assert with_classes(same, ("cat", "dog"), "x") is same


def test_labels_that_are_numbers_keep_them_whatever_the_names():
    validation = with_classes(images([1, 0, 1]), ("1", "2", "3"), "validation images")
    assert labels_of(validation) == [1, 0, 1] and empty_classes(validation) == ["3"]
    with pytest.raises(
        DataError, match="the labels of the x differ from those of the model: 4 is not among 0 to 2, 1, 2, 3"
    ):
        with_classes(images([4]), ("1", "2", "3"), "x")


def test_numbers_are_matched_with_classes_that_have_numbers_for_names():
    sparse = images([1, 10, 2, 10])
    with pytest.warns(UserWarning, match="label 1 is taken for class '1'"):
        assert labels_of(with_classes(sparse, ("1", "10", "2"))) == [0, 1, 2, 1]
    with pytest.raises(DataError, match="10 is not among 0 to 2, 1, 11, 2"):
        with_classes(sparse, ("1", "11", "2"))
    with pytest.raises(DataError, match="10 is not among 0 to 2, a, b, c"):
        with_classes(sparse, ("a", "b", "c"))


def test_unknown_classes_and_missing_labels_are_refused():
    with pytest.raises(
        DataError, match="the labels of the x differ from those of the model: fox is not among cat, dog"
    ):
        with_classes(images(["dog", "fox"]), ("cat", "dog"), "x")
    with pytest.raises(DataError, match="the x have no labels"):
        with_classes(from_arrays(np.zeros((2, 4, 4), np.uint8)), ("cat", "dog"), "x")


def test_images_of_all_classes_are_measured_when_not_all_images_are():
    ordered = images(np.repeat(np.arange(5), 20))
    labels = torch.cat([y for _, y in spread_batches(ordered, 10, 3)])
    assert labels.bincount().tolist() == [2] * 5
    assert torch.cat([y for _, y in spread_batches(ordered, 1000, 30)]).tolist() == ordered.labels.tolist()
    found = spread_indices(10_000, 1000)  # of samples, whose labels recur in a cycle
    assert found == spread_indices(10_000, 1000) and [index // 10 for index in found] == [*range(1000)]
    shares = np.bincount([index % 10 for index in found], minlength=10)
    assert np.abs(shares - 100).max() < 5 * math.sqrt(1000 * 0.1 * 0.9)  # binomial
    assert spread_indices(7, 7) == spread_indices(7, 9) == range(7) and spread_indices(7, 1)[0] in range(7)
