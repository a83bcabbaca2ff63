"""Reading of samples and references, features block by block and shared, and the command that prints the figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import write_idx
from PIL import Image

from admg.checkpoints.model import Classifier
from admg.cli.main import main
from admg.data import from_arrays
from admg.data import open as open_dataset
from admg.data.spread import spread_indices
from admg.evaluation import features as networks
from admg.evaluation.evaluate import choose_metrics, compute, evaluate, needs_features
from admg.evaluation.features import extraction as features
from admg.evaluation.label_classifier import load_label_classifier
from admg.evaluation.metrics import METRICS, FeatureSet, Inputs, StoredStatistics
from admg.evaluation.metrics.fid import frechet_distance, frechet_estimate, frechet_infinite, group_moments
from admg.evaluation.metrics.intervals import draw_groups
from admg.evaluation.metrics.statistics import Gaussian
from admg.evaluation.metrics_cache import fingerprint_source
from admg.evaluation.neighbours import nearest, neighbours, picture
from admg.evaluation.opening import as_source, source_from_array
from admg.evaluation.sources import open_source
from admg.generation.run_record import open_run
from admg.generation.samples import Samples
from admg.generation.shards import Shards


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("ADMG_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("ADMG_OFFLINE", "1")


class Pixels(torch.nn.Module):
    """Features: means of the quarters of the image, each channel; counts the images that it has seen."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


OWN = """
import torch
class Quarters(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x[:, :1], 2).flatten(1)
class Bright:
    def predict(self, images):
        return (images.mean((1, 2, 3)) > 127).astype(int)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return str(path)


def images(count: int, seed: int = 0, size: int = 8, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 200, (count, 1, 1, 1)) + rng.integers(0, 56, (count, size, size, channels))).astype(
        np.uint8
    )


def save_folder(folder, array, names=None) -> str:
    folder.mkdir()
    for i, image in enumerate(array):
        Image.fromarray(image.squeeze()).save(folder / f"{names[i] + '_' if names else ''}{i:04d}.png")
    return str(folder)


# -- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_and_folder_and_memory_give_the_same_pixels(tmp_path, channels, save):
    array = images(7, channels=channels)
    save(tmp_path / "a.npz", arr_0=array, arr_1=np.arange(7) % 3)
    sources = [open_source(tmp_path / "a.npz", labels=True), source_from_array(array)]
    sources.append(open_source(save_folder(tmp_path / "folder", array)))
    for source in sources:
        assert (len(source), source.size, source.channels) == (7, (8, 8), channels)
        np.testing.assert_array_equal(source[2:5], array[2:5])
        np.testing.assert_array_equal(source[5:99], array[5:])
    assert sources[0].labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert sources[1].labels is None
    assert sources[0].digest(slice(0, 7)) == sources[1].digest(slice(0, 7))


def test_a_subset_is_an_image_of_each_part_with_its_label(tmp_path):
    array = images(10)
    np.savez(tmp_path / "a.npz", arr_0=array, arr_1=np.arange(10))
    source = open_source(tmp_path / "a.npz", labels=True).subset(4)
    chosen = source.labels.tolist()
    assert all(number in part for number, part in zip(chosen, ([0, 1], [2, 3, 4], [5, 6], [7, 8, 9])))
    np.testing.assert_array_equal(source[1:4], array[chosen[1:]])
    assert len(source.subset(9)) == 4
    with pytest.raises(ValueError, match="the number of images must be at least 2, got 1"):
        source.subset(1)


def test_other_sizes_are_fitted_as_in_training(tmp_path):
    from admg.data import center_crop, pad

    array = images(3, size=6)
    source = source_from_array(array)
    np.testing.assert_array_equal(source.fitted((8, 8), "pad")[0:1][0], pad(array[0], 8))
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    (tmp_path / "f").mkdir()
    wide.save(tmp_path / "f" / "a.png")
    wide.resize((8, 8)).save(tmp_path / "f" / "b.png")
    source = open_source(tmp_path / "f")
    assert source.size is None
    with pytest.raises(ValueError, match="images of different sizes"):
        source[0:1]
    with pytest.raises(ValueError, match="images of different sizes, but the samples are 8x8: pass fit='resize'"):
        source.fitted((8, 8), None)
    fitted = source.fitted((8, 8), "resize")
    np.testing.assert_array_equal(fitted[0:1][0], center_crop(wide, 8))
    assert fitted.digest(slice(0, 1)) != source.fitted((4, 4), "resize").digest(slice(0, 1))
    with pytest.raises(ValueError, match="can only be fitted to squares"):
        source.fitted((8, 4), "resize")


def save_transparent(folder) -> np.ndarray:
    """Write six images of which half the pixels are transparent; return them on black."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 8, 8, 4), dtype=np.uint8)
    pixels[..., 3] = rng.choice([0, 255], (6, 8, 8))
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    return pixels[..., :3] * (pixels[..., 3:] == 255)


