"""Folders that admg wrote samples to, as data: exactly the generated images, never the pictures of many of them."""

from __future__ import annotations

import json
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from admg.data import DataError
from admg.data import open as open_dataset
from admg.evaluation.sources import open_source
from admg.generation.samples import Samples

LABELS = {"zebra": 40, "ape": 200}
"""Grey level of the samples of each label."""


def write_samples(folder: Path, channels: int = 1) -> Path:
    """Write three samples, and all pictures that `admg sample` and `admg demo` may write beside them."""
    names = ("zebra", "ape", "zebra")
    x = torch.stack([torch.full((channels, 8, 8), LABELS[name] / 127.5 - 1) for name in names])
    npz = Samples(x, torch.tensor([5, 2, 5]), names).save(folder)
    for name in ("scale-sheet.png", "trajectory.png", "denoising.gif"):
        Image.new("L", (8, 8), 99).save(folder / name)
    record = {"settings": {}, "num": 3, "shape": [8, 8, channels], "labelled": True, "shard_size": 3}
    (folder / "run.json").write_text(json.dumps(record))
    return npz


def content(path: Path, **options: object) -> list[tuple[int, str]]:
    """Return the grey level and the name of the label of each image, sorted."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = open_dataset(path, 8, **options)
    x, y = dataset.batch(range(len(dataset)))
    levels = ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    return sorted(zip(levels, [dataset.label_names[k] if k >= 0 else "" for k in y.tolist()]))


def packed(folder: Path, target: Path) -> Path:
    files = [(file, file.relative_to(folder.parent).as_posix()) for file in folder.rglob("*")]
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w") as archive:
            for file, name in files:
                archive.write(file, name)
    else:
        with tarfile.open(target, "w") as tar:
            for file, name in files:
                tar.add(file, name, recursive=False)
    return target


def test_a_folder_of_samples_is_its_images(tmp_path):
    expected = [(40, "zebra"), (40, "zebra"), (200, "ape")]
    npz = write_samples(tmp_path / "out")
    assert content(tmp_path / "out") == expected
    assert [level for level, _ in content(tmp_path / "out", labels="none")] == [40, 40, 200]
    assert sorted(open_source(tmp_path / "out")[0:9][:, 0, 0, 0].tolist()) == [40, 40, 200]
    for ending in ("zip", "tar"):
        assert content(packed(tmp_path / "out", tmp_path / f"out.{ending}")) == expected
    npz.with_name("samples_9x8x8x1.npz").write_bytes(npz.read_bytes())
    with pytest.raises(DataError, match=r"holds samples_3x8x8x1.npz and samples_9x8x8x1.npz: choose one of them"):
        open_dataset(tmp_path / "out", 8)


def test_without_files_of_all_channels_the_npz_is_read(tmp_path):
    npz = write_samples(tmp_path / "four", channels=4)
    dataset = open_dataset(tmp_path / "four", 8)
    assert dataset.channels == 4 and dataset.labels.tolist() == [5, 2, 5]
    npz = write_samples(tmp_path / "out")
    for file in (tmp_path / "out" / "images").iterdir():
        file.unlink()
    (tmp_path / "out" / "images").rmdir()
    assert content(npz.parent) == [(40, "5"), (40, "5"), (200, "2")]


def test_samples_as_a_class_beside_others(tmp_path):
    write_samples(tmp_path / "fake")
    write_samples(tmp_path / "fake" / "base")  # the small images of an upsampled run
    (tmp_path / "real").mkdir()
    for i in range(2):
        Image.new("L", (8, 8), 7).save(tmp_path / "real" / f"{i}.png")
    expected = [(7, "real")] * 2 + [(40, "fake")] * 2 + [(200, "fake")]
    assert content(tmp_path, labels="folders") == expected
    assert open_dataset(tmp_path, 8, labels="folders", strict=True).skipped == []


def test_other_folders_and_images_beside_samples(tmp_path):
    write_samples(tmp_path)
    write_samples(tmp_path / "emoji")
    with pytest.warns(UserWarning, match=r"left out .* \.\./emoji$"):
        assert len(open_dataset(tmp_path, 8)) == 3
    Image.new("L", (8, 8)).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match=r"mixes class sub-folders .* and loose images"):
        open_dataset(tmp_path, 8)
    names = {path.name for path in open_dataset(tmp_path, 8, labels="none").images}
    assert "photo.png" in names and not names & {"sheet.png", "trajectory.png", "denoising.gif", "scale-sheet.png"}
    photos = tmp_path / "photos"
    photos.mkdir()
    np.savez(photos / "samples_1x8x8x1.npz", np.zeros((1, 8, 8, 1), np.uint8))
    Image.new("L", (8, 8), 7).save(photos / "a.png")
    assert [path.name for path in open_dataset(photos, 8).images] == ["a.png"]  # a data set with an .npz beside it
    for name in ("base", "rock"):
        (photos / name).mkdir()
        Image.new("L", (8, 8), 7).save(photos / name / "1.png")
    (photos / "a.png").unlink()
    assert open_dataset(photos, 8).label_names == ("base", "rock")
