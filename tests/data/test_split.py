"""A share of a data set that is held out: the same share of each class, and never both trained on and validated on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from admg.data import DataError, from_arrays, from_dataset
from admg.data import open as open_dataset
from admg.data.classes import with_classes
from admg.data.split import split, subset

COUNTS = {"cat": 100, "cow": 37, "dog": 10, "fox": 1}


def numbered(labels=None, **options):
    """Images of which each is another: the two pixels of image i are i // 256 and i % 256."""
    count = 148 if labels is None else len(labels)
    pixels = np.array([[[i // 256, i % 256]] * 2 for i in range(count)], np.uint8)
    return from_arrays(pixels, labels, **options)


def contents(dataset) -> list[tuple]:
    x, _ = dataset.batch(range(len(dataset)))
    return [tuple(image.flatten().tolist()) for image in x]


def classes_of(dataset) -> list[int]:
    _, y = dataset.batch(range(len(dataset)))
    return torch.bincount(y, minlength=4).tolist()


LABELS = [name for name, count in COUNTS.items() for _ in range(count)]


def test_every_image_is_in_one_part_and_each_class_gives_its_share():
    dataset = numbered(LABELS)
    training, held_out = split(dataset, 0.1, seed=0)
    assert sorted(contents(training) + contents(held_out)) == sorted(contents(dataset))
    assert not set(contents(training)) & set(contents(held_out))
    assert classes_of(held_out) == [10, 3, 1, 0]  # of 100, 37, 10 and 1: what rounding loses counts for the next class
    assert training.label_names == held_out.label_names == tuple(COUNTS)
    positions = [contents(dataset).index(image) for image in contents(held_out)]
    assert positions == sorted(positions) and positions[:10] != list(range(10))


def test_the_parts_follow_from_the_seed_and_are_stable_when_images_are_added():
    first, again, other = (set(contents(split(numbered(LABELS), 0.2, seed)[1])) for seed in (1, 1, 2))
    assert first == again and len(first & other) < len(first) / 2
    more = set(contents(split(numbered([*LABELS, *["cat"] * 5]), 0.2, 1)[1]))
    assert len(first & more) >= len(first) - 1


def test_a_share_without_labels_is_of_the_whole():
    training, held_out = split(numbered(), 0.25, seed=0)
    assert (len(training), len(held_out)) == (111, 37)


def test_other_data_sets_are_split_in_the_same_way():
    """A torch data set with and without known targets, and one whose labels are renumbered."""
    plain = numbered(LABELS)
    x, y = plain.batch(range(len(plain)))

    class Known(torch.utils.data.TensorDataset):
        targets = y

    for kind, inner in (("known", Known(x, y)), ("unknown", torch.utils.data.TensorDataset(x, y))):
        training, held_out = split(from_dataset(inner, value_range=(-1, 1)), 0.1, seed=0)
        assert sorted(contents(training) + contents(held_out)) == sorted(contents(plain)), kind
        assert len(held_out) == 14
        if kind == "known":
            assert contents(held_out) == contents(split(plain, 0.1, seed=0)[1])
        assert training.image_size == 2 and training.channels == 1 and len(training.label_names) == 4
    renumbered = with_classes(plain, ("fox", "dog", "cow", "cat"))
    _, held_out = split(renumbered, 0.1, seed=0)
    assert classes_of(held_out)[::-1] in ([10, 4, 0, 0], [10, 3, 1, 0]) and held_out.labels is not None


def test_augmentation_follows_from_the_seed_of_an_image_in_a_part_as_well():
    dataset = numbered(LABELS, flip=True)
    part = subset(dataset, [5, 7])
    seeds = [(0, 1, 9), (0, 1, 10)]
    assert torch.equal(part.batch([0, 1], seeds)[0], dataset.batch([5, 7], seeds)[0])


def test_frames_of_a_file_are_in_one_part(tmp_path):
    for name in "abcdef":
        frames = [Image.new("L", (4, 4), 40 * i + ord(name)) for i in range(3)]
        frames[0].save(tmp_path / f"{name}.tif", save_all=True, append_images=frames[1:])
    dataset = open_dataset(tmp_path, frames="all", labels="none")
    assert len(dataset) == 18
    training, held_out = split(dataset, 0.34, seed=0)
    files = [{path.name for path in part.images} for part in (training, held_out)]
    assert len(held_out) == 6 and len(files[1]) == 2 and not files[0] & files[1]
    assert len(set(contents(held_out))) == 6  # frames stay with their files


def test_of_each_class_at_least_one_image_stays():
    training, held_out = split(numbered(["a"] * 5 + ["b"]), 0.9, seed=0)
    assert classes_of(training)[:2] == [1, 1] and classes_of(held_out)[:2] == [4, 0]


def test_a_share_that_cannot_be_held_out_is_refused():
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(DataError, match="the fraction must be above 0 and below 1"):
            split(numbered(LABELS), fraction, 0)
    with pytest.raises(DataError, match=r"the fraction must be at least 0.0068 for 148 images, got 0.001"):
        split(numbered(LABELS), 0.001, 0)
    with pytest.raises(DataError, match="no image can be held out, since each class has only one"):
        split(numbered(["a", "b", "c"]), 0.5, 0)
    with pytest.raises(DataError, match="no image can be held out"):
        split(numbered(["a"]), 0.5, 0)