def test_transparent_and_padded_images_lie_on_the_background(tmp_path):
    """Whose features are not taken from those on another one."""
    from admg.data import pad

    black = save_transparent(tmp_path / "f")

    def found(background: int | None, **options) -> dict[str, float]:
        report = evaluate(black, tmp_path / "f", ["fid", "precision"], Pixels(), background=background, **options)
        assert report.to_dict()["background"] == background
        return {value.metric: round(value.value, 6) + 0.0 for value in report.values}

    options = {"cache": tmp_path / "cache", "progress": False, "interval": False}
    assert found(None, **options)["fid"] > 0.3
    assert found(0, **options) == {"fid": 0, "precision": 1}
    nearest_ones = neighbours(black, tmp_path / "f", Pixels(), num=6, background=0, progress=False).nearest
    assert nearest_ones.numbers[:, 0].tolist() == [*range(6)] and nearest_ones.distances[:, 0].max() < 1e-6
    sources = [as_source(black, background=level).fitted((10, 10), "pad") for level in (None, 200)]
    for source, border in zip(sources, (0, 200)):
        np.testing.assert_array_equal(source[0:1][0], pad(black[0], 10, canvas=border))
    assert sources[0].digest(slice(0, 6)) != sources[1].digest(slice(0, 6))
    padded = open_source(tmp_path / "f", background=0).fitted((10, 10), "pad")
    np.testing.assert_array_equal(padded[0:6], sources[0][0:6])
    with pytest.raises(ValueError, match="background must be a grey level from 0 to 255, got 256"):
        found(256)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_the_size_of_rotated_photographs_is_that_of_their_pixels(tmp_path, ending):
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        folder = tmp_path / str(orientation)
        folder.mkdir()
        for i in range(2):
            Image.new("RGB", (12, 8), (i, 90, 0)).save(folder / f"{i}.{ending}", exif=exif)
        source = open_source(folder)
        assert source.size == source[0:2].shape[1:3] == ((8, 12) if orientation == 1 else (12, 8))
    Image.new("RGB", (12, 8)).save(folder / f"plain.{ending}")
    assert open_source(folder).size is None


def test_a_folder_of_idx_files_and_its_splits(tmp_path):
    for split, count in (("train", 12), ("t10k", 5)):
        write_idx(tmp_path / f"{split}-images-idx3-ubyte", images(count).squeeze(-1))
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", (np.arange(count) % 3).astype(np.uint8))
    source = open_source(tmp_path, labels=True)
    assert (len(source), source.size, source.channels) == (5, (8, 8), 1)
    assert source.labels.tolist() == [0, 1, 2, 0, 1]
    np.testing.assert_array_equal(source[1:3], images(5)[1:3])
    assert len(open_source(tmp_path, split="train")) == 12


def test_a_sample_folder_equals_its_npz(tmp_path):
    """Not its contact sheet, nor its images again."""
    shards = open_run({"seed": 0}, Shards(tmp_path, 3, 2, (8, 8, 1), labelled=False))
    with pytest.raises(ValueError, match=r"unfinished run: samples_3x8x8x1\.npz does not exist yet"):
        open_source(tmp_path)
    array = images(3)
    shards.write(0, array[:2], None)
    shards.write(1, array[2:], None)
    shards.merge()
    Image.new("RGB", (50, 50)).save(tmp_path / "sheet.png")
    source = open_source(tmp_path)
    assert (len(source), source.size) == (3, (8, 8))
    np.testing.assert_array_equal(source[0:3], array)


def test_labels_of_a_folder(tmp_path):
    source = open_source(save_folder(tmp_path / "f", images(4), ["b", "a", "b", "c"]), labels=True)
    assert source.label_names == ("a", "b", "c")
    assert [source.label_names[k] for k in source.labels] == ["a", "b", "b", "c"]  # files are in the order of names


def test_statistics_alone_and_beside_images(tmp_path):
    cov = np.eye(3) * 2
    stored = {"mu": np.arange(3.0), "sigma": cov, "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    np.savez(tmp_path / "only.npz", **stored)
    only = open_source(tmp_path / "only.npz")
    assert only.images is None and len(only) == 0
    assert only.statistics.features.mean.tolist() == [0, 1, 2]
    assert only.statistics.spatial.cov.tolist() == [[1, 0], [0, 1]]
    np.savez(tmp_path / "both.npz", arr_0=images(3), mu=np.zeros(3), sigma=cov)
    both = open_source(tmp_path / "both.npz")
    assert len(both) == 3
    assert both.statistics.spatial is None
    np.savez(tmp_path / "half.npz", mu=np.zeros(3), mu_s=np.zeros(2), sigma_s=np.eye(2))
    with pytest.raises(ValueError, match=r"half.npz has no mu and sigma: it has mu, mu_s, sigma_s"):
        open_source(tmp_path / "half.npz")
    np.savez(tmp_path / "bad.npz", mu=np.zeros(3), sigma=np.eye(2))
    with pytest.raises(ValueError, match=r"mu and sigma must be float .* got shapes \(3,\) and \(2, 2\)"):
        open_source(tmp_path / "bad.npz")
    np.savez(tmp_path / "half.npz", mu=np.zeros(3))
    with pytest.raises(ValueError, match="sigma"):
        open_source(tmp_path / "half.npz")
    np.savez(tmp_path / "nan.npz", mu=np.full(3, np.nan), sigma=cov)
    with pytest.raises(ValueError, match="not finite"):
        open_source(tmp_path / "nan.npz")


def test_floats_are_images_in_minus_one_to_one():
    from admg.generation.images import to_uint8

    x = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2.08 - 1.04
    np.testing.assert_array_equal(source_from_array(x.numpy())[0:3], to_uint8(x))
    np.testing.assert_array_equal(source_from_array(x.bfloat16())[0:3], to_uint8(x.bfloat16()))


def test_floats_are_rounded_in_real_images_and_truncated_in_samples():
    x = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rounded = (x * 255).double().round().byte().permute(0, 2, 3, 1).numpy()
    signed = x.double() * 2 - 1
    np.testing.assert_array_equal(as_source(x)[0:60], rounded)
    np.testing.assert_array_equal(as_source(signed, real=True)[0:60], rounded)
    difference = rounded.astype(int) - as_source(signed)[0:60]
    assert set(np.unique(difference)) == {0, 1} and 0.45 < difference.mean() < 0.55
    options = {"cache": False, "progress": False, "interval": False}
    assert abs(evaluate(rounded, signed, ["fid"], Pixels(), **options)["fid"]) < 1e-9  # the reference is real
    nearest_ones = neighbours(rounded, signed, Pixels(), num=60, cache=False, progress=False).nearest
    assert nearest_ones.distances[:, 0].max() < 1e-6


def test_one_picture_is_not_taken_for_many(tmp_path):
    picture = np.zeros((64, 60, 3), np.uint8)
    np.savez(tmp_path / "one.npz", arr_0=picture)
    np.save(tmp_path / "one.npy", picture)
    for images in (picture, torch.from_numpy(picture), tmp_path / "one.npz", tmp_path / "one.npy"):
        with pytest.raises(ValueError, match=r"shape \(64, 60, 3\), which looks like one image .*: use images\[None\]"):
            as_source(images)
    assert len(source_from_array(np.zeros((64, 60, 60), np.uint8))) == 64


def test_images_normalised_by_mean_and_deviation_are_refused():
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"the samples must be floats in \[-1, 1\], .* of them beyond ±1.05: if"):
        as_source((x - 0.45) / 0.225, "the samples")
    x = x * 2 - 1
    x[0, 0, 0, :7] = 1.5  # 7 of 768 values, as a generated image may have
    assert len(as_source(x)) == 4
    x[0, 0, 0, 7] = 1.5
    with pytest.raises(ValueError, match="1% of them beyond"):
        as_source(x)


