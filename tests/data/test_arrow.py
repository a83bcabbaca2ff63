"""Tables of images: Parquet, the Arrow files of Hugging Face's `datasets`, and data sets of the hub."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import time
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import succeed
from PIL import Image

from admg.data import DataError, arrow, batches, survey
from admg.data import open as open_dataset
from admg.data.arrow import choose_split, copy_path
from admg.data.decoding import Decoding
from admg.data.scan import PROBED
from admg.data.spread import spread_indices

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


IMAGES = [encoded(noise(8, 8, 3, seed=i)) for i in range(10)]
NAMES = ["cat", "dog", "cow"]


def table(images: list[bytes | None] = IMAGES, plain: bool = False, **columns: list) -> pa.Table:
    """A table as `datasets` writes it, or a plain one without its metadata, whose images are plain bytes."""
    features = {"image": {"_type": "Image"}}
    if "label" in columns and not plain:
        features["label"] = {"names": NAMES, "_type": "ClassLabel"}
    entries = images if plain else [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    made = pa.table({"image": entries, **columns})
    described = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return made if plain else made.replace_schema_metadata(described)


def write_arrow(path: Path, content: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(str(path), content.schema) as writer:
        writer.write_table(content, max_chunksize=3)
    return path


def write_parquet(path: Path, content: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(content, path, row_group_size=4)
    return path


def pixels(dataset) -> np.ndarray:
    x, _ = dataset.batch(range(len(dataset)))
    return ((x + 1) * 127.5).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1)


@pytest.mark.thorough
@pytest.mark.parametrize("write, ending", [(write_parquet, "parquet"), (write_arrow, "arrow")])
@pytest.mark.parametrize("plain", [False, True])
def test_images_and_labels_of_a_table(tmp_path, write, ending, plain):
    numbers = [2, 0, 1, 1, 0, 2, 2, 1, 0, 0]
    label = [NAMES[number] for number in numbers] if plain else numbers
    path = write(tmp_path / f"a.{ending}", table(plain=plain, label=label, text=["x"] * 10))
    dataset = open_dataset(path, 8)
    assert np.array_equal(pixels(dataset), np.stack([noise(8, 8, 3, seed=i) for i in range(10)]))
    assert [dataset.label_names[number] for number in dataset.labels] == [NAMES[number] for number in numbers]
    assert dataset.label_names == (tuple(sorted(NAMES)) if plain else tuple(NAMES)) and not dataset.numbered
    assert open_dataset(path, 8, labels="none").labels is None
    assert str(dataset.images[7]) == f"{path}/00000007"
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.batch([9, 1])[0], dataset.batch([9, 1])[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a machine with one core warns of more workers than that
        workers, alone = (batches(dataset, 4, seed=1, workers=count) for count in (2, 0))
        assert all(torch.equal(next(workers)[0], next(alone)[0]) for _ in range(6))


def test_other_types_of_images_and_labels(tmp_path):
    large = pa.table({"jpg": pa.array(IMAGES, pa.large_binary()), "cls": pa.array([3] * 10, pa.int16())})
    dataset = open_dataset(write_parquet(tmp_path / "a.parquet", large), 8)
    assert dataset.label_names == ("0", "1", "2", "3") and dataset.numbered and len(pixels(dataset)) == 10
    coded = pa.table({"img": IMAGES, "thumb": IMAGES, "label": pa.array(["b", "a"] * 5).dictionary_encode()})
    dataset = open_dataset(write_parquet(tmp_path / "b.parquet", coded), 8)
    assert dataset.label_names == ("a", "b") and dataset.labels.tolist() == [1, 0] * 5
    unlabelled = table(label=[-1] * 10)  # as the hub stores labels that are kept secret
    assert open_dataset(write_parquet(tmp_path / "c.parquet", unlabelled), 8).labels is None
    with pa.ipc.new_file(str(tmp_path / "d.arrow"), coded.schema) as writer:
        writer.write_table(coded)
    assert open_dataset(tmp_path / "d.arrow", 8).labels.tolist() == [1, 0] * 5


@pytest.mark.parametrize(
    "name, values, labels",
    [
        ("label", [2.0, 0.0] * 5, [2, 0] * 5),
        ("label", [True, False] * 5, [1, 0] * 5),
        ("Label", [1, 0] * 5, [1, 0] * 5),
        (" CLASS", [1, 0] * 5, [1, 0] * 5),
        ("label", [-1.0] * 10, None),
    ],
)
@pytest.mark.parametrize("write, ending", [(write_arrow, "arrow"), (write_parquet, "parquet")])
def test_labels_of_other_types_and_columns_of_other_case(tmp_path, write, ending, name, values, labels):
    dataset = open_dataset(write(tmp_path / f"a.{ending}", pa.table({"image": IMAGES, name: values})), 8)
    assert (dataset.labels if labels is None else dataset.labels.tolist()) == labels


@pytest.mark.parametrize(
    "column, said",
    [
        ({"label": [[0], [1]] * 5}, "its column label of list.*int64> is not used: labels must be one number or name"),
        ({"target": [0.5, 1.0] * 5}, "its column target of fractions is not used"),
        ({"animal": ["cat", "dog"] * 5}, r"no column of labels \(it has animal\): use a name such as label, labels"),
    ],
)
def test_columns_that_are_not_used_are_noted(tmp_path, column, said):
    path = write_parquet(tmp_path / "a.parquet", pa.table({"image": IMAGES, **column}))
    with pytest.warns(UserWarning, match=said):
        assert open_dataset(path, 8).labels is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_dataset(path, 8, labels="none")) == 10


def test_a_copy_without_the_labels_is_made_anew(tmp_path):
    """Copies of earlier versions lack columns that these did not use."""
    path = write_parquet(tmp_path / "a.parquet", pa.table({"image": IMAGES, "label": [1.0, 0.0] * 5}))
    copy_path(path).parent.mkdir(parents=True)
    with (
        pa.OSFile(str(copy_path(path)), "wb") as sink,
        pa.ipc.new_stream(sink, pa.schema({"image": pa.binary()})) as out,
    ):
        out.write_table(pa.table({"image": IMAGES}))
    assert open_dataset(path, 8).labels.tolist() == [1, 0] * 5


def test_the_rules_for_files_hold_for_rows(tmp_path):
    Image.init()  # all formats of Pillow look at the beginning of each file
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.fromarray(noise(8, 8, 3, seed=i)) for i in range(3)]
    images = {
        "1.jpg": encoded(noise(20, 12, 3), "jpeg", exif=exif),
        "2.tif": encoded(Image.fromarray(noise(8, 8, 4), "CMYK"), "tiff"),
        "3.png": encoded(noise(8, 8).astype(np.uint16) * 257),
        "4.png": encoded(noise(8, 8, 4)),
        "5.gif": encoded(frames[0], "gif", save_all=True, append_images=frames[1:]),
    }
    for name, content in images.items():
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    path = write_parquet(tmp_path / "a.parquet", table(list(images.values())))
    for options in ({"frames": "all", "background": 0}, {"fit": "pad", "image_size": 24}, {"channels": 1}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            folder, rows = (
                open_dataset(source, **{"image_size": 8} | options) for source in (tmp_path / "folder", path)
            )
        assert np.array_equal(pixels(folder), pixels(rows)) and folder.decoding == rows.decoding
        assert rows.decoding != Decoding() and len(rows) == (7 if "frames" in options else 5)


def test_every_format_of_pillow(tmp_path):
    Image.init()  # all formats look at the beginning of each file
    image = Image.fromarray(noise(8, 8, 3))
    pages = {"save_all": True, "append_images": [image]}
    files = [
        encoded(image, "tiff", compression="tiff_lzw", **pages),
        *(encoded(image, kind) for kind in ("bmp", "ppm", "jpeg2000", "tga", "gif")),
        encoded(image, "webp", lossless=True),
    ]
    dataset = open_dataset(write_parquet(tmp_path / "a.parquet", table(files)), 8, frames="all", verify="full")
    assert not dataset.skipped and len(dataset) == 8
    found = pixels(dataset)
    assert all(np.array_equal(found[i], noise(8, 8, 3)) for i in (0, 1, 2, 3, 4, 5, 7))  # 6 is a palette


def test_rows_without_an_image_are_named_or_refused(tmp_path):
    content = [IMAGES[0], None, b"", IMAGES[1][:-60], IMAGES[2]]
    (tmp_path / "4.png").write_bytes(IMAGES[5])
    linked = table(content).to_pylist()
    linked[4]["image"] = {"bytes": None, "path": "4.png"}  # a file beside the table
    linked[1]["image"] = {"bytes": None, "path": None}
    path = write_parquet(tmp_path / "a.parquet", pa.Table.from_pylist(linked, table(content).schema))
    dataset = open_dataset(path, 8, verify="full")
    assert [file.name for file, _ in dataset.skipped] == ["00000001", "00000002", "00000003"]
    assert dataset.skipped[0][1] == "the row has no image" and "truncated" in dataset.skipped[2][1]
    assert np.array_equal(pixels(dataset), np.stack([noise(8, 8, 3, seed=i) for i in (0, 5)]))
    with pytest.raises(DataError, match=r"3 of 5 files .*; the first is 00000001: the row has no image"):
        open_dataset(path, 8, verify="full", strict=True)


def test_a_parquet_file_is_copied_once(tmp_path, cache):
    path = write_parquet(tmp_path / "a.parquet", table(label=[0] * 10, text=["long" * 1000] * 10))
    open_dataset(path, 8)
    copy = copy_path(path)
    changed = copy.stat().st_mtime_ns
    assert copy.stat().st_size < 2 * sum(map(len, IMAGES)) + 4000  # without the text
    open_dataset(path, 8)
    assert copy.stat().st_mtime_ns == changed
    write_parquet(path, table(IMAGES[:3], label=[1] * 3))
    assert len(open_dataset(path, 8)) == 3
    assert not copy.exists() and [file.name for file in (cache / "tables").iterdir()] == [copy_path(path).name]


@pytest.mark.thorough
def test_processes_that_open_a_parquet_file_at_once_copy_it_once(tmp_path, cache, monkeypatch):
    path, original, copies = write_parquet(tmp_path / "a.parquet", table()), arrow._write_copy, []

    def slow(*arguments):
        copies.append(arguments)
        time.sleep(0.1)
        original(*arguments)

    monkeypatch.setattr(arrow, "_write_copy", slow)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: open_dataset(path, 8).batch(range(10))[0], range(4)))
    assert len(copies) == 1 and all(torch.equal(x, found[0]) for x in found)
    assert [file.name for file in (cache / "tables").iterdir()] == [copy_path(path).name]


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "file"))
    path = write_parquet(tmp_path / "a.parquet", table())
    with pytest.raises(OSError, match=r"cannot copy .*a.parquet to the cache folder .*ADMG_HOME chooses another"):
        open_dataset(path, 8)


def test_sets_of_tables(tmp_path):
    for i, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        write_parquet(tmp_path / "repo" / "data" / f"{name}.parquet", table(IMAGES[i : i + 2], label=[i, i]))
    (tmp_path / "repo" / "README.md").touch()
    for folder in (tmp_path / "repo", tmp_path / "repo" / "data"):
        with pytest.warns(UserWarning, match="2 of 3 files are the split train"):
            dataset = open_dataset(folder, 8)
        assert dataset.labels.tolist() == [0, 0, 1, 1] and dataset.label_names == tuple(NAMES)
        assert np.array_equal(pixels(dataset), np.stack([noise(8, 8, 3, seed=i) for i in (0, 1, 1, 2)]))
        with pytest.warns(UserWarning, match="1 of 3 files are the split test"):
            assert open_dataset(folder, 8, split="test").labels.tolist() == [2, 2]


def saved(folder: Path, content: pa.Table, **state: object) -> Path:
    write_arrow(folder / "data-00000-of-00002.arrow", content.slice(0, 6))
    write_arrow(folder / "data-00001-of-00002.arrow", content.slice(6))
    files = [{"filename": f"data-0000{i}-of-00002.arrow"} for i in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_indices_data_files": None} | state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_folders_of_save_to_disk(tmp_path):
    folder = saved(tmp_path / "one", table(label=[0, 1] * 5))
    dataset = open_dataset(folder, 8)
    assert dataset.labels.tolist() == [0, 1] * 5 and len(np.unique(pixels(dataset), axis=0)) == 10
    saved(tmp_path / "both" / "train", table(label=[0] * 10))
    saved(tmp_path / "both" / "validation", table(label=[2] * 10))
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    assert set(open_dataset(tmp_path / "both", 8).labels) == {0}
    assert set(open_dataset(tmp_path / "both", 8, split="test").labels) == {2}
    with pytest.raises(DataError, match=r"holds a selection of rows: write it with flatten_indices"):
        open_dataset(saved(tmp_path / "some", table(), _indices_data_files=[{"filename": "x"}]), 8)


def test_choice_of_a_split():
    assert choose_split(["test", "train", "valid"], "train", "it") == "train"
    assert choose_split(["train", "valid", "test"], "test", "it") == "test"
    assert choose_split(["train", "validation"], "test", "it") == "validation"
    with pytest.warns(UserWarning, match="it has no split train: using its only split, all"):
        assert choose_split(["all"], "train", "it") == "all"
    with pytest.raises(DataError, match=r'it has no split for split="test": it has train'):
        choose_split(["train"], "test", "it")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> list:
    """A package `datasets` that loads one data set of two parts, and the calls of it."""
    calls: list = []

    def load_dataset(name, config, download_config):
        calls.append((name, config, download_config))
        if name != "org/mine":
            raise FileNotFoundError(f"Dataset {name!r} doesn't exist on the Hub\nmore")
        parts = {
            part: write_arrow(tmp_path / f"{part}.arrow", table(label=[i] * 10))
            for i, part in enumerate(("train", "test"))
        }
        return {part: types.SimpleNamespace(cache_files=[{"filename": str(file)}]) for part, file in parts.items()}

    module = types.ModuleType("datasets")
    module.load_dataset, module.DownloadConfig = load_dataset, lambda local_files_only: local_files_only
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_data_sets_of_the_hub(hub, monkeypatch):
    dataset = open_dataset("hf:org/mine:small", 8)
    assert dataset.labels.tolist() == [0] * 10 and dataset.label_names == tuple(NAMES)
    assert open_dataset("hf:org/mine", 8, split="test").labels.tolist() == [1] * 10
    assert hub == [("org/mine", "small", False), ("org/mine", None, False)]
    monkeypatch.setenv("ADMG_OFFLINE", "1")
    with pytest.raises(DataError, match=r"cannot load hf:other: Dataset 'other' doesn't exist on the Hub$"):
        open_dataset("hf:other", 8)
    assert hub[-1] == ("other", None, True)
    monkeypatch.setenv("ADMG_OFFLINE", "0")
    open_dataset("hf:org/mine", 8)
    assert hub[-1] == ("org/mine", None, False)
    assert survey("hf:org/mine").classes == {"cat": 10, "dog": 0, "cow": 0}


@pytest.mark.parametrize("package, path", [("datasets", "hf:mnist"), ("pyarrow", "a.parquet")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, path):
    write_parquet(tmp_path / "a.parquet", table())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"need.* the package {package}: pip install 'admg\[datasets\]'"):
        open_dataset(path if path.startswith("hf:") else tmp_path / path, 8)


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"text": ["a"]}, r"has no column of images \(it has text\)"),
        ({"left": [IMAGES[0]], "right": [IMAGES[0]]}, r"has several columns of images \(left, right\)"),
        ({"image": [IMAGES[0]] * 2, "label": [0, None]}, "1 of 2 images .* have no label, such as .*00000001"),
        ({"image": [IMAGES[0]] * 2, "label": [0, -1]}, r"must be from 0 to 999,999, got -1"),
    ],
)
def test_unclear_tables_are_refused(tmp_path, columns, said):
    with pytest.raises(DataError, match=said):
        open_dataset(write_parquet(tmp_path / "a.parquet", pa.table(columns)), 8)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_what_is_no_table_is_refused(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(b"hello, this is no table" * 10)
    with pytest.raises(DataError, match=rf"a.{ending} cannot be read as a {ending} file"):
        open_dataset(tmp_path / f"a.{ending}", 8)


@pytest.mark.parametrize("write, ending", [(write_arrow, "arrow"), (write_parquet, "parquet")])
def test_pictures_of_too_many_pixels_in_rows_are_refused(tmp_path, monkeypatch, write, ending):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    images = [IMAGES[0]] * 70
    unread = next(i for i in range(70) if i not in spread_indices(70, PROBED))
    images[unread] = encoded(noise(11, 12))
    path = write(tmp_path / f"d.{ending}", table(images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="12x11 pixels"):
            open_dataset(path, 8, verify="none").batch([unread])


def test_several_columns_of_labels_are_noted(tmp_path):
    content = table(fine_label=[0, 1] * 5, coarse_label=[0] * 10)
    features = {name: {"names": NAMES, "_type": "ClassLabel"} for name in ("coarse_label", "fine_label")}
    described = json.dumps({"info": {"features": {"image": {"_type": "Image"}} | features}}).encode()
    path = write_parquet(tmp_path / "a.parquet", content.replace_schema_metadata({b"huggingface": described}))
    with pytest.warns(UserWarning, match="several columns of labels: using fine_label, not coarse_label"):
        assert open_dataset(path, 8).labels.tolist() == [0, 1] * 5


def test_info_of_a_table(capsys, tmp_path):
    path = write_parquet(tmp_path / "a.parquet", table(label=[0, 1] * 5))
    text = succeed(capsys, "data", "info", path)
    assert "table of images, 10 images" in text and "  5  cat\n  5  dog\n  0  cow\n" in text
    os.utime(path)
    assert succeed(capsys, "data", "info", path) == text
