"""Images inside zips and tars: the same data set as the folder that was packed, in every process, and clear errors."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import admg
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.data import DataConfig, DataError, arrays, batches, members
from admg.data import open as open_dataset
from admg.data.members import Container, Part
from admg.data.scan import PROBED
from admg.data.spread import spread_indices
from admg.data.tars import expand, index_path
from admg.data.zips import list_zip
from admg.diffusion.config import DiffusionConfig
from admg.evaluation.metrics_cache import fingerprint_source
from admg.evaluation.sources import open_source
from admg.generation.starts import load_images


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, image: np.ndarray | Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def zipped(folder: Path, target: Path, method: int = zipfile.ZIP_STORED, top: str = "") -> Path:
    with zipfile.ZipFile(target, "w", method) as file:
        for name in sorted(folder.rglob("*"), reverse=True):
            file.write(name, top + name.relative_to(folder).as_posix())
    return target


def tarred(folder: Path, target: Path, top: str = "") -> Path:
    with tarfile.open(target, "w") as file:
        for name in sorted(folder.rglob("*"), reverse=True):
            file.add(name, top + name.relative_to(folder).as_posix(), recursive=False)
    return target


def write_tar(path: Path, content: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, value in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(value)
            file.addfile(entry, io.BytesIO(value))
    return path


def write_zip(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, value in content.items():
            file.writestr(name, value)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Images of many kinds in three classes, one of which is named in Unicode NFD."""
    root, exif = tmp_path / "photos", Image.Exif()
    exif[0x0112] = 6
    save(root / "cat" / "turned.jpg", noise(20, 12, 3), exif=exif)
    save(root / "cat" / "cmyk.jpg", Image.fromarray(noise(12, 12, 4), "CMYK"))
    save(root / "cat" / "deep" / "grey16.png", noise(8, 8).astype(np.uint16) * 257)
    save(root / "dog" / "alpha.png", noise(9, 9, 4))
    save(root / "dog" / "palette.gif", Image.fromarray(noise(9, 9, 3)).quantize(16))
    frames = [Image.fromarray(noise(8, 8, seed=seed)) for seed in range(3)]
    save(root / "e\u0301" / "moving.tif", frames[0], save_all=True, append_images=frames[1:])
    save(root / "Zebra" / "one.webp", noise(8, 10, 3))
    save(root / ".hidden" / "no.png", noise(8, 8))
    save(root / "__MACOSX" / "no.png", noise(8, 8))
    (root / "cat" / ".DS_Store").write_text("no image")
    return root


def same(one: admg.data.Dataset, other: admg.data.Dataset) -> bool:
    x, y = one.batch(range(len(one)))
    x2, y2 = other.batch(range(len(other)))
    equal = torch.equal(x, x2) and torch.equal(y, y2) and one.label_names == other.label_names
    return equal and one.decoding == other.decoding and one.channels == other.channels