def test_a_data_set_is_fitted_from_its_own_images(tmp_path):
    """Not from those that it was made of, which have another size."""
    raw = images(20, size=24, channels=3)
    (tmp_path / "f").mkdir()
    for i, image in enumerate(raw):
        Image.fromarray(image).save(tmp_path / "f" / f"{i:02}.png")
    for fit, size, other in (("pad", 32, 16), ("pad", 32, 24), ("resize", 8, 24), ("resize", 8, 16)):
        array = from_arrays(raw, image_size=size, fit=fit)
        x = array.batch(range(20))[0]
        expected = as_source(x, real=True).fitted((other, other), "resize")[0:20]
        for dataset in (array, open_dataset(tmp_path / "f", size, fit=fit)):
            source = as_source(dataset)
            np.testing.assert_array_equal(source[0:20], as_source(x, real=True)[0:20])
            fitted = source.fitted((other, other), "resize")
            np.testing.assert_array_equal(fitted[0:20], expected)
            for known in (lambda found: found.digest(slice(0, 20)), fingerprint_source):
                assert known(fitted) != known(replace(fitted, view=None))


def test_grey_arrays_of_a_colour_data_set_are_read_in_colour():
    grey = images(12, channels=1)
    source, expected = as_source(from_arrays(grey, channels=3)), np.repeat(grey, 3, axis=3)
    np.testing.assert_array_equal(source[0:12], expected)
    np.testing.assert_array_equal(source.fitted((16, 16), "pad")[0:12][:, 4:12, 4:12], expected)
    assert source.digest(slice(0, 12)) != source_from_array(grey).digest(slice(0, 12))
    classifier = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8), torch.nn.Flatten())
    source.labels = np.arange(12) % 4
    same = replace(source_from_array(expected), labels=source.labels)
    counts = [load_label_classifier(classifier, each).count_correct(each) for each in (source, same)]
    assert counts[0] == counts[1] and counts[0][1] == 12


