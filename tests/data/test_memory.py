"""Data sets from arrays and from torch data sets: layouts, value ranges, labels, and clear errors."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_example, write_idx
from PIL import Image
from torch.utils.data import Subset, TensorDataset

import admg
from admg.data import (
    DataConfig,
    DataError,
    Dataset,
    batches,
    center_crop,
    evaluation_batches,
    from_arrays,
    from_dataset,
)

U8 = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
UNIT = np.random.default_rng(1).random((5, 8, 8, 3))  # [0, 1]


class Pairs(torch.utils.data.Dataset):
    """Items in memory, as a user's own data set would return them."""

    def __init__(self, items: list, **attributes: object):
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        item = self.items[index]
        return item() if callable(item) else item


def everything(dataset) -> tuple[torch.Tensor, list[int]]:
    x, y = dataset.batch(range(len(dataset)))
    return x, y.tolist()


def signed(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


# from_arrays


def test_examples_of_the_docstrings(tmp_path, monkeypatch):
    run_example(from_arrays)
    run_example(from_dataset)
    monkeypatch.chdir(tmp_path)
    for name in ("cat/1.png", "dog/2.png", "dog/3.png"):
        (Path("photos") / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(U8[0]).save(Path("photos") / name)
    run_example(admg.data.open)


def test_arrays_of_8_bits_in_either_order_of_channels():
    expected = signed(U8)
    first = U8.transpose(0, 3, 1, 2)
    for images in (U8, first, torch.from_numpy(U8), torch.from_numpy(first.copy())):
        x, y = everything(from_arrays(images))
        assert torch.equal(x, expected) and y == [-1] * 5 and x.dtype == torch.float32
    both = np.stack([U8[0, :3, :3], U8[1, :3, :3]])  # (2, 3, 3, 3): channels last for arrays, first for tensors
    assert torch.equal(everything(from_arrays(both))[0], signed(both))
    assert torch.equal(everything(from_arrays(torch.from_numpy(both)))[0], signed(both.transpose(0, 2, 3, 1)))
    grey = from_arrays(U8[..., 0])
    assert grey.channels == 1 and torch.equal(everything(grey)[0], expected[:, :1])
    assert torch.equal(everything(from_arrays(U8[..., :1], channels=3))[0], expected[:, :1].expand(-1, 3, -1, -1))


@pytest.mark.parametrize("low, high, stated", [(0, 1, None), (-1, 1, None), (0, 255, (0, 255)), (-1, 0, (-1, 0))])
def test_float_arrays_are_mapped_from_their_range(low, high, stated):
    images = (low + (high - low) * UNIT).astype(np.float32)
    x, _ = everything(from_arrays(images, value_range=stated))
    expected = torch.from_numpy(2 * UNIT - 1).permute(0, 3, 1, 2)
    assert x.dtype == torch.float32 and x.double().sub(expected).abs().max() < 2**-22  # not rounded to 8 bits
    assert x.min() < -0.9 and x.max() > 0.9
    assert torch.equal(everything(from_arrays(torch.from_numpy(images), value_range=stated))[0], x)
    assert torch.equal(everything(from_arrays(images, value_range=stated, flip=True))[0], x)


@pytest.mark.parametrize(
    "images, message",
    [
        (255 * UNIT, r"floats from .* to 25\d.*, which is neither clearly \[0, 1\] nor clearly \[-1, 1\]: pass"),
        (1.04 * UNIT - 0.02, r"floats from -0\.0.* to 1\.0.*neither clearly"),  # what bicubic resampling leaves
        (UNIT / 255, r"floats from .* to 0\.00.*neither clearly"),
        (3 * UNIT - 1.5, r"floats from -1\.4.* to 1\.[45].*neither clearly"),  # normalised by mean and deviation
        (np.where(UNIT > 0.9, np.nan, UNIT), "not finite"),
        (np.where(UNIT > 0.9, np.inf, UNIT), "not finite"),
        (
            (255 * UNIT).astype(np.int64),
            r"of type int64, whose range is ambiguous: use uint8, or floats in \[0, 1\] or \[-1, 1\]",
        ),
        (UNIT > 0.5, "must be of an integer or floating-point type, got bool"),
        (UNIT[..., [0, 1, 2, 0, 1, 2, 0, 1]], r"shape \(N, H, W\), \(N, H, W, C\) .* got \(5, 8, 8, 8\)"),
        (UNIT[:0], r"must have shape .* got \(0, 8, 8, 3\)"),
        (UNIT[0, :, :, 0], r"must have shape .* got \(8, 8\)"),
        (UNIT[:, :6], "8x6, not square: pass image_size"),
    ],
)
def test_arrays_that_are_refused(images, message):
    with pytest.raises(DataError, match=message):
        from_arrays(images)


def test_values_outside_of_the_stated_range_are_refused():
    with pytest.raises(DataError, match=r"range from -1 to 1, outside \[0, 1\]"):
        from_arrays(np.linspace(-1, 1, 64).reshape(1, 8, 8), value_range=(0, 1))
    with pytest.raises(DataError, match=r"value_range must be .* such as \(0, 1\), got \(1, 0\)"):
        from_arrays(UNIT, value_range=(1, 0))


def test_floats_of_another_size_are_resized_as_8_bit_images():
    levels = U8 / 255  # which 8 bits hold exactly
    x, _ = everything(from_arrays(levels, image_size=6))
    assert torch.equal(x, signed(np.stack([center_crop(Image.fromarray(image), 6) for image in U8])))
    padded, _ = everything(from_arrays(levels, image_size=10, fit="pad"))
    assert torch.equal(padded[:, :, 1:9, 1:9], signed(U8)) and (padded[:, :, 0] == -1).all()
    with pytest.raises(DataError, match=r'every image is 8x8, larger than image_size 6x6: fit="pad" needs smaller'):
        from_arrays(levels, image_size=6, fit="pad")
    cropped = from_arrays(levels, crop="random").get(0, seed=3)[0]
    assert torch.equal(cropped, from_arrays(U8, crop="random").get(0, seed=3)[0])
    grey = everything(from_arrays(levels, channels=1))[0]
    assert torch.equal(grey, everything(from_arrays(U8, channels=1))[0]) and grey.shape == (5, 1, 8, 8)


def test_labels_of_arrays():
    numbers = [2, 0, 1, 1, 2]
    for labels in (numbers, np.array(numbers, np.uint8), torch.tensor(numbers)):
        dataset = from_arrays(U8, labels)
        assert everything(dataset)[1] == numbers and dataset.label_names == ("0", "1", "2")
    assert from_arrays(U8, numbers, label_names=["a", "b", "c", "d"]).label_names == ("a", "b", "c", "d")
    named = from_arrays(U8, ["dog", "cat", "dog", "cow", "cat"])
    assert named.label_names == ("cat", "cow", "dog") and everything(named)[1] == [2, 0, 2, 1, 0]
    ordered = from_arrays(U8[:2], ["dog", "cat"], label_names=["dog", "bird", "cat"])
    assert everything(ordered)[1] == [0, 2] and len(ordered.label_names) == 3
    assert "5 images of 3x8x8, labels: cat, cow, dog" in repr(named) and "no labels" in repr(from_arrays(U8))


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 1], r"labels must have shape \(5,\), one label per image, got \(2,\)"),
        ([0.0, 1.0, 0.0, 1.0, 0.5], "labels must be integers or names, got float64"),
        ([0, 1, -1, 0, 1], "labels must not be negative, got -1"),
        ([0, 1, 7, 0, 1], "the data has a label 7, but there are 2 label_names: a, b"),
        (["a", "b", "c", "a", "b"], r"not in label_names \(a, b\): c"),
    ],
)
def test_labels_that_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        from_arrays(U8, labels, label_names=["a", "b"])


