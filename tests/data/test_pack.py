"""The zip of EDM's dataset tool: its layout, its pixels, its labels, and that it is the same after any interruption."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import time
import warnings
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused, run, succeed, write_npz
from PIL import Image

from admg.data import DataError, center_crop, pack, survey
from admg.data import open as open_dataset
from admg.data.imagenet import published
from admg.data.pack import recover


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Nine photographs of several sizes in three classes of ImageNet, in the order of their WordNet ids."""
    for i in range(9):
        path = tmp_path / "photos" / ("n01440764", "n02102040", "n03888257")[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(40 + i, 50 - i, 3, seed=i)).save(path)
    return tmp_path / "photos"


def packed(dataset, out: Path, **options: object) -> bytes:
    for _ in pack(dataset, out, **options):
        pass
    return out.read_bytes()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_layout_pixels_and_labels(photos, tmp_path):
    dataset = open_dataset(photos, 16)
    packed(dataset, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        names = [f"00000/img{i:08d}.png" for i in range(9)]
        assert file.namelist() == [*names, "dataset.json"] and file.testzip() is None
        assert {entry.compress_type for entry in file.infolist()} == {zipfile.ZIP_STORED}
        content = json.loads(file.read("dataset.json"))
        images = [np.asarray(Image.open(io.BytesIO(file.read(name)))) for name in names]
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8]  # by class
    assert all(np.array_equal(image, center_crop(Image.fromarray(noise(40 + i, 50 - i, 3, seed=i)), 16))
               for image, i in zip(images, order, strict=True))  # fmt: skip
    # the published numbers are those of Keras and torchvision too: tench 0, English springer 217, parachute 701
    assert content["labels"] == [[name, (0, 217, 701)[i // 3]] for i, name in enumerate(names)]
    assert content["label_names"] == {"0": "tench", "217": "English springer", "701": "parachute"}
    again = open_dataset(tmp_path / "a.zip", 16)
    assert again.label_names == ("tench", "English springer", "parachute")
    assert all(torch.equal(one, other) for one, other in zip(again.batch(range(9)), dataset.batch(range(9))))
    assert files(tmp_path) == ["a.zip"]


def test_numbers_of_imagenet_are_those_of_the_sorted_ids():
    known = {"n01440764": (0, "tench"), "n01443537": (1, "goldfish"), "n02123045": (281, "tabby"),
             "n02504458": (386, "African elephant"), "n15075141": (999, "toilet tissue")}  # fmt: skip
    assert published(list(known)) == known
    assert published(["n01440764", "n00000001"]) == published(["cat", "n01440764"]) == {}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pixels_of_any_channels_are_kept(tmp_path, channels):
    images = noise(5, 8, 8, channels)
    dataset = open_dataset(write_npz(tmp_path / "a.npz", images, np.array([3, 0, 0, 2, 3])), 8)
    packed(dataset, tmp_path / "a.zip", compression=6)
    again = open_dataset(tmp_path / "a.zip", 8, channels=channels)
    assert torch.equal(again.batch(range(5))[0], dataset.batch(range(5))[0])
    assert again.labels.tolist() == [3, 0, 0, 2, 3] and again.numbered and again.channels == channels


def test_floats_are_rounded_to_8_bits(tmp_path):
    levels = (np.arange(64).reshape(1, 8, 8) / 63).astype(np.float32)
    packed(open_dataset(write_npz(tmp_path / "a.npz", levels), 8), tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        image = np.asarray(Image.open(io.BytesIO(file.read("00000/img00000000.png"))))
    assert np.array_equal(image.ravel(), np.round(np.arange(64) * 255 / 63))


@pytest.mark.thorough
def test_the_result_is_the_same_after_any_interruption_and_with_any_workers(photos, tmp_path):
    dataset = open_dataset(photos, 16)
    whole = packed(dataset, tmp_path / "whole.zip")
    out = tmp_path / "a.zip"
    steps = pack(dataset, out)
    next(steps)
    steps.close()
    (part,) = tmp_path.glob(".a.*.part")
    assert not out.exists()
    cuts = [*range(0, len(whole), 701), len(whole) - 1, len(whole)]
    for cut in cuts:  # killed after any byte; some are within a header, an image, dataset.json or the directory
        part.write_bytes(whole[:cut])
        assert packed(dataset, out) == whole
        out.unlink()
    for count in range(9):
        steps = pack(dataset, out)
        assert [step.position for step in islice(steps, count)] == list(range(1, count + 1))
        steps.close()
    assert packed(dataset, out) == whole and files(tmp_path) == ["a.zip", "whole.zip"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a machine with one core warns of more workers than that
        assert packed(dataset, tmp_path / "b.zip", workers=2) == whole


def test_an_image_that_was_damaged_is_written_anew(photos, tmp_path):
    dataset = open_dataset(photos, 16)
    whole = bytearray(packed(dataset, tmp_path / "a.zip"))
    entries, end = recover(io.BytesIO(whole))
    assert [entry.header_offset for entry in entries] == [
        e.header_offset for e in zipfile.ZipFile(tmp_path / "a.zip").infolist()[:9]
    ]
    assert whole[end:].startswith(b"PK\x03\x04") and b"dataset.json" in whole[end : end + 60]
    whole[entries[4].header_offset + 80] ^= 1  # a bit of its pixels
    assert len(recover(io.BytesIO(whole))[0]) == 4
    assert len(recover(io.BytesIO(bytes(whole[: entries[2].header_offset]) * 2))[0]) == 2  # not the same ones again


def test_other_images_or_options_start_anew(photos, tmp_path):
    out = tmp_path / "a.zip"
    for size in (16, 8):
        steps = pack(open_dataset(photos, size), out)
        next(steps)
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            steps.close()
    (part,) = tmp_path.glob(".a.*.part")
    os.utime(photos / "n01440764" / "0.png", ns=(1, 1))
    with pytest.warns(UserWarning, match=r"removed an unfinished a.zip of other images or options"):
        packed(open_dataset(photos, 8), out)
    assert not part.exists() and not notes


def test_what_cannot_be_decoded_is_left_out_or_refused(photos, tmp_path):
    bad = photos / "n02102040" / "4.png"
    bad.write_bytes(bad.read_bytes()[:-2000])
    dataset = open_dataset(photos, 16)
    steps = list(pack(dataset, tmp_path / "a.zip"))
    assert [step.position for step in steps if step.problem] == [5]
    assert "4.png cannot be read as an image" in steps[4].problem
    again = open_dataset(tmp_path / "a.zip", 16)
    assert again.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert torch.equal(again.batch([4])[0], dataset.batch([5])[0])
    whole = (tmp_path / "a.zip").read_bytes()
    steps = pack(dataset, tmp_path / "b.zip")
    list(islice(steps, 7))
    steps.close()
    assert [step.position for step in pack(dataset, tmp_path / "b.zip") if step.problem] == [5]
    assert (tmp_path / "b.zip").read_bytes() == whole
    with pytest.raises(DataError, match=r"4.png cannot be read as an image"):
        packed(dataset, tmp_path / "c.zip", strict=True)
    assert not (tmp_path / "c.zip").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_values_out_of_range_are_refused_with_one_line(tmp_path, workers):
    for i, high in enumerate((200, 255)):
        Image.fromarray(np.full((8, 8), high, np.uint8)).save(tmp_path / f"{i}.png")
    dataset = open_dataset(tmp_path, 8, value_range=(0, 200))
    with warnings.catch_warnings(), pytest.raises(DataError) as caught:
        warnings.simplefilter("ignore")
        packed(dataset, tmp_path / "out" / "a.zip", workers=workers)
    assert "\n" not in str(caught.value) and "1.png: values of its pixels range from 255" in str(caught.value)


def test_a_full_disk_is_said_in_one_line_and_can_be_resumed(photos, tmp_path, monkeypatch):
    dataset = open_dataset(photos, 16)
    whole = packed(dataset, tmp_path / "whole.zip")
    original, written = zipfile.ZipFile.writestr, []

    def full(self, entry, content):
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(entry.filename)
        original(self, entry, content)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match=r"cannot write .*a.zip: No space left on device; the same call continues"):
        packed(dataset, tmp_path / "a.zip")
    monkeypatch.undo()
    assert packed(dataset, tmp_path / "a.zip") == whole and len(written) == 4


def test_pack_on_the_command_line(capsys, photos, tmp_path):
    (photos / "n02102040" / "notes.txt").write_text("hello")
    out = tmp_path / "new" / "a.zip"
    command = ["data", "pack", photos, "--image-size", 16, "--out", out, "--workers", 0]
    code, text, err = run(capsys, *command)
    assert code == 0 and "9 images of 3x16x16" in text and "notes.txt: not an image" in err and "left out 1 file" in err
    whole = out.read_bytes()
    assert whole == packed(open_dataset(photos, 16), tmp_path / "b.zip")
    assert "a.zip exists: pass --overwrite to replace it" in refused(capsys, *command)
    succeed(capsys, *command, "--overwrite", "--compression", 9)
    assert len(out.read_bytes()) < len(whole) and files(out.parent) == ["a.zip"]
    assert "ends in .zip" in refused(capsys, *command[:-4], "--out", tmp_path / "a.tar")
    assert "notes.txt" in refused(capsys, *command, "--overwrite", "--strict")
    assert "--compression must be at least 0 and at most 9" in refused(capsys, *command, "--compression", 10)
    assert "does not exist" in refused(capsys, "data", "pack", tmp_path / "no", *command[3:], "--overwrite")
    assert len(out.read_bytes()) < len(whole)


def test_info(capsys, photos, tmp_path):
    bad = photos / "n02102040" / "4.png"
    bad.write_bytes(bad.read_bytes()[:-2000])
    (photos / "n02102040" / "notes.txt").write_text("hello")
    Image.fromarray(noise(8, 8)).save(photos / "n03888257" / "grey.png")
    text = succeed(capsys, "data", "info", photos)
    assert f"{photos}: folder of images, 10 images\n" in text and "pixels: RGB 9, L 1\n" in text
    assert "labels: 3 classes, 3 to 4 images each\n  3  n01440764\n  3  n02102040\n  4  n03888257\n" in text
    assert "shorter side: 8 to 45 pixels\n" in text  # 44x46 and 45x45
    assert "not readable as images: 1 files; only headers were read" in text and "notes.txt: not an image" in text
    text = succeed(capsys, "data", "info", photos, "--verify", "full")
    assert "9 images\n" in text and "not readable as images: 2 files\n" in text and "4.png: " in text
    packed(open_dataset(photos, 16), tmp_path / "a.zip")
    found = survey(tmp_path / "a.zip")
    assert found.kind == "zip of images" and found.sizes == {(16, 16): 9}
    assert found.classes == {"tench": 3, "English springer": 2, "parachute": 4}
    images = (noise(4, 6, 5) * 100.0).astype(np.float32)
    found = survey(write_npz(tmp_path / "a.npz", images, [1, 0, 1, 1]))
    assert found.sizes == {(5, 6): 4} and found.classes == {"0": 1, "1": 3} and found.numbered
    assert list(found.modes) == [f"1 channel, float32, {images.min():.6g} to {images.max():.6g}"]


def test_long_lists_are_cut(capsys, tmp_path):
    for i in range(30):
        (tmp_path / f"c{i:02}").mkdir()
        Image.new("L", (8 + i, 8)).save(tmp_path / f"c{i:02}" / "a.png")
    text = succeed(capsys, "data", "info", tmp_path)
    assert "  1  c19\n  ... and 10 more (--all lists them)\n" in text and "... (30 in all)" in text
    assert "  1  c29\n" in succeed(capsys, "data", "info", tmp_path, "--all")


def test_data_alone_lists_its_commands(capsys):
    text = succeed(capsys, "data")
    assert "info " in text and "pack " in text and "admg data pack photos" in text


@pytest.mark.slow
def test_a_killed_pack_continues(photos, tmp_path):
    for i in range(9, 100):
        Image.fromarray(noise(200, 200, 3, seed=i)).save(photos / "n03888257" / f"{i}.png")
    dataset, out = open_dataset(photos, 16), tmp_path / "a.zip"
    process = multiprocessing.get_context("fork").Process(target=packed, args=(dataset, out))
    process.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and sum(path.stat().st_size for path in tmp_path.glob(".a.*.part")) < 20_000:
        time.sleep(0.001)
    process.kill()
    process.join()
    (part,) = tmp_path.glob(".a.*.part")
    with part.open("rb") as file:
        assert 10 < len(recover(file)[0]) < 100 and not out.exists()
    assert packed(dataset, out) == packed(dataset, tmp_path / "b.zip")