def test_bad_images_are_named(tmp_path):
    x = np.zeros((3, 1, 4, 4), np.float32)
    x[1, 0, 2, 2] = np.nan
    wrong = [
        (x, "image 1 has values that are not finite"),
        (np.full((3, 1, 4, 4), 200.0), r"float \(3, 1, 4, 4\) with values in \[200, 200\]: expected"),
        (np.zeros((3, 4, 4), np.int64), "got int64"),
        (np.zeros((3, 2, 4, 4), np.uint8), r"uint8 \(3, 2, 4, 4\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "at least 2 images are needed, got 1"),
    ]
    for array, message in wrong:
        with pytest.raises(ValueError, match=message):
            source_from_array(array)
    files = {
        "float": ({"arr_0": np.zeros((3, 4, 4, 3))}, "arr_0 must be uint8 .* got float64"),
        "none": ({"images": np.zeros(3)}, r"neither images \(arr_0\) nor statistics \(mu, sigma\): it has images"),
        "one": ({"arr_0": np.zeros((1, 4, 4, 3), np.uint8)}, "at least 2 images are needed, but"),
        "first": (
            {"arr_0": np.zeros((3, 2, 4, 4), np.uint8)},
            r"arr_0 must be \(N, H, W, C\), .* \(3, 2, 4, 4\)",
        ),
        "object": ({"arr_0": np.array([None])}, "cannot be used"),
    }
    for name, (arrays, message) in files.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            open_source(tmp_path / f"{name}.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=r"broken\.npz is not an .npz file of plain arrays"):
        open_source(tmp_path / "broken.npz")
    for path in ("none.npz", "none"):
        with pytest.raises((ValueError, OSError), match="does not exist"):
            open_source(tmp_path / "here" / path)


# -- features --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(features, "BLOCK", 4)


def test_features_equal_the_networks_in_order(small_blocks):
    array = images(11)
    found = features.extract(source_from_array(array), networks.load(Pixels()), batch_size=3)
    quarters = array.reshape(11, 2, 4, 2, 4).mean((2, 4)).reshape(11, 4) / 127.5 - 1
    np.testing.assert_allclose(found.features, np.tile(quarters, 3), atol=1e-6)
    assert found.features.dtype == np.float32
    assert found.spatial is None


def test_duplicate_images_are_evaluated_once(small_blocks, tmp_path):
    array = images(11)
    module = Pixels()
    network = networks.load(module)
    first = features.extract(source_from_array(array), network, tmp_path, batch_size=3)
    assert module.seen == 11
    np.savez_compressed(tmp_path / "a.npz", arr_0=array)  # from wherever they come
    again = features.extract(open_source(tmp_path / "a.npz"), network, tmp_path, batch_size=2)
    assert module.seen == 11
    np.testing.assert_array_equal(again.features, first.features)
    changed = array.copy()
    changed[6, 0, 0, 0] += 1
    found = features.extract(source_from_array(changed), network, tmp_path)
    assert module.seen == 11 + 4  # the block that holds it, and no other
    assert np.flatnonzero((found.features != first.features).any(1)).tolist() == [6]
    features.extract(source_from_array(array), networks.load(Pixels(), None), None)
    assert module.seen == 15


def test_the_cache_ignores_other_networks_and_damaged_files(small_blocks, tmp_path):
    source = source_from_array(images(5))
    first = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    before = features.extract(source, networks.load(first), tmp_path).features
    first[1].bias.data += 1
    np.testing.assert_allclose(features.extract(source, networks.load(first), tmp_path).features, before + 1, atol=1e-6)
    kept = sorted(tmp_path.rglob("*.npz"))
    assert len(kept) == 4  # two blocks of each

    whole = {path: path.read_bytes() for path in kept}

    def flipped(path: Path) -> bytes:
        content = bytearray(whole[path])
        content[content.index(b"features.npy") + 12 + 128] ^= 1  # in the first number after the header
        return bytes(content)

    def others(path: Path, shape: tuple[int, ...]) -> bytes:
        np.savez(tmp_path / "others", features=np.zeros(shape, np.float32), name=path.stem)
        return (tmp_path / "others.npz").read_bytes()

    for damaged in (
        lambda path: whole[path][:100],
        flipped,
        lambda path: others(path, (9, 2)),
        lambda path: others(path, (4,)),
        lambda path: whole[kept[kept.index(path) - 1]],
    ):
        for path in kept:
            path.write_bytes(damaged(path))
        found = features.extract(source, networks.load(first), tmp_path).features
        np.testing.assert_allclose(found, before + 1, atol=1e-6)


def test_processes_share_the_work_with_equal_results(small_blocks, tmp_path):
    source, modules = source_from_array(images(22)), [Pixels(), Pixels(), Pixels()]
    alone = features.extract(source, networks.load(Pixels()))
    jobs = [features.Extraction(source, networks.load(m), tmp_path, 3, rank, 3) for rank, m in enumerate(modules)]
    for job in reversed(jobs):
        for _ in job.compute():
            pass
    assert [module.seen for module in modules] == [8, 8, 6]
    np.testing.assert_array_equal(jobs[0].gather().features, alone.features)
    with pytest.raises(ValueError, match="several processes, which share features"):
        features.Extraction(source, networks.load(Pixels()), None, 3, 0, 2)


def test_hostile_samples_are_refused(capsys, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=images(4))
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for local, central, value in ((6, 8, 1), (8, 10, 77)):  # encrypted; an unknown method of compression
        raw = bytearray(whole)
        raw[local] = raw[directory + central] = value
        path.write_bytes(bytes(raw))
        assert f"{path} cannot be used" in refused(capsys, "evaluate", path, path, "--metrics", "fid")
    header = whole.index(b"(4, ")
    path.write_bytes(whole[:header] + b"(9, " + whole[header + 4 :])  # a shape that the file does not hold
    assert str(path) in refused(capsys, "evaluate", path, path, "--metrics", "fid")


def test_features_that_are_not_finite():
    class Broken(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1) / 0

    with pytest.raises(ValueError, match="network Broken returned features that are not finite"):
        features.extract(source_from_array(images(3)), networks.load(Broken()))


# -- neighbours ------------------------------------------------------------------------------------------------------


def test_nearest_by_blocks_is_the_global_nearest(monkeypatch):
    neighbours = import_module("admg.evaluation.neighbours")  # the package exports the function of this name
    monkeypatch.setattr(neighbours, "ROWS", 7)
    monkeypatch.setattr(neighbours, "COLUMNS", 5)
    rng = np.random.default_rng(0)
    a, b = rng.normal(100, 1, (20, 6)).astype(np.float32), rng.normal(100, 1, (33, 6)).astype(np.float32)
    a[3] = b[30]  # memorised
    distances = np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=2)
    found = nearest(a, b, k=7)
    np.testing.assert_array_equal(found.numbers, distances.argsort(1)[:, :7])
    np.testing.assert_allclose(found.distances, np.sort(distances, 1)[:, :7], rtol=1e-6)
    assert found.distances[3, 0] == 0
    for k in (0, 34):
        with pytest.raises(ValueError, match=f"k must be from 1 to 33, the number of images, got {k}"):
            nearest(a, b, k)
    with pytest.raises(ValueError, match="same dimension, got 6 and 5"):
        nearest(a, b[:, :5], 2)


def test_picture_has_a_row_for_each_sample():
    samples, training = source_from_array(images(3, size=64)), source_from_array(images(6, 1, size=64))
    found = nearest(*(s[0:9].reshape(len(s), -1).astype(np.float32) for s in (samples, training)), k=2)
    drawn = np.asarray(picture(samples, training, found).convert("L"))
    places = [x for x in range(drawn.shape[1] - 64) if (drawn[-68:-4, x : x + 64] == samples[2:3][0, :, :, 0]).all()]
    assert len(places) == 1  # the third sample is in the third row, with its neighbours to the right
    second = drawn[-68:-4, places[0] + 2 * 68 : places[0] + 2 * 68 + 64]
    np.testing.assert_array_equal(second, training[found.numbers[2, 1] : found.numbers[2, 1] + 1][0, :, :, 0])


# -- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Samples, of which number 3 is number 20 of the training images, in an .npz and in a folder."""
    training, samples = images(40, 1), images(12, 2)
    samples[3] = training[20]
    np.savez(tmp_path / "samples.npz", arr_0=samples, arr_1=(samples.mean((1, 2, 3)) > 127).astype(int))
    np.savez(tmp_path / "training.npz", arr_0=training)
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    return {name: str(tmp_path / f"{name}.npz") for name in ("samples", "training", "statistics")}


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([*map(str, arguments)])
    return code, *capsys.readouterr()


def refused(capsys, *arguments) -> str:
    """The one line on stderr."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


def test_neighbours_finds_a_memorised_sample(files, own, capsys, tmp_path):
    out = tmp_path / "n.png"
    common = ["--network", f"{own}:Quarters", "--out", out]
    code, text, _ = run(capsys, "neighbours", files["samples"], files["training"], "--num", 4, "--k", 3, *common)
    lines = text.splitlines()
    assert code == 0 and lines[-1] == str(out)
    assert lines[0].startswith("nearest of 40 training images") and "Quarters" in lines[0]
    chosen = spread_indices(12, 4)
    assert [line.split(":")[0] for line in lines[1:-1]] == [f"  sample {number}" for number in chosen]
    assert all(line.count("(") == 3 for line in lines[1:-1])
    assert Image.open(out).size[1] > 4 * 64
    text = run(capsys, "neighbours", files["samples"], files["training"], "--num", 1, "--closest", *common)[1]
    assert text.splitlines()[1].startswith("  sample 3: 20 (0.000)")


def test_neighbours_names_the_files(own, capsys, tmp_path):
    for i, pixels in enumerate(images(4)):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze()).save(path)
    common = ["--network", f"{own}:Quarters", "--out", tmp_path / "n.png", "--k", 1]
    text = run(capsys, "neighbours", tmp_path / "data", tmp_path / "data", *common)[1]
    assert text.splitlines()[2] == "  sample a/2.png: a/2.png (0.000)"


@pytest.mark.process
@pytest.mark.slow
def test_two_processes_of_torchrun_find_the_same(files, own, capsys, tmp_path, small_blocks):
    """Spawned as torchrun does it; blocks are of 500 there, so that each process has some of 1,100 images."""
    np.savez(tmp_path / "many.npz", arr_0=images(1100, 5))
    command = [
        "neighbours",
        files["samples"],
        str(tmp_path / "many.npz"),
        "--network",
        f"{own}:Quarters",
        "--num",
        "12",
    ]
    cache = ["--cache", str(tmp_path / "cache")]
    code = [sys.executable, "-m", "admg", *command, *cache, "--out", str(tmp_path / "two.png")]
    processes = [
        subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
        for environment in ({"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)} for rank in (1, 0))
    ]
    (out1, err1), (out0, err0) = (process.communicate(timeout=60) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], err0 + err1
    assert out1 == ""
    alone = run(capsys, *command, "--no-cache", "--out", tmp_path / "one.png")[1]
    assert out0.splitlines()[:-1] == alone.splitlines()[:-1]
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 3 + 1


@pytest.mark.thorough
def test_label_accuracy_of_custom_and_noisy_classifiers(files, own, tiny_folders, tmp_path):
    samples = open_source(files["samples"], labels=True)
    cpu = torch.device("cpu")
    assert load_label_classifier(f"{own}:Bright", samples, cpu).count_correct(samples, 5) == (12, 12)
    samples.labels = np.where(np.arange(12) < 4, 1 - samples.labels, np.where(np.arange(12) < 6, -1, samples.labels))
    assert load_label_classifier(f"{own}:Bright", samples, cpu).count_correct(samples, 5) == (
        6,
        10,
    )  # -1 is no label
    classifier = Classifier.load(tiny_folders["classifier"])
    x = torch.from_numpy(samples[0:12]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        samples.labels = classifier(x, torch.zeros(12)).argmax(1).numpy()
    assert load_label_classifier(tiny_folders["classifier"], samples, cpu).count_correct(samples, 5) == (12, 12)
    folder = save_folder(
        tmp_path / "f", samples[0:12], [classifier.labels.names[k].replace("/", "-") for k in samples.labels]
    )
    by_name = open_source(folder, labels=True)  # numbers of names are others there, and found by name
    assert load_label_classifier(tiny_folders["classifier"], by_name, cpu).count_correct(by_name, 5) == (12, 12)
    with pytest.raises(ValueError, match=r"are names, but those of .* are numbers"):
        load_label_classifier(f"{own}:Bright", by_name, cpu)
    with pytest.raises(ValueError, match="expects images of 1x8x8, but images has 3x8x8"):
        load_label_classifier(tiny_folders["classifier"], source_from_array(images(2, channels=3)), cpu)
    with pytest.raises(ValueError, match="has no labels"):
        load_label_classifier(f"{own}:Bright", source_from_array(images(2)), cpu).count_correct(
            source_from_array(images(2)), 5
        )


def names_of(*arguments) -> tuple[list[str], list[str]]:
    chosen, notes = choose_metrics(*arguments)
    return [metric.name for metric in chosen], notes


def test_which_metrics_can_be_computed(files):
    samples, training = open_source(files["samples"]), open_source(files["training"])
    statistics = open_source(files["statistics"])
    ours = networks.load(Pixels())
    inception = replace(ours, name="Inception", probabilities=lambda features: features)
    every = ["fid", "sfid", "is", "kid", "precision", "recall", "density", "coverage", "accuracy"]
    assert names_of(None, inception, samples, training, True) == (every, [])
    chosen, notes = names_of(None, ours, samples, training, False)
    assert chosen == ["fid", "kid", "precision", "recall", "density", "coverage"]
    assert notes[0] == "no sFID: it is defined for the features of Inception, not for those of Pixels"
    assert notes[1] == "no IS-Pixels: Pixels does not predict classes"
    chosen, notes = names_of(None, inception, samples, statistics, False)
    assert chosen == ["fid", "is"]
    assert notes[0] == f"no sFID: {statistics.name} has no mu_s and sigma_s"
    assert notes[1] == f"no KID, Precision, Recall, Density, Coverage: {statistics.name} holds statistics and no images"
    wrong = [
        (["fid", "lpips"], ours, training, "unknown metric 'lpips': choose from fid, fid_infinite, sfid"),
        (["recall"], inception, statistics, "Recall cannot be computed: .* holds statistics and no images"),
        (
            ["fid"],
            ours,
            statistics,
            "FD-Pixels cannot be computed: .* holds statistics of Inception's features, and no images",
        ),
        (None, ours, statistics, "no metric can be computed: .* holds statistics of Inception's features"),
        (["accuracy"], ours, training, "Accuracy cannot be computed: it needs a classifier"),
    ]
    for wanted, network, reference, message in wrong:
        with pytest.raises(ValueError, match=message):
            names_of(wanted, network, samples, reference, False)
    assert not needs_features([METRICS["fid"]], inception, statistics, True)
    assert needs_features([METRICS["fid"]], inception, training, True)
    assert not needs_features([METRICS["is"], METRICS["accuracy"]], inception, training, True)
    assert needs_features([METRICS["is"]], inception, samples, False)
    assert not needs_features([METRICS["accuracy"]], inception, samples, False)


def test_few_images_have_the_metrics_that_can_be_computed():
    few, many = images(3), images(40, 1)
    options = {"features": Pixels(), "progress": False, "cache": False}
    report = evaluate(few, many, **options)
    assert [value.metric for value in report.values] == ["fid", "kid"]
    names = "Precision, Recall, Density, Coverage"
    assert report.notes[-1] == f"no {names}: 3 nearest neighbours need at least 4 samples, got 3"
    report = evaluate(many, many[:5], **options)
    assert report.notes[-1] == f"no {names}: 5 nearest neighbours need at least 6 reference images, got 5"
    with pytest.raises(ValueError, match="Recall cannot be computed: 3 nearest neighbours need at least 4 samples"):
        evaluate(few, many, ["fid", "recall"], **options)


@pytest.mark.parametrize("count", [5, 7, 19, 20])
def test_any_number_of_samples_is_extrapolated(count):
    """From all of them and from two halves, which differ by one image if the number is odd."""
    samples, reference = images(count), images(30, 1)
    found = evaluate(samples, reference, ["fid"], Pixels(), infinite=True, progress=False, cache=False)
    x, y = (array.reshape(-1, 2, 4, 2, 4).mean((2, 4)).reshape(-1, 4) / 127.5 - 1 for array in (samples, reference))
    target, group = Gaussian.of(np.tile(y, 3)), draw_groups(count, seed=0)
    parts = (group < count // 2, group >= count // 2)
    whole, *halves = (frechet_distance(Gaussian.of(np.tile(x[at], 3)), target) for at in (group >= 0, *parts))
    assert found["fid_infinite"] == pytest.approx(2 * whole - np.mean(halves), rel=1e-4)


def test_a_copied_npz_of_samples_has_labels_without_names(tiny_classifier, tmp_path):
    """The numbers are then the classifier's, with a note; the names in the folder give the right ones."""
    names = tiny_classifier.labels.names
    pixels = images(4)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        right = tiny_classifier(x, torch.zeros(4)).argmax(1)
    turned = (right + 1) % len(names)  # a model with the names in another order
    samples = Samples(x, turned, tuple(names[k] for k in right.tolist()))
    samples.save(tmp_path / "run")
    (npz,) = (tmp_path / "run").glob("*.npz")
    copied = shutil.copy(npz, tmp_path / "copy.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_source(npz, labels=True)
        assert load_label_classifier(tiny_classifier, source).count_correct(source) == (4, 4)
    source = open_source(copied, labels=True)
    with pytest.warns(UserWarning, match=r"copy.npz are numbers, and their names are not known: they are taken for th"):
        assert load_label_classifier(tiny_classifier, source).count_correct(source) == (0, 4)


def test_the_identity_of_a_label_classifier_is_that_of_its_predictions(tiny_classifier):
    """Weights, layers, buffers that are not stored, hooks, and the order of the labels of a noisy classifier."""
    source = source_from_array(images(2))
    source.labels = np.zeros(2, np.int64)

    def identity(classifier, names=()) -> str:
        source.names_of_numbers = names
        return load_label_classifier(classifier, source).identity

    def network(layer: torch.nn.Module, scale: float = 1.0) -> torch.nn.Module:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3), layer)
        module.register_buffer("scale", torch.tensor(scale), persistent=False)
        return module

    hooked = network(torch.nn.ReLU())
    assert identity(hooked) == identity(network(torch.nn.ReLU()))
    hooked.register_forward_hook(lambda module, inputs, output: -output)
    different = [network(torch.nn.ReLU()), network(torch.nn.ReLU(), 2.0), network(torch.nn.ReLU6()), hooked]
    assert len({identity(classifier) for classifier in different}) == 4
    names = tiny_classifier.labels.names
    assert identity(tiny_classifier, names) == identity(tiny_classifier, names)
    assert identity(tiny_classifier, names) != identity(tiny_classifier, names[::-1])


