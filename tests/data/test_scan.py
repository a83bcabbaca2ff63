"""Opening a folder: headers alone, an index of them, and what each level of `verify` reads."""

from __future__ import annotations

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from admg.data import DataError, folder, scan
from admg.data import open as open_dataset
from admg.data.index import index_path, read_index, write_index
from admg.data.listing import list_files, relative_names


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """70 images of 8x8 in two folders, the last one truncated; the cache folder is empty."""
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "home"))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for i in range(70):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    return tmp_path / "photos"


@pytest.fixture
def reads(monkeypatch) -> list[tuple[str, bool]]:
    """The files that are read, and whether they are decoded."""
    found: list[tuple[str, bool]] = []

    def check(path: Path, decode: bool) -> folder.ImageFile | str:
        found.append((path.name, decode))
        return folder.check(path, decode)

    monkeypatch.setattr(scan, "check", check)
    return found


def again(photos: Path, reads: list[tuple[str, bool]], **options: object) -> tuple[list[str], int]:
    """Open the folder, and return the names of the files that are read, and the number of images."""
    reads.clear()
    count = len(open_dataset(photos, 8, **options))
    return sorted(name for name, _ in reads), count


def test_headers_are_read_once_and_then_those_that_changed(photos, reads):
    names, count = again(photos, reads)
    assert len(names) == count == 70 and not any(decode for _, decode in reads)
    first = open_dataset(photos, 8)
    assert again(photos, reads) == ([], 70)
    Image.new("L", (9, 8)).save(photos / "a" / "00.png")
    os.utime(photos / "a" / "02.png", ns=(1, 1))
    (photos / "a" / "04.png").unlink()
    Image.new("L", (8, 8)).save(photos / "b" / "new.png")
    assert again(photos, reads) == (["00.png", "02.png", "new.png"], 70)
    assert again(photos, reads) == ([], 70)
    with pytest.raises(DataError, match="images of 9x8 and 8x8"):
        open_dataset(photos)  # the index has the new size
    kept = [path for path in first.images if path.name != "04.png"]
    assert [path for path in open_dataset(photos, 8).images if path.name != "new.png"] == kept  # in the same order


@pytest.mark.thorough
def test_the_index_is_small_and_a_damaged_one_is_written_anew(photos, reads):
    again(photos, reads)
    index = index_path(photos)
    content = index.read_bytes()
    assert len(content) < 70 * 40 and sorted(path.suffix for path in photos.rglob("*.*")) == [".png"] * 70
    found = json.loads(gzip.decompress(content))
    name, *numbers, mode, deep, transparent, frames = found["files"][0]
    wrong = [
        [name, *numbers, [mode], deep, transparent, frames],
        [name, *map(str, numbers), mode, deep, transparent, 1],
    ]
    others = [found | {"files": [row]} for row in wrong] + [{"about": ["another folder"], "files": []}]
    others = [gzip.compress(json.dumps(other).encode()) for other in others]
    for damaged in (b"", b"hello", content[:-20], gzip.compress(b"[1, 2]"), gzip.compress(b'{"about": 3}'), *others):
        index.write_bytes(damaged)
        assert len(again(photos, reads)[0]) == 70 and again(photos, reads)[0] == []
    moved = photos.rename(photos.with_name("moved"))
    assert len(again(moved, reads)[0]) == 70


def test_a_cache_folder_that_cannot_be_written_does_no_harm(photos, reads, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "file"))
    assert len(again(photos, reads)[0]) == len(again(photos, reads)[0]) == 70


def test_full_decodes_every_image_each_time(photos, reads):
    names, count = again(photos, reads, verify="full")
    assert (len(names), count) == (70, 69) and all(decode for _, decode in reads)
    (skipped,) = open_dataset(photos, 8, verify="full").skipped
    assert skipped[0].name == "69.png" and "truncated" in skipped[1]
    with pytest.raises(DataError, match=r"69.png cannot be read as an image: .*truncated"):
        open_dataset(photos, 8)[69]


def test_none_reads_64_headers(photos, reads):
    (photos / "notes.txt").write_text("no image")
    names, count = again(photos, reads, verify="none", labels="folders")
    assert (len(names), count) == (64, 70)
    dataset = open_dataset(photos, verify="none")
    assert dataset.image_size == 8 and dataset.channels == 3 and dataset.label_names == ("a", "b")
    assert [path.name for path, _ in dataset.skipped] == ["notes.txt"]
    assert np.array_equal(dataset[0][0], open_dataset(photos)[0][0])


def test_unknown_levels_are_refused(photos):
    with pytest.raises(DataError, match="verify must be one of 'full', 'headers', 'none', got 'header'"):
        open_dataset(photos, 8, verify="header")


def test_names_relative_to_any_folder(photos, monkeypatch):
    monkeypatch.chdir(photos)
    for root in (photos, Path("."), Path("../photos"), Path("/")):
        paths = [root / "a" / "00.png", root / "é.png"]
        assert relative_names(root, paths) == [path.relative_to(root).as_posix() for path in paths]
    assert open_dataset(".", 8).label_names == ("a", "b")


def test_processes_that_write_the_index_at_once_leave_a_whole_one(photos, reads):
    images, _ = scan.open_images(list_files(photos))
    files = list_files(photos).files
    by_name = {file.name: image for file, image in zip(files, images, strict=True)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_index(photos, files, by_name), range(40)))
    assert read_index(photos, files) == by_name and again(photos, reads) == ([], 70)
    assert [path.name for path in index_path(photos).parent.iterdir()] == [index_path(photos).name]


@pytest.mark.parametrize("progress", [True, False])
def test_a_progress_bar_appears_if_reading_takes_long(photos, capsys, monkeypatch, progress):
    open_dataset(photos, 8, verify="full", progress=progress)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(scan, "BAR_AFTER", 0)
    open_dataset(photos, 8, verify="full", progress=progress)
    shown = capsys.readouterr().err
    assert ("reading photos" in shown and "70/70" in shown) if progress else shown == ""