def test_a_data_set_without_an_image_size_keeps_the_size_of_its_files(tmp_path):
    for i, image in enumerate(U8[:2]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    dataset = admg.data.open(tmp_path)
    assert dataset.image_size == 8 and torch.equal(everything(dataset)[0], signed(U8[:2]))
    Image.fromarray(U8[0, :4, :4]).save(tmp_path / "2.png")
    with pytest.raises(DataError, match="images of 8x8 and 4x4: pass image_size"):
        admg.data.open(tmp_path)
    np.savez(tmp_path / "a.npz", arr_0=U8[:, :6])
    with pytest.raises(DataError, match="images of 8x6: pass image_size"):
        admg.data.open(tmp_path / "a.npz")


# from_dataset


def test_every_kind_of_image_gives_the_same_pixels():
    """PIL images, arrays with the channels last, tensors with the channels first; 8 bits, and floats of two ranges."""
    floats = (U8 / 255).astype(np.float32)
    kinds = {
        "pil": [Image.fromarray(image) for image in U8],
        "array": list(U8),
        "tensor": list(torch.from_numpy(U8).permute(0, 3, 1, 2)),
        "unit array": list(floats),
        "unit tensor": list(torch.from_numpy(floats).permute(0, 3, 1, 2)),
        "signed tensor": list(torch.from_numpy(2 * floats - 1).permute(0, 3, 1, 2)),
    }
    labels = [0, np.int64(1), torch.tensor(2), 1, 0]
    for kind, images in kinds.items():
        dataset = from_dataset(Pairs(list(zip(images, labels, strict=True))))
        x, y = everything(dataset)
        assert x.dtype == torch.float32 and x.sub(signed(U8)).abs().max() < 1e-6, kind
        assert y == [0, 1, 2, 1, 0] and dataset.label_names == ("0", "1", "2")
        assert (dataset.image_size, dataset.channels, len(dataset)) == (8, 3, 5)
    assert torch.equal(everything(from_dataset(Pairs(kinds["pil"])))[0], signed(U8))
    assert everything(from_dataset(Pairs(kinds["pil"])))[1] == [-1] * 5


def test_size_and_channels_of_a_torch_data_set():
    images = [(Image.fromarray(image), 0) for image in U8]
    x, _ = everything(from_dataset(Pairs(images), image_size=6, channels=1))
    expected = [center_crop(Image.fromarray(image).convert("L"), 6)[..., None] for image in U8]
    assert torch.equal(x, signed(np.stack(expected)))
    grey = from_dataset(TensorDataset(torch.from_numpy(U8[..., 0])), channels=3)
    assert torch.equal(everything(grey)[0], signed(U8[..., :1]).expand(-1, 3, -1, -1))


def test_label_names_of_a_torch_data_set():
    items = [(image, i % 2) for i, image in enumerate(U8)]
    named = Pairs(items, classes=["cat", "dog", "cow"], targets=[0, 1, 0, 1, 0])
    assert from_dataset(named).label_names == ("cat", "dog", "cow")
    assert from_dataset(Subset(named, [0, 2])).label_names == ("cat", "dog", "cow")
    few = [*items[:4], (items[4][0], 4)]
    assert from_dataset(Pairs(few, targets=[0, 1, 0, 1, 4])).label_names == tuple("01234")
    assert from_dataset(Pairs(items)).label_names == ("0", "1")
    assert from_dataset(Pairs(items), label_names=["a", "b"]).label_names == ("a", "b")
    many = [(image, 0) for image in U8.repeat(8, axis=0)] + [(U8[0], 6)]  # the last label is not among the first items
    assert len(from_dataset(Pairs(many)).label_names) == 7


def test_classes_that_may_name_other_labels_are_not_used():
    """A transform maps four classes to two, and there are no `targets` that would show it."""
    classes, fine = ["apple", "bread", "cake", "donut"], [0, 1, 2, 3] * 10
    images = U8.repeat(8, axis=0)
    coarse = Pairs([(image, label // 2) for image, label in zip(images, fine)], classes=classes)
    with pytest.warns(
        UserWarning, match=r"classes \(apple, bread, cake, .*\) may name other labels \(not all .* occur"
    ):
        dataset = from_dataset(coarse)
    assert dataset.label_names == ("0", "1") and dataset.numbered
    coarse._labels = fine  # as torchvision's Food101 and DTD have
    with pytest.warns(UserWarning, match="may name other labels"):
        assert from_dataset(coarse).label_names == ("0", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = Pairs(list(zip(images, fine)), classes=classes)
        assert from_dataset(whole).label_names == tuple(classes)  # every number occurs
        part = Subset(Pairs(list(zip(images, fine)), classes=classes, _labels=fine), [0, 1, 4])
        assert from_dataset(part).label_names == tuple(classes)  # the labels are those that the data set lists
        assert from_dataset(Pairs(list(zip(images, fine)), classes=classes, labels=True)).label_names == tuple(classes)


def test_our_own_data_sets_are_returned_as_they_are():
    dataset = from_arrays(U8)
    assert from_dataset(dataset) is dataset and isinstance(dataset, Dataset)


def test_random_transforms_follow_the_seed_alone():
    """Items that draw from torch's, NumPy's and Python's global generators are the same when a run is resumed."""

    def noisy(image):
        return lambda: (
            image * np.float32(0.7) + 0.1 * np.float32([torch.rand(()).item(), np.random.rand(), random.random()]),
            0,
        )

    dataset = from_dataset(Pairs([noisy(np.float32(image / 255)) for image in U8]), label_names=["a"])
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    stream = batches(dataset, 3, seed=4)
    whole = [next(stream) for _ in range(4)]
    resumed = batches(dataset, 3, seed=4, start=2)
    for x, y in whole[2:]:
        again, labels = next(resumed)
        assert torch.equal(x, again) and torch.equal(y, labels)
    assert not torch.equal(next(batches(dataset, 3, seed=5))[0], whole[0][0])
    (first, _), (second, _) = next(evaluation_batches(dataset, 5)), next(evaluation_batches(dataset, 5))
    assert torch.equal(first, second)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


@pytest.mark.parametrize(
    "items, message",
    [
        ([], "the Pairs is empty"),
        (["cat.png"], r"item 0 is a str, not \(image, label\): the image must be a PIL image, a tensor or an array"),
        ([({"image": U8[0]}, 1)], "item 0 is a tuple.*got dict"),
        ([(U8[0], "cat")], "item 0 must have a non-negative integer label, or None, got 'cat'"),
        ([(U8[0], torch.tensor([1, 2]))], "item 0 must have a non-negative integer label.*got tensor"),
        ([(U8[0], 0.5)], r"item 0 must have a non-negative integer label.*got 0\.5"),
        ([(U8[0], 0, "more")], r"item 0 must be \(image, label\), .*got 3 parts"),
        ([(255 * UNIT[0], 0)], r"floats from .* to 25\d.*neither clearly \[0, 1\] nor clearly \[-1, 1\]"),
        ([(U8[0].astype(np.int32), 0)], "the images are of type int32, whose range is ambiguous.*such as 0,255"),
        ([(U8[0, :4], 0)], "the first image is 8x4, not square: pass image_size"),
    ],
)
def test_torch_data_sets_that_are_refused(items, message):
    with pytest.raises(DataError, match=message):
        from_dataset(Pairs(items))


def test_data_sets_without_numbered_items_are_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(U8[0], 0)])

    with pytest.raises(DataError, match=r"Stream has no len.*map-style"):
        from_dataset(Stream())


def test_later_items_that_do_not_fit_are_named():
    """Only the first items are read in advance, so that errors of later ones name the item."""
    unit = UNIT[0].astype(np.float32)

    def reading(last, **options):
        items = [(unit, 0)] * 43 + [last] + [(unit, 0)] * 40  # not one of those that are read in advance
        return from_dataset(Pairs(items), label_names=["a", "b"], **options).batch([43])

    with pytest.raises(DataError, match="item 43 must have a label from 0 to 1, got 2"):
        reading((unit, 2))
    with pytest.raises(DataError, match=r"values of the image of item 43 range from .*outside \[0, 1\]"):
        reading((2 * unit - 1, 0))
    with pytest.raises(DataError, match="item 43 is an image of 3x4x8: expected 3x8x8"):
        reading((unit[:4], 0))


# DataConfig


def test_held_out_images_of_a_data_config(tmp_path):
    """The test split of IDX files, or the given images, always without augmentation."""
    options = {"image_size": 8, "crop": "random", "flip": True}
    for name, count in (("train", 5), ("t10k", 3)):
        write_idx(tmp_path / "idx" / f"{name}-images-idx3-ubyte", U8[:count, :, :, 0])
        write_idx(tmp_path / "idx" / f"{name}-labels-idx1-ubyte", np.arange(count) % 2)
    config = DataConfig(data=str(tmp_path / "idx"), **options)
    opened = config.open()
    assert len(opened) == 5 and opened.flip and opened.crop == "random"
    held_out = config.held_out().open()
    assert len(held_out) == 3 and not held_out.flip and held_out.crop == "center"
    np.savez(tmp_path / "val.npz", arr_0=U8[:4], arr_1=[0, 1, 0, 1])
    assert len(config.held_out(str(tmp_path / "val.npz")).open()) == 4
    assert DataConfig(data=str(tmp_path / "val.npz"), **options).held_out() is None
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        DataConfig(data="x", image_size=0)
    with pytest.raises(ValueError, match="fit must be one of resize, pad, got 'stretch'"):
        DataConfig(data="x", fit="stretch")