def test_bad_input_of_neighbours_is_one_line(files, own, capsys, tmp_path):
    np.savez(tmp_path / "large.npz", arr_0=images(6, size=16))
    common = ["--network", f"{own}:Quarters"]
    wrong = [
        (
            [files["samples"], files["training"], *common, "--k", 41],
            "k must be at most 40, the number of training",
        ),
        ([files["samples"], files["training"], *common, "--k", 0], "--k must be at least 1"),
        ([files["samples"], files["statistics"], *common], "holds statistics and no images"),
        (
            [files["samples"], tmp_path / "large.npz", *common],
            "images of 16x16, but the samples are 8x8: pass --fit resize",
        ),
        ([files["samples"], files["training"], *common, "--out", "n.gif"], "must end in .png"),
        ([files["samples"], files["training"], *common, "--batch-size", 0], "--batch-size must be at least 1"),
        ([files["samples"], files["training"]], "the network efficientnet-lite0 needs no download"),
        ([files["samples"], tmp_path / "none", *common], "does not exist"),
        ([files["samples"], files["training"], "--network", "vgg"], "unknown feature network 'vgg'"),
    ]
    for arguments, message in wrong:
        assert message in refused(capsys, "neighbours", *arguments).replace("\n", " "), arguments


def test_accuracy_on_the_command_line(files, own, capsys, tmp_path):
    common = ["--network", f"{own}:Quarters", "--metrics", "accuracy", "--json", tmp_path / "a.json"]
    code, text, err = run(
        capsys, "evaluate", files["samples"], files["training"], "--classifier", f"{own}:Bright", *common
    )
    assert code == 0
    assert text.splitlines()[0].startswith("12 images of ") and "against 40 images of" in text.splitlines()[0]
    assert [line.split() for line in text.splitlines() if line.startswith("Accuracy")] == [
        ["Accuracy", "1.0000", "0.7575", "..", "1.0000", "Bright", "(12/12)"]  # Wilson: 12/(12 + 1.96²)
    ]
    assert "FID" not in err  # which is not computed
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["network"] == "Quarters" and content["images"] == 12
    assert content["metrics"][0]["value"] == 1 and content["metrics"][0]["low"] == pytest.approx(0.75749, abs=1e-4)