@pytest.mark.parametrize("kind", ["stored", "deflated", "within a folder", "tar", "tar within a folder"])
@pytest.mark.parametrize("options", [{}, {"frames": "all", "background": 0}, {"verify": "none"}, {"labels": "none"}])
def test_an_archive_of_a_folder_is_the_same_data_set(photos, tmp_path, kind, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = open_dataset(photos, 8, **options)
        if kind.startswith("tar"):
            path = tarred(photos, tmp_path / "photos.tar", "./" if kind == "tar" else "photos/")
        else:
            method = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
            path = zipped(photos, tmp_path / "photos.zip", method, "photos/" if "folder" in kind else "")
        archive = open_dataset(path, 8, **options)
    assert same(folder, archive) and len(archive) == (9 if "frames" in options else 7)
    assert not archive.skipped
    if options != {"labels": "none"}:
        assert archive.label_names == ("Zebra", "cat", "dog", "\u00e9")


def test_system_folders_of_archives_are_named(photos, tmp_path):
    with pytest.warns(UserWarning, match=r"left out the hidden and system folders, .*photos.zip: .*__MACOSX"):
        open_dataset(zipped(photos, tmp_path / "photos.zip"), 8)


def test_links_in_a_tar_are_the_files_that_they_lead_to(tmp_path):
    root = tmp_path / "pets"
    for i in range(3):
        save(root / "a" / f"{i}.png", noise(8, 8, seed=i))
    (root / "b").mkdir()
    os.link(root / "a" / "0.png", root / "b" / "0.png")
    (root / "b" / "1.png").symlink_to("../a/1.png")
    (root / "b" / "2.png").symlink_to("1.png")  # a link to a link
    path = tarred(root, tmp_path / "pets.tar", "./")
    with tarfile.open(path) as file:
        assert sorted(entry.type for entry in file if not entry.isdir()) == [b"0"] * 3 + [b"1"] + [b"2"] * 2
    for _ in range(2):  # the second time from the index
        archive = open_dataset(path, 8)
        assert same(open_dataset(root, 8), archive) and archive.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_links_out_of_a_tar_are_skipped_and_named(tmp_path):
    for i in range(2):
        save(tmp_path / "pets" / "a" / f"{i}.png", noise(8, 8, seed=i))
    links = {"a/9.png": "../../other.png", "a/round.png": "a/round.png", "b": "a", "self.txt": "nowhere"}
    for name, target in links.items():
        (tmp_path / "pets" / name).symlink_to(target)
    path = tarred(tmp_path / "pets", tmp_path / "pets.tar")
    with tarfile.open(path, "a") as file:  # a hard link to itself, as GNU tar writes if a file is named twice
        entry = tarfile.TarInfo("a/0.png")
        entry.type, entry.linkname = tarfile.LNKTYPE, "a/0.png"
        file.addfile(entry)
    dataset = open_dataset(path, 8, labels="folders")
    assert [image.name for image in dataset.images] == ["a/0.png", "a/1.png"]
    assert [file.name for file, _ in dataset.skipped] == ["a/9.png", "a/round.png", "b"]
    assert all("it is a link to a folder or to a file elsewhere" in reason for _, reason in dataset.skipped)
    with pytest.raises(DataError, match=r"3 of 5 files .* cannot be read as images .*; the first is a/9.png: it is a"):
        open_dataset(path, 8, labels="folders", strict=True)


def test_labels_that_are_links_in_a_tar_are_read(tmp_path):
    webdataset(tmp_path / "w", lambda i: {"cls": b"7"}, shards=1)
    with tarfile.open(tmp_path / "w" / "shards-000.tar", "a") as file:
        for name, content in (("9.png", png(noise(8, 8, 3))), ("9.cls", None)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.type = len(content or b""), tarfile.REGTYPE if content else tarfile.LNKTYPE
            entry.linkname = "" if content else "00000.cls"
            file.addfile(entry, io.BytesIO(content or b""))
    assert open_dataset(tmp_path / "w", 8).labels.tolist() == [7] * 5


PETS = [f"{part}/{name}/{i}.png" for part in ("train", "val") for name in ("cat", "dog") for i in range(2)]
"""The first four are for training."""


def described(names: list[str]) -> str:
    return json.dumps({"labels": [[name, 9 - i] for i, name in enumerate(names)]})


def listed_in_table(names: list[str]) -> str:
    return "file_name,label\n" + "".join(f"{name},{9 - i}\n" for i, name in enumerate(names))


WITHIN = [name.partition("/")[2] for name in PETS]
"""The names relative to the part."""


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("top", ["", "pets/"])
@pytest.mark.parametrize(
    "files, metadata, options",
    [
        (PETS, {}, {}),
        (PETS, {}, {"split": "test"}),
        ([name for name in PETS if "/cat/" in name], {}, {}),
        (PETS, {"train/metadata.csv": listed_in_table(WITHIN[:4])}, {}),
        (PETS, {"metadata.csv": listed_in_table(PETS)}, {}),
        (PETS, {"metadata.csv": listed_in_table(PETS)}, {"labels": "folders"}),
        (PETS, {"dataset.json": described(PETS)}, {}),
        (PETS, {"dataset.json": described(PETS)}, {"split": "test"}),
        (PETS, {"dataset.json": described(PETS)}, {"labels": "folders"}),
        (PETS, {"train/dataset.json": described(WITHIN[:4]), "val/dataset.json": described(WITHIN[4:])}, {}),
        (PETS, {"train/dataset.json": described(WITHIN[:4]), "dataset.json": described(PETS[::-1])}, {}),
        (["a.png", "b.png"], {"metadata.csv": "file_name,label\na.png,x\nb.png,y\n"}, {}),
        (["s/a.png", "t/b.png"], {"metadata.csv": "file_name,label\ns/a.png,1\nt/b.png,0\n"}, {}),
        (["s/a.png", "t/b.png"], {"metadata.jsonl": '{"file_name": "s/a.png"}\n', "t/metadata.csv": "x"}, {}),
        (["train/a_1.png", "train/b_1.png", "val/a_2.png", "val/b_2.png"], {}, {}),
    ],
)
def test_parts_and_metadata_of_an_archive_are_those_of_the_folder(tmp_path, pack, top, files, metadata, options):
    archive = tmp_path / ("a.zip" if pack is zipped else "a.tar")
    folder = tmp_path / "pets"
    for i, name in enumerate(files):
        save(folder / name, noise(8, 8, seed=i))
    for name, text in metadata.items():
        (folder / name).write_text(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected, before = open_dataset(folder, 8, **options), len(caught)
        dataset = open_dataset(pack(folder, archive, top=top), 8, **options)
    assert same(dataset, expected) and expected.label_names and dataset.numbered == expected.numbered
    notes = [str(note.message).partition(": ")[2] for note in caught]
    assert notes[:before] == notes[before:]


@pytest.mark.parametrize("where", ["", "train/", "both"])
@pytest.mark.parametrize("kind", ["dataset.json", "metadata.csv"])
@pytest.mark.parametrize("pack", [None, zipped, tarred])
def test_a_part_is_labelled_by_the_file_in_it_or_by_the_one_of_all_parts(tmp_path, pack, kind, where):
    folder = tmp_path / "pets"
    for i, name in enumerate(PETS):
        save(folder / name, noise(8, 8, seed=i))
    write = described if kind == "dataset.json" else listed_in_table
    (folder / kind).write_text(write(PETS[::-1] if where else PETS))
    if where:
        (folder / "train" / kind).write_text(write(WITHIN[:4]))
    if where == "train/":
        (folder / kind).unlink()
    path = folder if pack is None else pack(folder, tmp_path / ("a.zip" if pack is zipped else "a.tar"))
    with pytest.warns(UserWarning, match="using the images in train, the split train"):
        dataset = open_dataset(path, 8)
    assert dataset.labels.tolist() == [9, 8, 7, 6]
    with pytest.warns(UserWarning, match="using the images in train, the split train"):
        dataset = open_dataset(path, 8, labels="folders")
    assert dataset.label_names == ("cat", "dog") and dataset.labels.tolist() == [0, 0, 1, 1]


def test_a_zip_with_backslashes(tmp_path):
    names = ["cat\\1.png", "cat\\2.png", "dog\\3.png", "dog\\4.png", "..\\dog\\5.png", ".git\\6.png"]
    path = write_zip(tmp_path / "a.zip", {name: png(noise(8, 8)) for name in names} | {"dog\\": b""})
    with pytest.warns(UserWarning, match="left out .*: .., .git"):
        dataset = open_dataset(path, 8)
    assert dataset.label_names == ("cat", "dog") and dataset.labels.tolist() == [0, 0, 1, 1]
    assert [file.name for file in dataset.images] == ["cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"]
    mixed = write_zip(tmp_path / "b.zip", {"a/x\\1.png": png(noise(8, 8)), "a/x\\2.png": png(noise(8, 8))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_dataset(mixed, 8).label_names == ("a",)  # part of a name, as on Unix


def edm(path: Path, labels: object, count: int = 5, **more: object) -> Path:
    content = {f"00000/img{i:08d}.png": png(noise(8, 8, 3, seed=i)) for i in range(count)}
    return write_zip(path, content | {"dataset.json": json.dumps({"labels": labels} | more).encode()})


def test_zip_of_edm(tmp_path):
    entries = [[f"00000/img{i:08d}.png", 6 - i] for i in range(5)]
    dataset = open_dataset(edm(tmp_path / "a.zip", entries), 8)
    assert dataset.labels.tolist() == [6, 5, 4, 3, 2] and dataset.label_names == tuple("0123456") and dataset.numbered
    x, _ = dataset.batch([3])
    assert np.array_equal(((x[0] + 1) * 127.5).round().numpy().transpose(1, 2, 0), noise(8, 8, 3, seed=3))
    assert str(dataset.images[3]) == f"{tmp_path}/a.zip/00000/img00000003.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the folder 00000 is no class
        assert open_dataset(edm(tmp_path / "b.zip", None), 8).labels is None
    named = open_dataset(edm(tmp_path / "c.zip", entries, label_names={str(k): f"n{9 - k}" for k in range(2, 7)}), 8)
    assert named.label_names == ("n7", "n6", "n5", "n4", "n3") and named.labels.tolist() == [4, 3, 2, 1, 0]
    with pytest.raises(DataError, match=r"a.zip/dataset.json has no label for 1 of 5 images, such as .*00000004"):
        open_dataset(edm(tmp_path / "a.zip", entries[:4]), 8)


def test_corrupt_members_are_named_or_refused(tmp_path):
    good, bad = png(noise(8, 8, 3)), png(noise(8, 8, 3))[:-60]
    content = {"a/1.png": good, "a/2.png": b"", "a/3.png": bad, "a/notes.txt": b"hello"}
    for path in (write_zip(tmp_path / "a.zip", content), write_zip(tmp_path / "b.zip", content, zipfile.ZIP_DEFLATED)):
        dataset = open_dataset(path, 8, verify="full", labels="folders")
        reasons = {file.name: reason for file, reason in dataset.skipped}
        assert len(dataset) == 1 and list(reasons) == ["a/2.png", "a/3.png", "a/notes.txt"]
        assert "truncated" in reasons["a/3.png"] and reasons["a/2.png"] == "not an image that Pillow can read"
        with pytest.raises(DataError, match=r"3 of 4 files in .*zip cannot be read .*the first is a/2.png"):
            open_dataset(path, 8, verify="full", strict=True)
        with pytest.raises(DataError, match=r"zip/a/3.png cannot be read as an image: .*truncated"):
            open_dataset(path, 8, labels="folders")[1]
    tar = write_tar(tmp_path / "a.tar", content)
    dataset = open_dataset(tar, 8, verify="full", labels="folders")
    assert [file.name for file, _ in dataset.skipped] == ["a/2.png", "a/3.png"]  # notes.txt is no image's sample


def test_a_damaged_member_of_a_zip_is_skipped(tmp_path):
    path = write_zip(tmp_path / "a.zip", {f"{i}.png": png(noise(8, 8, seed=i)) for i in range(3)}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as file:
        offsets = [entry.header_offset for entry in file.infolist()]
    raw = bytearray(path.read_bytes())
    raw[offsets[1] : offsets[1] + 4] = b"none"  # the signature
    raw[offsets[2] + 40 : offsets[2] + 60] = b"\xff" * 20
    path.write_bytes(raw)
    dataset = open_dataset(path, 8, labels="none", verify="full")
    assert len(dataset) == 1 and dataset.skipped[0][1] == "its header in the zip is damaged"


def bmp(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "bmp")
    return file.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_in_the_pixels_of_a_member_is_noticed_by_its_checksum(tmp_path, method):
    """The format BMP has none of its own."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        for i in range(3):
            file.writestr(f"{i}.bmp", bmp(noise(8, 8, seed=i)))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    if method == zipfile.ZIP_STORED:
        content[content.index(bmp(noise(8, 8, seed=1))) + 1100] ^= 4
    else:  # deflated noise is mostly stored; the checksum in the list of members is changed instead
        content[content.rindex(b"1.bmp") - 46 + 16] ^= 4
    (tmp_path / "a.zip").write_bytes(content)
    dataset = open_dataset(tmp_path / "a.zip", 8)
    dataset.batch([0, 2])
    with pytest.raises(DataError, match=r"a\.zip/1\.bmp: it is damaged: its checksum is not the one in the zip"):
        dataset.batch([1])
    assert [file.name for file, _ in open_dataset(tmp_path / "a.zip", 8, verify="full").skipped] == ["1.bmp"]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_pictures_of_too_many_pixels_are_refused_wherever_they_are(tmp_path, kind, monkeypatch):
    """Also where no headers are read before training."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    names, path = [f"{i:02d}.png" for i in range(70)], tmp_path / f"d.{kind}"
    contents = [png(noise(8, 8, seed=1))] * 70
    unread = next(i for i in range(70) if i not in spread_indices(70, PROBED))
    contents[unread] = png(noise(11, 12))
    if kind == "folder":
        path.mkdir()
        for name, content in zip(names, contents):
            (path / name).write_bytes(content)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in zip(names, contents):
                file.writestr(name, content)
    else:
        with tarfile.open(path, "w") as file:
            for name, content in zip(names, contents):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = open_dataset(path, 8, verify="none")
        with pytest.raises(DataError, match=rf"{unread}\.png: it has 12x11 pixels, more than 0 million"):
            dataset.batch([unread])


def test_members_with_extra_fields(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for i in range(3):
            entry = zipfile.ZipInfo(f"{i}.png")
            entry.extra = b"\x99\x99\x04\x00abcd" * i
            file.writestr(entry, png(noise(8, 8, seed=i)))
    x, _ = open_dataset(tmp_path / "a.zip", 8).batch(range(3))
    assert np.array_equal(((x[:, 0] + 1) * 127.5).round().numpy(), np.stack([noise(8, 8, seed=i) for i in range(3)]))


def test_a_damaged_description_is_refused(tmp_path):
    content = {"1.png": png(noise(8, 8)), "dataset.json": b'{"labels": null}' * 9}
    path = write_zip(tmp_path / "a.zip", content, zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    start = raw.find(b"dataset.json") + len("dataset.json")
    raw[start : start + 8] = b"\xff" * 8
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a.zip cannot be read as a zip: Error -3 while decompressing"):
        open_dataset(path, 8)


@pytest.mark.parametrize("damage", ["cut", "text", "encrypted", "method", "empty"])
def test_what_is_no_zip_is_refused(tmp_path, damage):
    path = write_zip(tmp_path / "a.zip", {} if damage == "empty" else {"1.png": png(noise(8, 8))})
    raw = bytearray(path.read_bytes())
    central = raw.find(b"PK\x01\x02")
    if damage == "cut":
        raw = raw[:-30]
    elif damage == "text":
        raw = bytearray(b"hello")
    elif damage == "encrypted":
        raw[central + 8] |= 1
    elif damage == "method":
        raw[central + 10] = 14  # LZMA
    path.write_bytes(raw)
    said = {"encrypted": "are encrypted, such as 1.png", "method": "compressed by method 14", "empty": "holds none"}
    with pytest.raises(DataError, match=said.get(damage, "a.zip cannot be read as a zip")):
        open_dataset(path, 8)


def test_members_that_decompress_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BOMB", 1000)
    path = write_zip(tmp_path / "a.zip", {"1.png": bytes(200_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"a.zip/1.png of \d+ bytes would decompress to 200,000 bytes"):
        open_dataset(path, 8)
    path = write_zip(
        tmp_path / "b.zip", {"1.png": png(noise(8, 8)), "dataset.json": b" " * 200_000}, zipfile.ZIP_DEFLATED
    )
    with pytest.raises(DataError, match=r"b.zip/dataset.json of \d+ bytes would decompress"):
        open_dataset(path, 8)


def test_no_more_is_decompressed_than_the_zip_says(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"1.png": png(noise(8, 8)) + bytes(300_000)}, zipfile.ZIP_DEFLATED)
    (member,) = list_zip(path).members.values()
    assert len(replace(member, size=100).open().read()) == 100


def webdataset(folder: Path, label=lambda i: {"cls": str(i % 3).encode()}, shards: int = 3, name="shards-{:03}.tar"):
    for shard in range(shards):
        content = {}
        for i in range(4 * shard, 4 * shard + 4):
            content |= {f"{i:05}.{ending}": value for ending, value in label(i).items()}
            content[f"{i:05}.png"] = png(noise(8, 8, 3, seed=i))
        write_tar(folder / name.format(shard), content)
    return folder


def test_webdataset_in_every_spelling(tmp_path):
    folder = webdataset(tmp_path / "w")
    (folder / "sizes.json").write_text("{}")
    for path in (folder, f"{folder}/shards-{{000..002}}.tar", f"{folder}/shards-*.tar"):
        dataset = open_dataset(path, 8)
        assert dataset.labels.tolist() == [i % 3 for i in range(12)] and dataset.numbered
        x, _ = dataset.batch(range(12))
        images = ((x + 1) * 127.5).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1)
        assert np.array_equal(images, np.stack([noise(8, 8, 3, seed=i) for i in range(12)]))
    assert str(dataset.images[5]) == f"{folder}/shards-001.tar/00005.png"
    one = open_dataset(folder / "shards-001.tar", 8)
    assert one.labels.tolist() == [1, 2, 0, 1] and str(one.images[1]) == f"{folder}/shards-001.tar/00005.png"
    with pytest.raises(DataError, match=r"2 of 5 files of .* do not exist; the first is shards-003.tar"):
        open_dataset(f"{folder}/shards-{{000..004}}.tar", 8)
    with pytest.raises(DataError, match=r"no file matches .*other-\*.tar"):
        open_dataset(f"{folder}/other-*.tar", 8)


def test_ranges_of_shards(tmp_path):
    names = [f"a-{i:02}-{j}.tar" for i in (8, 9, 10) for j in (0, 1)]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in expand(f"{tmp_path}/a-{{08..10}}-{{0..1}}.tar")] == names
    assert expand(str(tmp_path / "a.tar")) == []


@pytest.mark.parametrize(
    "label, labels, names",
    [
        (lambda i: {"cls": b"3\n"}, 3, tuple("0123")),
        (lambda i: {"cls": b"dog" if i % 2 else b"cat"}, None, ("cat", "dog")),
        (lambda i: {"txt": b"cat", "json": b'{"label": 1, "url": "x"}'}, 1, tuple("01")),
        (lambda i: {"json": b'{"url": "x"}', "txt": b"cat"}, 0, ("cat",)),
        (lambda i: {"json": b'{"class_name": "dog"}', "CLS": b"cat"}, 0, ("cat",)),
        (lambda i: {"txt": f"a picture of {i}".encode()}, "captions", ()),
        (lambda i: {"npy": b"x"}, "none", ()),
        (lambda i: {"json": b'{"label": 1.0}'}, 1, tuple("01")),
        (lambda i: {"json": b'{"Label": true}'}, 1, tuple("01")),
        (lambda i: {"json": b'{"category": 1, "x": 5}'}, 1, tuple("01")),
        (lambda i: {"class": b"1"}, 1, tuple("01")),
    ],
)
def test_labels_of_webdataset(tmp_path, label, labels, names):
    folder = webdataset(tmp_path / "w", label)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        dataset = open_dataset(folder, 8)
    assert dataset.label_names == names
    noted = any(note.category is UserWarning for note in notes)  # files that threads leave open are no notes
    assert (dataset.labels is None) == isinstance(labels, str) and noted == (labels == "captions")
    if not isinstance(labels, str):
        assert dataset.labels.tolist() == [i % 2 if labels is None else labels for i in range(12)]
    assert open_dataset(folder, 8, labels="none").labels is None


@pytest.mark.parametrize(
    "label, said",
    [
        (lambda i: {"cls": b"1"} if i else {}, "1 of 12 images .* have no label, such as .*shards-000.tar/00000.png"),
        (lambda i: {"cls": b"1" if i else b"cat"}, "are numbers, and some are names, such as cat"),
        (lambda i: {"cls": b"-1"}, r"must be from 0 to 999,999, got -1"),
        (
            lambda i: {"json": b'{"label": 99999999999999999999999}'},
            "must be from 0 to 999,999, got 99999999999999999999999",
        ),
        (lambda i: {"json": b"[" * 100_000}, "00000.json cannot be read as a label"),
        (lambda i: {"json": b"{"}, "00000.json cannot be read as a label"),
        (lambda i: {"cls": b"\xff"}, "00000.cls cannot be read as a label"),
        (lambda i: {"cls": b"1", "jpg": b"x"}, "several images per sample, such as 00000.jpg and 00000.png"),
    ],
)
def test_unclear_labels_of_webdataset_are_refused(tmp_path, label, said):
    with pytest.raises(DataError, match=said):
        open_dataset(webdataset(tmp_path / "w", label), 8)


def test_a_json_without_a_label_is_noted(tmp_path):
    folder = webdataset(tmp_path / "w", lambda i: {"json": b'{"url": "x", "kind": [0, 1]}'})
    for _ in range(2):  # the second time from the index
        with pytest.warns(UserWarning, match=r"json files .* have no label that is recognised \(they have url, kind\)"):
            assert open_dataset(folder, 8).labels is None


@pytest.mark.parametrize("name", ["dataset.json", "metadata.csv", "metadata.jsonl"])
def test_each_of_several_tars_describes_its_own_images(tmp_path, name):
    images = ["0.png", "1.png"]  # the same names in both tars
    for tar, labels in enumerate([[3, 1], [0, 3]]):
        pairs = list(zip(images, labels))
        rows = [json.dumps({"file_name": image, "label": label}) for image, label in pairs]
        content = {
            "dataset.json": json.dumps({"labels": pairs}),
            "metadata.csv": "file_name,label\n" + "".join(f"{image},{label}\n" for image, label in pairs),
            "metadata.jsonl": "\n".join(rows),
        }[name]
        pictures = {image: png(noise(8, 8, seed=2 * tar + i)) for i, image in enumerate(images)}
        write_tar(tmp_path / "t" / f"s-{tar}.tar", pictures | {name: content.encode()})
    for _ in range(2):  # the second time from the index
        dataset = open_dataset(tmp_path / "t", 8)
        assert dataset.labels.tolist() == [3, 1, 0, 3] and dataset.numbered
    assert open_dataset(tmp_path / "t", 8, labels="none").labels is None
    if name == "dataset.json":
        assert open_dataset(tmp_path / "t", 8, labels="json").labels.tolist() == [3, 1, 0, 3]
    write_tar(tmp_path / "t" / "s-2.tar", {"0.png": png(noise(8, 8))})
    with pytest.raises(DataError, match=r"1 of 5 images in .* have no label, such as .*s-2.tar/0.png"):
        open_dataset(tmp_path / "t", 8)


def test_one_of_several_tars_describes_the_images_of_all(tmp_path):
    names = [f"00000/{i}.png" for i in range(4)]
    pictures = {name: png(noise(8, 8, seed=i)) for i, name in enumerate(names)}
    description = {"dataset.json": json.dumps({"labels": [[name, i % 3] for i, name in enumerate(names)]}).encode()}
    write_tar(tmp_path / "t" / "s-0.tar", {name: pictures[name] for name in names[:2]} | description)
    write_tar(tmp_path / "t" / "s-1.tar", {name: pictures[name] for name in names[2:]})
    assert open_dataset(tmp_path / "t", 8).labels.tolist() == [0, 1, 2, 0]


def test_hidden_members_of_webdataset_are_left_out(tmp_path):
    """`tar` of macOS writes ._a.png, with the attributes of the file, beside a.png."""
    samples = {f"{i}.{ending}": content for i in "ab" for ending, content in (("png", png(noise(8, 8))), ("cls", b"1"))}
    content = {name: value for sample in samples for name, value in ((f"._{sample}", b"x"), (sample, samples[sample]))}
    dataset = open_dataset(write_tar(tmp_path / "a.tar", content), 8)
    assert [file.name for file in dataset.images] == ["a.png", "b.png"] and dataset.labels.tolist() == [1, 1]
    assert not dataset.skipped


def test_parts_of_a_tar_set(tmp_path):
    webdataset(webdataset(tmp_path / "w", name="train-{}.tar"), shards=1, name="val-{}.tar")
    with pytest.warns(UserWarning, match="3 of 4 files are the split train"):
        assert len(open_dataset(tmp_path / "w", 8)) == 12
    with pytest.warns(UserWarning, match=r"1 of 4 files are the split test: val-0.tar"):
        assert len(open_dataset(tmp_path / "w", 8, split="test")) == 4
    for file in (tmp_path / "w").glob("val*"):
        file.unlink()
    with pytest.raises(DataError, match=r'no file for split="test": it has train-0.tar, train-1.tar, train-2.tar'):
        open_dataset(tmp_path / "w", 8, split="test")


def test_a_tar_is_read_through_once(tmp_path, monkeypatch):
    folder = webdataset(tmp_path / "w")
    first = open_dataset(folder, 8)
    opened = []
    original = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda path, mode: opened.append(path.name) or original(path, mode))
    assert same(open_dataset(folder, 8), first) and opened == []
    os.utime(folder / "shards-001.tar", ns=(1, 1))
    assert same(open_dataset(folder, 8), first) and opened == ["shards-001.tar"]
    content = json.loads(gzip.decompress(index_path(folder / "shards-002.tar").read_bytes()))
    name, start, size, label = content["images"][0]
    wrong = [[name, start, size, [label]], [name, -1.5, size, label], [7, start, size, label], [name, start, size]]
    others = [gzip.compress(json.dumps(content | {"images": [row]}).encode()) for row in wrong]
    for damaged in (b"", b"x", index_path(folder / "shards-000.tar").read_bytes()[:-9], *others):
        opened.clear()
        index_path(folder / "shards-002.tar").write_bytes(damaged)
        assert same(open_dataset(folder, 8), first) and opened == ["shards-002.tar"]


@pytest.mark.parametrize("size", [1025, 2**40, 2**70])
@pytest.mark.parametrize("name", ["a.png", "dataset.json", "a.cls"])
def test_a_member_that_would_be_larger_than_its_tar_is_refused(tmp_path, size, name):
    info = tarfile.TarInfo(name)
    info.size = size
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=r"a\.tar (is truncated or damaged|cannot be read as a tar)"):
        open_dataset(tmp_path / "a.tar", 8)


@pytest.mark.parametrize("content, said", [(b"hello", "cannot be read as a tar"), (b"\x1f\x8b" + b"x" * 600, "unpack")])
def test_what_is_no_tar_is_refused(tmp_path, content, said):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_dataset(tmp_path / "a.tar", 8)
    with pytest.raises(DataError, match=r"holds no image files \(it holds n01440764.tar\)"):
        open_dataset(write_tar(tmp_path / "b.tar", {"n01440764.tar": b"x"}), 8)


def test_a_truncated_tar_is_refused_or_its_last_image_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": png(noise(64, 64, 3, seed=i)) for i in range(3)})
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"a.tar is truncated or damaged: 1.png would end beyond the end of the file"):
        open_dataset(path, 8)


def test_a_part_of_a_file_is_a_file(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    part = Part(Container.from_path(tmp_path / "a"), 10, 20)
    assert part.read(5) == bytes(range(10, 15)) and part.tell() == 5
    assert part.seek(-3, 2) == 17 and part.read() == bytes(range(27, 30)) and part.read() == b""
    assert part.seek(2) == 2 and part.seek(2, 1) == 4 and part.read(1) == bytes([14])
    assert part.seek(50) == 50 and part.read(1) == b""


def test_a_file_that_was_replaced_is_refused(tmp_path):
    path = edm(tmp_path / "a.zip", None)
    dataset = open_dataset(path, 8)
    dataset.batch([0])
    replacement = edm(tmp_path / "b.zip", None, count=7)
    replacement.replace(path)
    assert len(open_dataset(path, 8)) == 7
    members._opened.cache_clear()  # files that are open already keep their content
    with pytest.raises(DataError, match=r"a.zip has changed since it was opened: open it again"):
        dataset.batch([1])


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_workers_and_threads_and_pickles_read_the_same(tmp_path, kind):
    content = {f"{i:03}.png": png(noise(8, 8, 3, seed=i)) for i in range(40)}
    path = (write_zip if kind == "zip" else write_tar)(tmp_path / f"a.{kind}", content)
    dataset = open_dataset(path, 8)
    x, _ = dataset.batch(range(40))
    with ThreadPoolExecutor(8) as pool:
        assert torch.equal(torch.cat(list(pool.map(lambda i: dataset.batch([i])[0], range(40)))), x)
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).batch(range(40))[0], x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a machine with one core warns of more workers than that
        parallel = batches(dataset, 6, seed=1, workers=2)
        alone = batches(dataset, 6, seed=1)
        assert all(torch.equal(next(parallel)[0], next(alone)[0]) for _ in range(14))


def test_everything_that_reads_folders_reads_archives(tmp_path, photos):
    for i in range(6):
        save(tmp_path / "square" / "ab"[i % 2] / f"{i}.png", noise(8, 8, 3, seed=i))
    folder, archive = tmp_path / "square", zipped(tmp_path / "square", tmp_path / "square.zip")
    assert same(DataConfig(data=str(archive), image_size=8).open(), open_dataset(folder, 8))
    found, expected = open_source(archive, labels=True), open_source(folder, labels=True)
    assert np.array_equal(found[0:6], expected[0:6]) and found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.digest(slice(0, 6)) == expected.digest(slice(0, 6)) and fingerprint_source(
        found
    ) != fingerprint_source(expected)
    model = Model(nn.Identity(), DiffusionConfig().build(), (3, 8, 8), Labels(0), DiffusionConfig())
    images, names = load_images([archive], model)
    assert torch.equal(images, load_images([folder], model)[0]) and names == ["0", "2", "4", "1", "3", "5"]
