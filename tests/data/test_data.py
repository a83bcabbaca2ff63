"""Images on disk -> batches: exact pixels, labels, repeatability, and one clear line for all that can be wrong."""

from __future__ import annotations

import gzip
import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_idx, write_npz
from PIL import Image

from admg import data
from admg.data import DataError, batches, center_crop, evaluation_batches, pad, random_crop
from admg.data import open as open_dataset
from admg.evaluation.sources import open_source

BOX, BICUBIC = Image.Resampling.BOX, Image.Resampling.BICUBIC


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def scaled(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W[, C]) -> float32 (C, H, W) in [-1, 1]."""
    return np.atleast_3d(pixels).transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1)


@contextmanager
def fails(*words: str) -> Iterator[None]:
    """Expects a DataError of one line with all of these words in it."""
    with pytest.raises(DataError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message and not [word for word in words if word not in message], message


# transforms


@pytest.mark.parametrize(
    "width, height, size, halvings, scaled_size, x, y",
    [
        (64, 64, 32, [(32, 32)], (32, 32), 0, 0),
        (65, 130, 32, [(32, 65)], (32, 65), 0, 16),
        (63, 90, 32, [], (32, 46), 0, 7),  # 90 * 32 / 63 = 45.71
        (31, 47, 32, [], (32, 49), 0, 8),  # 47 * 32 / 31 = 48.52
        (500, 375, 64, [(250, 187), (125, 93)], (86, 64), 11, 0),  # 125 * 64 / 93 = 86.02
        (7, 4, 8, [], (14, 8), 3, 0),
    ],
)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_center_crop_is_box_halvings_then_bicubic(width, height, size, halvings, scaled_size, x, y, channels):
    image = Image.fromarray(noise(height, width, *channels))
    expected = image
    for halved in halvings:
        expected = expected.resize(halved, BOX)
    expected = np.asarray(expected.resize(scaled_size, BICUBIC))[y : y + size, x : x + size]
    assert np.array_equal(center_crop(image, size), expected)
    assert center_crop(image, size).shape == (size, size, *channels)


def test_center_crop_of_known_pixels():
    small = noise(8, 8)
    doubled = small.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(center_crop(Image.fromarray(doubled), 8), small)  # a box filter restores the means exactly
    wide = noise(8, 13)
    assert np.array_equal(center_crop(Image.fromarray(wide), 8), wide[:, 2:10])  # (13 - 8) // 2 = 2


class Script:
    """A generator that draws the given numbers, and notes from which ranges (both ends included)."""

    def __init__(self, *draws: int):
        self.draws, self.ranges = list(draws), []

    def integers(self, low, high=None, endpoint=False):
        low, high = (0, low) if high is None else (low, high)
        self.ranges.append((low, high if endpoint else high - 1))
        return self.draws.pop(0)


def test_random_crop_draws_as_the_reference():
    image = Image.fromarray(noise(190, 80, 3))
    script = Script(40, 50, 3)  # the shorter side, y, x
    crop = random_crop(image, 32, script)
    assert script.ranges == [(32, 40), (0, 63), (0, 8)]  # 80x190 -> BOX 40x95, so y <= 95 - 32, x <= 40 - 32
    assert np.array_equal(crop, np.asarray(image.resize((40, 95), BOX))[50:82, 3:35])

    script = Script(33, 0, 1)
    crop = random_crop(image, 32, script, min_fraction=0.5, max_fraction=0.99)
    assert script.ranges == [(33, 64), (0, 46), (0, 1)]  # 33 = ceil(32 / 0.99); 40x95 -> 33x78, 79 - 33 = 46
    assert np.array_equal(crop, np.asarray(image.resize((40, 95), BOX).resize((33, 78), BICUBIC))[0:32, 1:33])


def test_random_crop_takes_all_sizes_and_is_repeatable():
    image = Image.fromarray(noise(50, 60))
    crops = {random_crop(image, 8, np.random.default_rng(seed)).tobytes() for seed in range(200)}
    assert len(crops) == 26  # 60x50 -> 15x12 -> 10x8, 11x9 or 12x10: 3 * 1 + 4 * 2 + 5 * 3 places
    first, again = (random_crop(image, 8, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_pad_in_the_middle(channels):
    small = noise(28, 27, *channels)
    out = pad(small, 32)
    assert out.shape == (32, 32, *channels) and out.dtype == np.uint8
    assert np.array_equal(out[2:30, 2:29], small)  # (32 - 28) // 2 = 2, (32 - 27) // 2 = 2
    out[2:30, 2:29] = 0
    assert not out.any()


def test_pad_at_random_is_uniform():
    places = []
    for seed in range(900):
        y, x = np.argwhere(pad(np.ones((3, 3), np.uint8), 5, np.random.default_rng(seed)))[0]
        places.append((int(y), int(x)))
    counts = [places.count(place) for place in itertools.product(range(3), range(3))]
    assert sum(counts) == 900 and min(counts) > 65 and max(counts) < 140  # 100 each, sd 9.4


def test_pad_refuses_larger_images():
    with fails("33x20", "32x32", 'fit="resize"'):
        pad(noise(20, 33), 32)


# layouts


def test_class_folders(tmp_path):
    cat = noise(8, 8, 3, seed=1)
    dog = noise(8, 8, 3, seed=2)
    save(tmp_path / "dog" / "b.png", dog)
    save(tmp_path / "cat" / "deep" / "er" / "a_1.png", cat)
    save(tmp_path / "cat" / "z.webp", cat, lossless=True)
    save(tmp_path / "Cow" / "m.bmp", dog)
    dataset = open_dataset(tmp_path, 8)
    assert dataset.label_names == ("Cow", "cat", "dog")
    assert dataset.labels.dtype == np.int64 and dataset.labels.tolist() == [0, 1, 1, 2]
    assert (len(dataset), dataset.channels, dataset.image_size, dataset.skipped) == (4, 3, 8, [])
    for index, pixels, label in ((0, dog, 0), (1, cat, 1), (2, cat, 1), (3, dog, 2)):
        x, y = dataset[index]
        assert x.dtype == torch.float32 and x.shape == (3, 8, 8) and y == label
        assert np.array_equal(x, scaled(pixels))
    unlabelled = open_dataset(tmp_path, 8, labels=False)
    assert unlabelled.labels is None and unlabelled.label_names == () and unlabelled[3][1] == -1
    with pytest.raises(IndexError):
        dataset[4]


def test_label_names_fix_the_numbers_of_a_folder(tmp_path):
    save(tmp_path / "dog" / "a.png", noise(4, 4))
    save(tmp_path / "cat" / "a.png", noise(4, 4))
    dataset = open_dataset(tmp_path, 4, label_names=["dog", "bird", "cat"])
    assert dataset.labels.tolist() == [2, 0] and dataset.label_names == ("dog", "bird", "cat")
    with fails("dog", "label_names", "cat, bird"):
        open_dataset(tmp_path, 4, label_names=["cat", "bird"])
    with fails("label_names", "distinct"):
        open_dataset(tmp_path, 4, label_names=["cat", "dog", "cat"])


def test_flat_folder_takes_labels_from_file_names(tmp_path):
    for name in ("truck_9_x.png", "cat_2.png", "bird_1.png", "cat_10.png"):
        save(tmp_path / name, noise(4, 4))
    dataset = open_dataset(tmp_path, 4)
    assert [path.name for path in dataset.images] == ["bird_1.png", "cat_10.png", "cat_2.png", "truck_9_x.png"]
    assert dataset.labels.tolist() == [0, 1, 1, 2] and dataset.label_names == ("bird", "cat", "truck")
    assert open_dataset(tmp_path, 4, labels=False).labels is None
    save(tmp_path / "plain.png", noise(4, 4))
    with fails("1 of 5", "plain.png", "underscore", "labels='none'"):
        open_dataset(tmp_path, 4)
    assert len(open_dataset(tmp_path, 4, labels=False)) == 5


def test_flat_folder_without_underscores_has_no_labels(tmp_path):
    save(tmp_path / "a.png", noise(4, 4))
    (tmp_path / "read_me.txt").write_text("an underscore, but no image")
    dataset = open_dataset(tmp_path, 4)
    assert dataset.labels is None and dataset.label_names == () and dataset[0][1] == -1
    assert next(batches(dataset, 2, seed=0))[1].tolist() == [-1, -1]


def test_mixture_of_folders_and_loose_images(tmp_path):
    save(tmp_path / "cat" / "a.png", noise(4, 4))
    (tmp_path / "notes.txt").write_text("not an image, so no mixture")
    dataset = open_dataset(tmp_path, 4)
    assert dataset.label_names == ("cat",)
    assert dataset.skipped == [(tmp_path / "notes.txt", "not an image that Pillow can read")]
    save(tmp_path / "loose.png", noise(4, 4))
    with fails("mixes", "cat", "loose.png", "labels='none'"):
        open_dataset(tmp_path, 4)
    assert len(open_dataset(tmp_path, 4, labels=False)) == 2


@pytest.mark.parametrize("end", ["-idx3-ubyte", "-idx3-ubyte.gz", ".idx3-ubyte", ".idx3-ubyte.gz"])
def test_idx_folder(tmp_path, end):
    train, test = noise(5, 6, 6), noise(3, 6, 6, seed=1)
    label_end = end.replace("idx3", "idx1")
    write_idx(tmp_path / f"train-images{end}", train)
    write_idx(tmp_path / f"train-labels{label_end}", np.array([3, 0, 1, 1, 2]))
    write_idx(tmp_path / f"t10k-images{end}", test)
    write_idx(tmp_path / f"t10k-labels{label_end}", np.array([0, 1, 0]))
    dataset = open_dataset(tmp_path, 6)
    assert (len(dataset), dataset.channels) == (5, 1)
    assert dataset.labels.tolist() == [3, 0, 1, 1, 2] and dataset.label_names == ("0", "1", "2", "3")
    assert all(np.array_equal(dataset[i][0], scaled(train[i])) for i in range(5))
    held_out = open_dataset(tmp_path, 6, split="test", label_names=["a", "b", "c"])
    assert held_out.labels.tolist() == [0, 1, 0] and held_out.label_names == ("a", "b", "c")
    assert np.array_equal(held_out[2][0], scaled(test[2]))
    single = open_dataset(tmp_path / f"t10k-images{end}", 6)
    assert single.labels.tolist() == [0, 1, 0] and single.label_names == ("0", "1")
    assert open_dataset(tmp_path, 6, labels=False).labels is None
    with fails("label 3", "2 label_names", "a, b"):
        open_dataset(tmp_path, 6, label_names=["a", "b"])


@pytest.mark.parametrize("folder", ["fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_is_known_by_its_folder(tmp_path, folder):
    write_idx(tmp_path / folder / "train-images-idx3-ubyte.gz", noise(2, 28, 28))
    write_idx(tmp_path / folder / "train-labels-idx1-ubyte.gz", np.array([9, 0]))
    dataset = open_dataset(tmp_path / folder, 32, fit="pad")
    assert dataset.label_names == data.FASHION_MNIST_LABELS and len(dataset.label_names) == 10
    assert dataset.label_names[dataset[0][1]] == "Ankle boot" and dataset.label_names[0] == "T-shirt/top"
    x = dataset[0][0]
    assert x.shape == (1, 32, 32) and np.array_equal(x[:, 2:30, 2:30], scaled(noise(2, 28, 28)[0]))
    assert (x[:, :2] == -1).all() and (x[:, :, 30:] == -1).all()
    renamed = open_dataset(tmp_path / folder, 28, label_names=list("abcdefghij"))
    assert renamed.label_names == tuple("abcdefghij")


def test_npz(tmp_path):
    colour = noise(4, 8, 8, 3)
    dataset = open_dataset(write_npz(tmp_path / "a.npz", colour, np.array([2, 0, 0, 1], np.uint8)), 8)
    assert dataset.labels.dtype == np.int64 and dataset.labels.tolist() == [2, 0, 0, 1]
    assert dataset.label_names == ("0", "1", "2") and dataset.channels == 3
    assert np.array_equal(dataset[3][0], scaled(colour[3]))
    grey = open_dataset(write_npz(tmp_path / "b.npz", noise(2, 8, 8)), 8)
    assert grey.channels == 1 and grey.labels is None and grey[0][1] == -1
    assert np.array_equal(grey[1][0], scaled(noise(2, 8, 8)[1]))


def test_arrays_of_another_size_are_resized_like_files(tmp_path):
    images = noise(2, 9, 13, 3)
    dataset = open_dataset(write_npz(tmp_path / "a.npz", images), 6)
    assert np.array_equal(dataset[1][0], scaled(center_crop(Image.fromarray(images[1]), 6)))
    up = open_dataset(write_npz(tmp_path / "b.npz", noise(1, 28, 28)), 32)
    assert np.array_equal(up[0][0][0], scaled(np.asarray(Image.fromarray(noise(28, 28)).resize((32, 32), BICUBIC)))[0])


# pixels


def test_value_range(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    x = open_dataset(write_npz(tmp_path / "a.npz", levels), 16)[0][0].flatten()
    assert x[0] == -1 and x[255] == 1 and x[51] == np.float32(51) / np.float32(127.5) - 1
    assert torch.allclose(x.diff(), torch.tensor(2 / 255), atol=1e-6)


def test_channels(tmp_path):
    grey, colour = noise(4, 4), noise(4, 4, 3)
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    save(tmp_path / "grey" / "a.png", grey)
    Image.fromarray(grey > 127).save(tmp_path / "grey" / "b.png")  # mode "1"
    save(tmp_path / "grey" / "c.png", grey.astype(np.uint16) * 257)  # mode "I;16"
    dataset = open_dataset(tmp_path, 4)
    assert dataset.channels == 1 and dataset[0][0].shape == (1, 4, 4)
    assert np.array_equal(dataset[1][0], scaled((grey > 127) * np.uint8(255)))
    assert np.array_equal(dataset[2][0], scaled(grey))  # 16 bits are scaled, not clipped
    save(tmp_path / "grey" / "d.png", colour)
    mixed = open_dataset(tmp_path, 4)
    assert mixed.channels == 3 and np.array_equal(mixed[0][0], scaled(np.stack([grey] * 3, -1)))
    assert np.array_equal(open_dataset(tmp_path, 4, channels=1)[3][0], scaled(luma))

    path = write_npz(tmp_path / "a.npz", np.stack([colour, colour]))
    assert np.array_equal(open_dataset(path, 4, channels=1)[1][0], scaled(luma))
    path = write_npz(tmp_path / "b.npz", grey[None])
    assert np.array_equal(open_dataset(path, 4, channels=3)[0][0], scaled(np.stack([grey] * 3, -1)))


def test_transparency_is_white_and_other_modes_are_converted(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = (10, 20, 30, 255)
    rgba[1] = (10, 20, 30, 0)
    save(tmp_path / "a.png", rgba)
    save(tmp_path / "b.png", np.stack([rgba[..., 0], rgba[..., 3]], -1))  # mode "LA"
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50, 1, 2, 3])
    palette.putpixel((0, 0), 2)
    palette.save(tmp_path / "c.png", transparency=2)
    palette.save(tmp_path / "d.gif")
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "e.tif")
    dataset = open_dataset(tmp_path, 2)
    assert dataset.channels == 3 and not dataset.skipped
    pixels = [((dataset[i][0] + 1) * 127.5).round().int() for i in range(5)]
    assert pixels[0][:, 0, 1].tolist() == [10, 20, 30] and pixels[0][:, 1, 1].tolist() == [255] * 3
    assert pixels[1][:, 0, 1].tolist() == [10] * 3 and pixels[1][:, 1, 1].tolist() == [255] * 3
    assert pixels[2][:, 1, 1].tolist() == [200, 100, 50] and pixels[2][:, 0, 0].tolist() == [255] * 3
    assert pixels[3][:, 1, 1].tolist() == [200, 100, 50] and pixels[3][:, 0, 0].tolist() == [1, 2, 3]
    assert pixels[4][:, 0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_is_respected(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top of the picture is the right of the file
    pixels = noise(4, 6, 3)
    save(tmp_path / "a.png", pixels, exif=exif)
    upright = np.rot90(pixels, -1)
    assert np.array_equal(open_dataset(tmp_path, 6, fit="pad")[0][0][:, :, 1:5], scaled(upright))
    assert np.array_equal(open_dataset(tmp_path, 4)[0][0], scaled(upright[1:5]))


# augmentation


def test_flip_follows_the_seed_alone(tmp_path):
    dataset = open_dataset(write_npz(tmp_path / "a.npz", noise(2, 8, 8, 3)), 8, flip=True)
    plain = dataset.get(1)[0]
    flipped = [not torch.equal(dataset.get(1, seed)[0], plain) for seed in range(200)]
    assert 75 < sum(flipped) < 125
    assert torch.equal(dataset.get(1, flipped.index(True))[0], plain.flip(-1))
    assert flipped == [not torch.equal(dataset.get(1, seed)[0], plain) for seed in range(200)]
    torch.manual_seed(0)
    items = [dataset[1][0] for _ in range(200)]  # with seeds of torch's generator
    assert 75 < sum(not torch.equal(item, plain) for item in items) < 125
    torch.manual_seed(0)
    assert torch.equal(torch.stack([dataset[1][0] for _ in range(200)]), torch.stack(items))
    still = open_dataset(tmp_path / "a.npz", 8)
    assert all(torch.equal(still.get(1, seed)[0], plain) for seed in range(20))


@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_random_crops_of_files_and_arrays_agree(tmp_path, fit):
    images = noise(3, 20, 25, 3)
    for index, image in enumerate(images):
        save(tmp_path / "files" / f"{index}.png", image)
    options = {"fit": fit, "crop": "random", "flip": True}
    size = 32 if fit == "pad" else 16
    files = open_dataset(tmp_path / "files", size, **options)
    arrays = open_dataset(write_npz(tmp_path / "a.npz", images), size, **options)
    seen = set()
    for seed in range(30):
        x = files.get(2, seed)[0]
        assert torch.equal(x, arrays.get(2, seed)[0])
        seen.add(x.numpy().tobytes())
    assert len(seen) > 25
    middle = pad(images[2], 32) if fit == "pad" else center_crop(Image.fromarray(images[2]), 16)
    assert np.array_equal(files.get(2)[0], scaled(middle))


def test_random_padding_keeps_the_image_whole(tmp_path):
    dataset = open_dataset(write_npz(tmp_path / "a.npz", 1 + noise(1, 4, 4) // 2), 6, fit="pad", crop="random")
    expected, places = np.sort(scaled(dataset.images[0]).ravel()), set()
    for seed in range(60):
        x = dataset.get(0, seed)[0][0].numpy()
        y0, x0 = np.argwhere(x > -1)[0]
        assert np.array_equal(np.sort(x[y0 : y0 + 4, x0 : x0 + 4].ravel()), expected)
        places.add((int(y0), int(x0)))
    assert places == set(itertools.product(range(3), range(3)))


# batches


@pytest.fixture
def folder(tmp_path):
    """Five labelled 10x12 colour images."""
    for index in range(5):
        save(tmp_path / "folder" / "ab"[index % 2] / f"{index}.png", noise(10, 12, 3, seed=index))
    return tmp_path / "folder"


def take(stream, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(itertools.islice(stream, count))


def equal(a, b) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, v) and torch.equal(y, w) for (x, y), (v, w) in zip(a, b, strict=True)
    )


def test_batches_resume_exactly(folder):
    dataset = open_dataset(folder, 8, crop="random", flip=True)
    whole = take(batches(dataset, 3, seed=7), 9)
    assert all(x.shape == (3, 3, 8, 8) and x.dtype == torch.float32 for x, _ in whole)
    assert all(y.shape == (3,) and y.dtype == torch.int64 for _, y in whole)
    assert equal(take(batches(dataset, 3, seed=7, start=4), 5), whole[4:])
    thirds = [take(batches(dataset, 3, seed=7, part=(rank, 3)), 9) for rank in range(3)]
    joined = [tuple(map(torch.cat, zip(*parts))) for parts in zip(*thirds)]
    assert equal(joined, whole)
    assert not equal(take(batches(dataset, 3, seed=8), 9), whole)


@pytest.mark.thorough
def test_workers_change_nothing(folder):
    dataset = open_dataset(folder, 8, crop="random", flip=True)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a machine with one core warns of more workers than that
        parallel = take(batches(dataset, 3, seed=7, start=2, workers=2), 6)
    assert equal(parallel, take(batches(dataset, 3, seed=7, start=2), 6))
    assert torch.equal(torch.get_rng_state(), state)  # nor does the stream use random numbers of others


def test_an_epoch_has_every_image_once_in_a_new_order(tmp_path):
    dataset = open_dataset(write_npz(tmp_path / "a.npz", noise(7, 4, 4), np.arange(7)), 4)
    labels = torch.cat([y for _, y in take(batches(dataset, 3, seed=0), 14)]).reshape(6, 7)  # 14 * 3 = 6 epochs of 7
    assert all(sorted(epoch) == list(range(7)) for epoch in labels.tolist())
    assert len({tuple(epoch) for epoch in labels.tolist()}) == 6
    for x, y in take(batches(dataset, 3, seed=0), 4):
        assert all(torch.equal(image, dataset.get(int(label))[0]) for image, label in zip(x, y, strict=True))


def test_an_image_is_augmented_anew_in_each_epoch(tmp_path):
    dataset = open_dataset(write_npz(tmp_path / "a.npz", noise(1, 4, 4)), 4, flip=True)
    x = torch.cat([x for x, _ in take(batches(dataset, 10, seed=0), 20)])  # a batch of ten epochs
    flipped = (x != dataset.get(0)[0]).flatten(1).any(1)
    assert 70 < flipped.sum() < 130 and torch.equal(x[flipped][0], dataset.get(0)[0].flip(-1))


def test_evaluation_is_one_ordered_pass_without_augmentation(folder):
    dataset = open_dataset(folder, 8, crop="random", flip=True)
    passes = list(evaluation_batches(dataset, 2))
    assert [len(x) for x, _ in passes] == [2, 2, 1]
    assert torch.cat([y for _, y in passes]).tolist() == [0, 0, 0, 1, 1]
    expected = [scaled(center_crop(Image.open(path), 8)) for path in dataset.images]
    assert np.array_equal(torch.cat([x for x, _ in passes]), np.stack(expected))


def test_wrong_arguments_of_batches_fail_at_once(tmp_path):
    dataset = open_dataset(write_npz(tmp_path / "a.npz", noise(2, 4, 4)), 4)
    with fails("batch_size", "got 0", "positive"):
        batches(dataset, 0, seed=0)
    with fails("batch_size", "got -1", "positive"):
        evaluation_batches(dataset, -1)
    for name in ("seed", "start", "workers"):
        with fails(f"{name} must be a non-negative integer", "got -1"):
            batches(dataset, 1, **{"seed": 0, name: -1})


# errors


def test_unreadable_files_are_named(tmp_path):
    good = save(tmp_path / "a" / "1.png", noise(16, 16, 3))
    cut = tmp_path / "a" / "2.png"
    cut.write_bytes(good.read_bytes()[:-300])
    text = tmp_path / "b" / "notes.txt"
    text.parent.mkdir()
    text.write_text("hello")
    (tmp_path / "b" / "empty.jpg").touch()
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "nowhere.png")
    for hidden in (".DS_Store", "Thumbs.db", "desktop.ini", "._1.png"):
        (tmp_path / "a" / hidden).write_text("hidden")
    save(tmp_path / ".cache" / "c.png", noise(4, 4))
    dataset = open_dataset(tmp_path, 16, verify="full")
    assert [path.name for path in dataset.images] == ["1.png"]
    assert dataset.label_names == ("a",)  # a folder with no image is no class
    reasons = {path.name: reason for path, reason in dataset.skipped}
    assert list(reasons) == ["2.png", "empty.jpg", "link.png", "notes.txt"]
    assert "truncated" in reasons["2.png"] and reasons["link.png"] == "No such file or directory"
    assert reasons["empty.jpg"] == reasons["notes.txt"] == "not an image that Pillow can read"
    with fails("4 of 5 files", "2.png", "truncated", "strict=True"):
        open_dataset(tmp_path, 16, strict=True, verify="full")

    headers_only = open_dataset(tmp_path, 16)
    assert [path.name for path in headers_only.images] == ["1.png", "2.png"]
    with fails("2.png", "truncated"):
        headers_only[1]
    good.unlink()
    with fails("1.png", "No such file"):
        dataset[0]


@pytest.mark.parametrize(
    "limit", [300, 150]
)  # Pillow warns of images above the limit, and refuses those above twice it
def test_huge_images_are_skipped(tmp_path, monkeypatch, limit):
    save(tmp_path / "a.png", noise(4, 4))
    save(tmp_path / "b.png", noise(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = open_dataset(tmp_path, 4)
    assert len(dataset) == 1 and dataset.skipped[0][0].name == "b.png" and "decompression bomb" in dataset.skipped[0][1]


def test_folders_that_link_to_themselves(tmp_path):
    save(tmp_path / "a" / "1.png", noise(4, 4))
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert open_dataset(tmp_path, 4).labels.tolist() == [0, 1]


def test_no_images(tmp_path):
    with fails("nowhere", "does not exist", "expected"):
        open_dataset(tmp_path / "nowhere", 4)
    with fails(str(tmp_path), "empty folder"):
        open_dataset(tmp_path, 4)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    with fails("2 of 2 files", "a.txt", "not an image", "at least one"):
        open_dataset(tmp_path, 4)


def test_options(tmp_path):
    path = write_npz(tmp_path / "a.npz", noise(2, 20, 33))
    save(tmp_path / "big" / "a.png", noise(33, 20))
    with fails("image_size", "got 0", "positive"):
        open_dataset(path, 0)
    with fails("channels", "got 0", "positive"):
        open_dataset(path, 4, channels=0)
    with fails("1 channel,", "channels is 4"):
        open_dataset(path, 4, channels=4)
    with fails("fit must be one of 'resize', 'pad'", "got 'stretch'"):
        open_dataset(path, 4, fit="stretch")
    with fails("crop must be one of 'center', 'random'", "got 'left'"):
        open_dataset(path, 4, crop="left")
    with fails("split must be one of 'train', 'test'", "got 'val'"):
        open_dataset(path, 4, split="val")
    with fails("a.npz", "33x20", "32x32"):
        open_dataset(path, 32, fit="pad")
    with fails("a.png", "20x33", "32x32"):
        open_dataset(tmp_path / "big", 32, fit="pad")


def test_corrupt_idx(tmp_path):
    images = write_idx(tmp_path / "train-images-idx3-ubyte", noise(3, 4, 4))
    raw = images.read_bytes()
    with fails("train-labels-idx1-ubyte", "beside", "labels='none'"):
        open_dataset(images, 4)
    with fails("t10k-images-idx3-ubyte", 'split="test"'):
        open_dataset(tmp_path, 4, split="test")
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(4))
    with fails("(4,)", "3 images", "one label per image"):
        open_dataset(tmp_path, 4)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(3))
    assert len(open_dataset(tmp_path, 4)) == 3
    with fails("train-labels-idx1-ubyte", "(3,)", "(N, H, W)"):
        open_dataset(tmp_path / "train-labels-idx1-ubyte", 4)
    for wrong in (raw[:-1], raw + b"x"):
        images.write_bytes(wrong)
        with fails(f"{len(wrong)} bytes", "3x4x4", f"{len(raw)} bytes"):
            open_dataset(tmp_path, 4)
    for wrong, seen in ((b"\x89PNG" + raw, "89504e47"), (b"\0\0\x0d\3" + raw[4:], "00000d03"), (b"", "none")):
        images.write_bytes(wrong)
        with fails(seen, "00000803", "00000801"):
            open_dataset(tmp_path, 4)
    images.write_bytes(raw[:9])
    with fails("9 bytes"):
        open_dataset(tmp_path, 4)
    images.write_bytes(gzip.compress(raw)[:-12])
    with fails("truncated gzip", "train-images-idx3-ubyte"):
        open_dataset(tmp_path, 4)

    values = write_idx(tmp_path / "x-images-idx3-ubyte", noise(3, 4, 4)).read_bytes()
    for zipped, seen in ((values + b"x", "more values"), (values[:-1], "fewer values")):
        images.write_bytes(gzip.compress(zipped))
        with fails(seen, "3x4x4"):
            open_dataset(tmp_path, 4)


def test_files_that_would_fill_the_memory(tmp_path, monkeypatch):
    claim = b"\0\0\x08\x03" + np.array([60_000, 300, 300], ">u4").tobytes()
    path = tmp_path / "a-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(claim + bytes(10_000)))
    with fails("would decompress to 5,400,000,000 bytes", "100 times"):
        open_dataset(path, 4, labels=False)
    monkeypatch.setattr("admg.data.arrays.BOMB", 1 << 20)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, arr_0=np.zeros((2, 1024, 1024), np.uint8))
    with fails("a.npz", "would decompress to 2,097,280 bytes"):
        open_dataset(path, 4)
    np.savez(path, arr_0=np.zeros((2, 1024, 1024), np.uint8))  # not compressed
    assert len(open_dataset(path, 4)) == 2
    with fails("less than 1,000,000", "got 1000000"):
        open_dataset(write_npz(path, noise(2, 4, 4), [0, 1_000_000]), 4)


def test_claimed_shapes_and_encrypted_members(tmp_path):
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64, 3)}
        )
    for end in (b"", b"\0" * 100):
        path.write_bytes(path.read_bytes()[:128] + end)
        with fails("a.npy", "plain arrays"):
            open_dataset(path, 4)
    path = write_npz(tmp_path / "a.npz", noise(2, 4, 4))
    raw = bytearray(path.read_bytes())
    raw[6] |= 1  # encrypted, says the header
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(raw))
    with fails("a.npz", "encrypted"):
        open_dataset(path, 4)
    raw[6] ^= 1
    raw[raw.index(b"PK\x01\x02") + 8] ^= 1
    raw[raw.index(b"PK\x01\x02") + 10] = 77  # a method of compression that there is not
    path.write_bytes(bytes(raw))
    with fails("a.npz", "plain arrays"):
        open_dataset(path, 4)


def test_an_npz_in_which_some_images_have_no_label(tmp_path):
    path = write_npz(tmp_path / "a.npz", noise(3, 8, 8, 1), np.array([2, -1, 0]))
    with fails("a.npz", "1 of 3 images have no label (image 1)", "--unlabelled"):
        open_dataset(path)
    assert open_dataset(path, labels="none").labels is None


def test_wrong_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=noise(2, 4, 4))
    with fails("no arr_0", "images"):
        open_dataset(path, 4)
    with fails("a.npz", "floats from 0 to 0", "neither clearly [0, 1]"):
        open_dataset(write_npz(path, np.zeros((2, 4, 4), np.float32)), 4)
    wrong = {"(4, 4)": noise(4, 4), "(2, 4, 4, 4)": noise(2, 4, 4, 4), "(2, 3, 8, 8)": noise(2, 3, 8, 8)}
    for seen, images in (*wrong.items(), ("(0, 4, 4, 1)", noise(0, 4, 4))):
        with fails("arr_0", seen, "uint8"):
            open_dataset(write_npz(path, images), 4)
    with fails("a.npz", "plain arrays", "allow_pickle"):
        open_dataset(write_npz(path, np.array([{}, None], dtype=object)), 4)
    with fails("not be negative", "got -2"):
        open_dataset(write_npz(path, noise(2, 4, 4), [0, -2]), 4)
    with fails("(3,)", "(2,)", "one integer label per image"):
        open_dataset(write_npz(path, noise(2, 4, 4), [0, 1, 2]), 4)
    with fails("one integer label per image", "got float64"):
        open_dataset(write_npz(path, noise(2, 4, 4), [0.5, 1.0]), 4)
    raw = write_npz(path, noise(2, 4, 4)).read_bytes()
    for content in (raw[:-40], b"hello", b""):
        path.write_bytes(content)
        with fails("a.npz", "plain arrays"):
            open_dataset(path, 4)


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.tif", "a.webp"])
def test_a_single_picture_is_no_data_set(tmp_path, name):
    Image.new("L", (8, 8)).save(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} is a single image, not a set of images: expected"):
        open_dataset(tmp_path / name)
    with pytest.raises(DataError, match="single image"):
        open_source(tmp_path / name)