def figures_of(capsys, tmp_path, *arguments) -> dict[str, dict]:
    code, text, err = run(capsys, "evaluate", *arguments, "--json", tmp_path / "figures.json")
    assert code == 0, err
    figures = json.loads((tmp_path / "figures.json").read_text())["metrics"]
    assert all(figure["name"] in text for figure in figures)
    return {figure["name"] + figure["note"]: figure for figure in figures}


def test_metrics_on_the_command_line_equal_their_definitions(files, own, capsys, tmp_path):
    pair = [files["samples"], files["training"], "--network", f"{own}:Quarters"]
    found = figures_of(capsys, tmp_path, *pair, "--infinite")
    network = networks.load(f"{own}:Quarters")
    x, y = (network(np.load(files[name])["arr_0"]).features.astype(float) for name in ("samples", "training"))

    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    distance = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert found["FD-Quarters"]["value"] == pytest.approx(distance, rel=1e-6)

    def k(a, b):
        return (a @ b.T / 4 + 1) ** 3

    within = [(k(a, a).sum() - np.trace(k(a, a))) / (len(a) * (len(a) - 1)) for a in (x, y)]
    assert found["KD-Quarters"]["value"] == pytest.approx(sum(within) - 2 * k(x, y).mean(), rel=1e-6, abs=1e-9)

    def far(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    between = far(x, y)
    radii = {n: (np.sort(far(x, x))[:, n], np.sort(far(y, y))[:, n]) for n in (3, 5)}
    assert found["Precision"]["value"] == pytest.approx((between <= radii[3][1] + 1e-9).any(1).mean())
    assert found["Recall"]["value"] == pytest.approx((between <= radii[3][0][:, None] + 1e-9).any(0).mean())
    assert found["Density"]["value"] == pytest.approx((between <= radii[5][1] + 1e-9).sum(1).mean() / 5)
    assert found["Coverage"]["value"] == pytest.approx((between <= radii[5][1] + 1e-9).any(0).mean())

    assert {name for name, figure in found.items() if figure["low"] is not None} == set(found)
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in found.values())
    parts, other = group_moments(x), Gaussian.of(y)  # the interval is of the samples, the reference is given
    expected = frechet_estimate(parts, other)
    assert [found["FD-Quarters"][end] for end in ("low", "high")] == pytest.approx([expected.low, expected.high])
    endless = found["FD-Quartersextrapolated to infinitely many samples"]["value"]
    assert endless == pytest.approx(frechet_infinite(parts, other).value)
    assert found["FD-Quartersextrapolated to infinitely many samples"]["value"] < distance  # more samples are nearer
    plain = figures_of(capsys, tmp_path, *pair, "--no-interval", "--metrics", "fid,recall")
    assert [plain[name]["value"] for name in plain] == [found[name]["value"] for name in plain]
    assert all(figure["low"] is None for figure in plain.values()) and list(plain) == ["FD-Quarters", "Recall"]


