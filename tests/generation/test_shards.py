"""Images on disk: shards, merging, missing shards, reading in slices, and records of runs."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest

from admg.cli.main import main
from admg.files import atomic
from admg.generation.run_record import differences, open_run, run_files
from admg.generation.shards import NpzImages, Shards

SHAPE = (4, 6, 3)


def numbers(count: int, shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    return rng.integers(256, size=(count, *shape), dtype=np.uint8), rng.integers(1000, size=count)


def fill(shards: Shards, images, labels, only=None) -> Shards:
    for k in range(len(shards)) if only is None else only:
        span = slice(shards.span(k).start, shards.span(k).stop)
        shards.write(k, images[span], labels[span] if shards.labelled else None)
    return shards


@pytest.mark.parametrize("size", [1, 3, 10, 64])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_merged_file_is_what_savez_would_write(tmp_path, size, labelled):
    images, labels = numbers(10)
    shards = fill(Shards(tmp_path, 10, size, SHAPE, labelled), images, labels)
    assert shards.missing() == [] and len(shards) == -(-10 // size)
    path = shards.merge()
    assert path.name == "samples_10x4x6x3.npz"
    np.savez(tmp_path / "whole.npz", arr_0=images, **({"arr_1": labels} if labelled else {}))
    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(tmp_path / "whole.npz") as numpys:
        assert ours.namelist() == numpys.namelist() and ours.testzip() is None
        for name in ours.namelist():
            assert ours.read(name) == numpys.read(name)  # the headers too
    shards.discard()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples_10x4x6x3.npz", "whole.npz"]


@pytest.mark.thorough
def test_merging_and_reading_take_little_memory(tmp_path):
    shape, count = (128, 128, 3), 400  # 20 MB in shards of 1 MB
    shards = Shards(tmp_path, count, 20, shape, True)
    image = np.arange(np.prod(shape)).reshape(shape)
    for k in range(len(shards)):
        shards.write(k, np.stack([(image + i) % 256 for i in shards.span(k)]).astype(np.uint8), np.full(20, k))
    tracemalloc.start()
    path = shards.merge()
    read = NpzImages(path)
    assert all(np.array_equal(read[i : i + 20][1], (image + i + 1) % 256) for i in range(0, count, 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 19e6 and peak < 5e6, peak
    assert np.load(path)["arr_1"].tolist() == [i // 20 for i in range(count)]


def test_absent_truncated_and_foreign_shards_are_missing(tmp_path):
    images, labels = numbers(10)
    shards = Shards(tmp_path, 10, 2, SHAPE, True)
    assert shards.missing() == [0, 1, 2, 3, 4]
    fill(shards, images, labels, only=[0, 2, 3, 4])
    assert shards.missing() == [1]
    with pytest.raises(FileNotFoundError):
        shards.merge()
    data = shards.path(2).read_bytes()
    shards.path(2).write_bytes(data[:-10])
    np.savez(shards.path(3), arr_0=images[6:8, :2], arr_1=labels[6:8])  # of another height
    np.savez(shards.path(4), arr_0=images[8:10])  # without labels
    assert shards.missing() == [1, 2, 3, 4]
    fill(shards, images, labels, only=[1, 2, 3, 4])
    assert np.array_equal(np.load(shards.merge())["arr_0"], images)
    assert not [p for p in shards.parts.iterdir() if p.name.startswith(".")]


def test_a_damaged_shard_fails_its_checksum_and_leaves_no_merged_file(tmp_path):
    shape = (64, 64, 3)
    shards = fill(Shards(tmp_path, 4, 2, shape, True), *numbers(4, shape))
    data = bytearray(shards.path(1).read_bytes())
    data[20_000] ^= 1  # a pixel
    shards.path(1).write_bytes(data)
    assert shards.missing() == []
    with pytest.raises(ValueError, match=r"0000002-0000003.npz is damaged; remove it.*CRC"):
        shards.merge()
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    shards = Shards(tmp_path, 4, 2, SHAPE, True)
    monkeypatch.setattr(np, "savez", lambda path, **arrays: (path.write_bytes(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        fill(shards, *numbers(4))
    assert list(shards.parts.iterdir()) == [] and shards.missing() == [0, 1]


@pytest.mark.thorough
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_run_continues_after_a_full_disk(tmp_path, tiny_folders, monkeypatch, capsys, failing):
    """A shard is written while the next one is made."""
    command = ["sample", "--model", tiny_folders["model"], "--label", "one", "--num", "6", "--steps", "2"]
    command += ["--shard-size", "2", "--precision", "fp32", "--device", "cpu"]
    write = Shards.write

    def full(shards, k, *arrays):
        if k == failing:
            raise OSError(28, "No space left on device")
        write(shards, k, *arrays)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "write", full)
        assert main([*command, "--out", str(tmp_path / "a")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    kept = [path.name for path in sorted((tmp_path / "a" / "shards").glob("*.npz"))]
    assert len(kept) <= 2 and not list((tmp_path / "a").glob("samples*"))
    assert main([*command, "--out", str(tmp_path / "a")]) == main([*command, "--out", str(tmp_path / "b")]) == 0
    a, b = ((tmp_path / name / "samples_6x8x8x1.npz").read_bytes() for name in "ab")
    assert a == b


def test_a_shard_refuses_images_and_labels_that_do_not_fit(tmp_path):
    images, labels = numbers(4)
    shards = Shards(tmp_path, 4, 2, SHAPE, True)
    for arrays in ((images[:3], labels[:3]), (images[:2].astype(float), labels[:2]), (images[:2, :3], labels[:2])):
        with pytest.raises(ValueError, match="images must be uint8"):
            shards.write(0, *arrays)
    with pytest.raises(ValueError, match="must have 2 labels"):
        shards.write(0, images[:2], None)
    with pytest.raises(ValueError, match="must have no labels"):
        dataclasses.replace(shards, labelled=False).write(0, images[:2], labels[:2])
    with pytest.raises(ValueError, match="num and size must be at least 1, got 0 and 2"):
        Shards(tmp_path, 0, 2, SHAPE, True)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reading_in_slices(tmp_path, save):
    images, labels = numbers(50)
    save(tmp_path / "a.npz", arr_1=labels.astype(np.int32), arr_0=images)
    read = NpzImages(tmp_path / "a.npz")
    assert read.shape == images.shape and len(read) == 50 and read.labels.dtype == np.int64
    assert np.array_equal(read.labels, labels)
    for part in (slice(7, 20), slice(30, 31), slice(0, 3), slice(45, 99), slice(9, 9), slice(None), slice(-2, None)):
        assert np.array_equal(read[part], images[part]), part  # also backwards, where a stream must start again
    with pytest.raises(ValueError, match="step of a slice of images must be 1"):
        read[::2]
    save(tmp_path / "grey.npz", arr_0=images[..., 0])
    grey = NpzImages(tmp_path / "grey.npz")
    assert (
        grey.shape == (50, 4, 6, 1) and grey.labels is None and np.array_equal(grey[3:5][..., 0], images[3:5, :, :, 0])
    )
    assert grey.crc != read.crc and NpzImages(tmp_path / "a.npz").crc == read.crc


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"images": np.zeros((1, 2, 2, 3), np.uint8)}, "it has no arr_0, but images"),
        ({"arr_0": np.zeros((1, 2, 2, 3))}, r"must be uint8 .*, got float64 \(1, 2, 2, 3\)"),
        ({"arr_0": np.zeros((2, 2), np.uint8)}, r"must be uint8 .* got uint8 \(2, 2\)"),
        ({"arr_0": np.zeros((0, 2, 2, 3), np.uint8)}, "arr_0 must be uint8"),
        ({"arr_0": np.zeros((2, 2, 2, 3), np.uint8, order="F")}, "Fortran order"),
        (
            {"arr_0": np.zeros((2, 2, 2, 3), np.uint8), "arr_1": np.zeros(3, int)},
            r"arr_1 must hold integers .* got int64 \(3,\)",
        ),
        ({"arr_0": np.zeros((2, 2, 2, 3), np.uint8), "arr_1": np.zeros(2)}, "arr_1 must hold integers .* got float64"),
        ({"arr_0": np.zeros((2, 2, 2, 3), np.uint8), "arr_1": np.array([0, -2])}, "labels in arr_1 must be .* got -2"),
        ({"arr_0": np.zeros((2, 2, 2, 3), np.uint8), "arr_1": np.array([0, None])}, "allow_pickle"),
    ],
)
def test_an_npz_that_does_not_hold_images(tmp_path, arrays, expected):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=expected) as error:
        NpzImages(tmp_path / "a.npz")
    assert "\n" not in str(error.value) and "a.npz" in str(error.value)


def test_a_file_that_is_not_an_npz(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        NpzImages(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="not a file"):
        NpzImages(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(ValueError, match=r"a\.npz cannot be used: File is not a zip file"):
        NpzImages(tmp_path / "a.npz")


def test_a_run_is_found_with_its_own_shard_size(tmp_path):
    first = open_run({"scale": 4.0, "labels": (1, 2)}, Shards(tmp_path, 10, 3, SHAPE, True))
    assert json.loads((tmp_path / "run.json").read_text())["settings"] == {"scale": 4.0, "labels": [1, 2]}
    again = open_run({"scale": 4.0, "labels": (1, 2)}, Shards(tmp_path, 10, 5, SHAPE, True))
    assert first == again and again.size == 3 and [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("settings", "changed", "expected"),
    [
        ({"scale": 2.0}, {}, "other settings: scale is 4.0 there, 2.0 here$"),
        ({"scale": 4.0, "seed": 1}, {}, "seed is unset there, 1 here$"),
        ({"scale": 4.0}, {"num": 11}, "num is 10 there, 11 here$"),
        ({"scale": 4.0}, {"labelled": False}, "labelled is True there, False here$"),
        ({"scale": 4.0}, {"shape": (4, 6, 1)}, "shape is 4,6,3 there, 4,6,1 here$"),
    ],
)
def test_a_folder_with_a_run_of_other_settings_is_refused_and_unchanged(tmp_path, settings, changed, expected):
    shards = Shards(tmp_path, 10, 3, SHAPE, True)
    open_run({"scale": 4.0}, shards)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match=expected):
        open_run(settings, dataclasses.replace(shards, **changed))
    assert (tmp_path / "run.json").read_bytes() == before


def test_run_records_that_cannot_be_read_and_files_without_one(tmp_path):
    shards = Shards(tmp_path, 10, 3, SHAPE, True)
    open_run({}, shards)
    record = json.loads((tmp_path / "run.json").read_text())
    record.pop("checksum")  # as of a file that was changed by hand
    wrong = [{"num": 10.5}, {"num": 0}, {"shard_size": "3"}, {"shape": [4, 6]}, {"labelled": 1}, {"settings": [1]}]
    for text in ("{", "[]", "{}", '"x"', *(json.dumps(record | change) for change in wrong)):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run\.json is not the record of a run"):
            open_run({}, shards)
    (tmp_path / "run.json").unlink()
    shards.target.write_bytes(b"somebody's")
    with pytest.raises(ValueError, match=r"holds samples_10x4x6x3.npz, but no run\.json"):
        open_run({}, shards)


def test_a_folder_replaces_a_file_or_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with atomic(tmp_path / name) as folder:
            folder.mkdir()
            (folder / "new").touch()
        assert [p.name for p in (tmp_path / name).iterdir()] == ["new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "file", "link"]
    assert (tmp_path / "elsewhere" / "kept").exists()


@pytest.mark.parametrize("name", ["shards", "images", "sheet.png"])
def test_a_run_refuses_a_folder_that_holds_its_outputs(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"holds {name}, but no run\.json"):
        open_run({}, Shards(tmp_path, 10, 3, SHAPE, True))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_files_of_a_run(tmp_path):
    assert run_files(tmp_path) == []
    shards = open_run({}, Shards(tmp_path, 10, 3, SHAPE, True))
    names = ["denoising.gif", "denoising.mp4", "images", "run.json", "samples_10x4x6x3.npz", "sheet.png", "shards"]
    names.append("trajectory.png")
    assert sorted(p.name for p in run_files(tmp_path)) == sorted(names) and shards.target in run_files(tmp_path)
    (tmp_path / "run.json").write_text('{"shard_size": 3}')
    assert run_files(tmp_path) == []


def test_differences_of_nested_settings():
    old = {"settings": {"steps": 25, "base": {"scale": 1, "model": "a", "classifier": None}}, "num": 3}
    new = {"settings": {"steps": 25, "base": {"scale": 2, "model": "a"}}, "num": 4}
    assert differences(old, new) == ["base.scale is 1 there, 2 here", "num is 3 there, 4 here"]
    assert differences(old, old) == []
    old["settings"]["base"]["loaded_as"] = "by another name"
    assert differences(old, new) == ["base.scale is 1 there, 2 here", "num is 3 there, 4 here"]


@pytest.mark.parametrize("links", [True, False])
def test_processes_that_begin_a_run_together_agree_on_its_record(tmp_path, monkeypatch, links):
    """Each plans another shard size; the first one decides."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError("no links here")))
    sizes, barrier = [], threading.Barrier(8)

    def begin(size):
        barrier.wait()
        sizes.append(open_run({"scale": 1}, Shards(tmp_path, 10, size, SHAPE, True)).size)

    threads = [threading.Thread(target=begin, args=(size,)) for size in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sizes) == 8 and [p.name for p in tmp_path.iterdir()] == ["run.json"]
    if links:
        assert len(set(sizes)) == 1