def test_the_background_on_the_command_line(own, capsys, tmp_path):
    np.savez(tmp_path / "black.npz", arr_0=save_transparent(tmp_path / "f"))
    common = [tmp_path / "black.npz", tmp_path / "f", "--network", f"{own}:Quarters"]
    fid = [figures_of(capsys, tmp_path, *common, "--metrics", "fid", *more) for more in ([], ["--background", "black"])]
    assert fid[0]["FD-Quarters"]["value"] > 0.1 and fid[1]["FD-Quarters"]["value"] == pytest.approx(0, abs=1e-6)
    out = ["--k", 1, "--num", 2, "--out", tmp_path / "n.png"]
    assert "(0.000)" in run(capsys, "neighbours", *common, "--background", "black", *out)[1]
    assert "(0.000)" not in run(capsys, "neighbours", *common, *out)[1]


def test_stored_statistics_are_used_for_the_distances(tmp_path):
    """As the published evaluator does, and of Inception alone; with the scores of its classes."""
    rng = np.random.default_rng(0)
    features, spatial = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
    network = networks.FeatureNetwork(
        "Inception", torch.nn.Identity(), lambda x: x, "", lambda f: np.eye(4)[np.arange(len(f)) % 4]
    )
    ours = FeatureSet(networks.Activations(features.astype(np.float32), spatial.astype(np.float32)))
    theirs = FeatureSet(
        None, StoredStatistics(Gaussian(np.full(3, 2.0), np.eye(3)), Gaussian(np.zeros(2), 4 * np.eye(2)))
    )
    found = compute(Inputs(ours, theirs, network), [METRICS[name] for name in ("fid", "sfid", "is")])
    assert [figure.name for figure in found] == ["FID", "sFID", "IS"]

    def distance(x, mean, scale):  # to N(mean, scale² I), whose covariance commutes with any
        values = np.linalg.eigvalsh(np.cov(x.T))
        return ((x.mean(0) - mean) ** 2).sum() + ((np.sqrt(values) - scale) ** 2).sum()

    assert found[0].value == pytest.approx(distance(features, 2.0, 1.0), rel=1e-5)
    assert found[1].value == pytest.approx(distance(spatial, 0.0, 2.0), rel=1e-5)
    assert found[2].value == pytest.approx(4.0, rel=1e-2)  # four classes, each sure, 13 or 12 of each


@pytest.mark.process
def test_two_processes_give_the_same_metrics(files, own, capsys, tmp_path):
    np.savez(tmp_path / "many.npz", arr_0=images(1100, 5))
    command = ["evaluate", str(tmp_path / "many.npz"), files["training"], "--network", f"{own}:Quarters"]
    alone = run(capsys, *command, "--no-cache")[1]
    code = [sys.executable, "-m", "admg", *command, "--cache", str(tmp_path / "cache")]
    processes = [
        subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
        for environment in ({"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)} for rank in (1, 0))
    ]
    (out1, err1), (out0, err0) = (process.communicate(timeout=60) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], err0 + err1
    assert out1 == "" and out0 == alone and "FD-Quarters" in alone


def test_bad_input_of_evaluate_is_one_line(files, own, capsys, tmp_path):
    np.savez(tmp_path / "large.npz", arr_0=images(6, size=16))
    pair, common = [files["samples"], files["training"]], ["--network", f"{own}:Quarters"]
    wrong = [
        ([*pair, *common, "--metrics", "lpips"], "unknown metric 'lpips'"),
        ([*pair, *common, "--metrics", "accuracy"], "Accuracy cannot be computed: it needs a classifier"),
        ([*pair, *common, "--num", 1], "--num must be at least 2, got 1"),
        ([*pair, *common, "--seed", -1], "--seed must be at least 0"),
        (
            [files["samples"], tmp_path / "large.npz", *common],
            "images of 16x16, but the samples are 8x8: pass --fit resize",
        ),
        ([*pair], "the network efficientnet-lite0 needs no download"),
        ([files["samples"]], "REFERENCE"),
        ([*pair, *common, "--metrics", "accuracy", "--classifier", f"{own}:Quarters2"], "has no 'Quarters2'"),
    ]
    for arguments, message in wrong:
        assert message in refused(capsys, "evaluate", *arguments), arguments


FAULTY = """
import torch
class Net(torch.nn.Module):
    def forward(self, x):
        return x.features
class Classifier:
    def predict(self, images):
        return images.mean((1, 2, 7))
class Unbuilt(torch.nn.Module):
    def __init__(self):
        self.layer = torch.nn.Linear(2, 2)
def divide(samples, reference):
    return len(samples) / 0
def words(samples, reference):
    return "good"
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "FAULTY:Net"], "FAULTY:Net: AttributeError: "),
        (["--network", "FAULTY:Net"], "(line 5)"),
        (["--network", "FAULTY:Unbuilt"], "FAULTY:Unbuilt: AttributeError: cannot assign module before"),
        (["--network", "OWN:Quarters", "--metrics", "FAULTY:divide"], "ZeroDivisionError: division by zero (line 13)"),
        (["--network", "OWN:Quarters", "--metrics", "FAULTY:words"], "FAULTY:words: ValueError: could not convert"),
        (["--network", "OWN:Quarters", "--metrics", "FAULTY:torch"], "FAULTY:torch is not a function of the features"),
        (
            ["--network", "OWN:Quarters", "--metrics", "accuracy", "--classifier", "FAULTY:Classifier"],
            "FAULTY:Classifier: AxisError: axis 7 is out of bounds",
        ),
    ],
)
def test_errors_of_the_users_code_name_its_file_and_line(options, message, files, own, capsys, tmp_path):
    path = tmp_path / "faulty.py"
    path.write_text(FAULTY)
    given = [option.replace("FAULTY", str(path)).replace("OWN", own) for option in options]
    code, _, err = run(capsys, "evaluate", files["samples"], files["training"], *given)
    assert code == 2
    assert message.replace("FAULTY", str(path)) in err.splitlines()[-1]


def test_a_metric_of_the_users_file_may_be_a_metric(files, own, capsys, tmp_path):
    path = tmp_path / "metric.py"
    path.write_text("from admg.evaluation.metrics.base import Metric\nmine = Metric.of(lambda a, b: len(a) + len(b))\n")
    options = ["--network", f"{own}:Quarters", "--metrics", f"{path}:mine"]
    assert figures_of(capsys, tmp_path, files["samples"], files["training"], *options)["<lambda>"]["value"] == 52
