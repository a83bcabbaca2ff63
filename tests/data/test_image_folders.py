"""The layout of Hugging Face's `imagefolder`: class folders within parts of the data, and labels in metadata files."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from PIL import Image

from admg.data import DataError
from admg.data import open as open_dataset
from admg.evaluation.sources import open_source


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 50).save(root / name)
    return root


def test_class_folders_within_parts(tmp_path):
    put(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/4.png", "val/dog/5.png")
    (tmp_path / "README.md").touch()
    with pytest.warns(UserWarning, match=r"using the images in train, the split train"):
        dataset = open_dataset(tmp_path, 8, labels="folders")
    assert len(dataset) == 2 and dataset.label_names == ("cat", "dog")
    with pytest.warns(UserWarning, match="using the images in val, the split test"):
        assert open_dataset(tmp_path, 8, split="test", labels="folders").labels.tolist() == [0, 1, 1]
    put(tmp_path, "test/cat/6.png")
    with pytest.warns(UserWarning, match="using the images in test, the split test"):
        assert len(open_dataset(tmp_path, 8, split="test", labels="folders")) == 1


@pytest.mark.parametrize(
    "names, classes",
    [
        (("train/1.png", "val/2.png"), ("train", "val")),  # no classes within
        (("train/cat/1.png", "other/cat/2.png"), ("other", "train")),
        (("val/cat/1.png", "val/dog/2.png"), ("val",)),  # no training part
        (("train/cat/cat_1.png", "train/cat/cat_2.png", "val/dog/dog_3.png", "val/dog/dog_4.png"), ("cat", "dog")),
    ],
)
def test_other_folders_are_classes_as_before(tmp_path, names, classes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_dataset(put(tmp_path, *names), 8).label_names == classes


@pytest.mark.parametrize("pack", [None, "zip", "tar"])
@pytest.mark.parametrize(
    ("names", "split", "expected", "note"),
    [
        (("train/1.png", "train/2.png", "Test/3.png"), "train", 2, "using the images in train, the split train"),
        (("train/1.png", "train/2.png", "Test/3.png"), "test", 1, "using the images in Test, the split test"),
        (("train/a_1.png", "train/b_2.png", "train/a_3.png", "train/b_4.png", "val/a_5.png"), "test", 1, "in val"),
        (("train/a/1.png", "val/a/2.png", "val/b/3.png"), "test", 2, "in val, the split test"),
        (("train/1.png", "val/2.png", "more/3.png"), "test", 3, "using all images, .*since there are others in more"),
        (("train/1.png", "val/2.png", "3.png"), "train", 3, "since there are others in 3.png"),
        (("train/1.png", "training/2.png"), "test", 2, "no part for the split test, but train, training: using all"),
    ],
)
def test_without_labels_parts_are_taken_whatever_is_in_them(tmp_path, pack, names, split, expected, note):
    folder = put(tmp_path / "data", *names)
    (folder / "devkit").mkdir()
    (folder / "devkit" / "readme.txt").touch()
    path = folder if pack is None else shutil.make_archive(str(tmp_path / "packed"), pack, folder)
    with pytest.warns(UserWarning, match=note):
        assert len(open_dataset(path, 8, split=split, labels="none")) == expected
    if expected > 1:
        with pytest.warns(UserWarning, match=note):
            assert len(open_source(path, split=split)) == expected


def test_a_folder_without_images_beside_the_parts_changes_nothing(tmp_path):
    put(tmp_path, "train/cat/1.png", "train/dog/2.png", "test/dog/3.png")
    (tmp_path / "devkit").mkdir()
    with pytest.warns(UserWarning, match="using the images in test, the split test"):
        dataset = open_dataset(tmp_path, 8, split="test")
    assert len(dataset) == 1 and dataset.label_names == ("dog",)


def csv(root: Path, *rows: str) -> None:
    (root / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8-sig")


def test_labels_in_metadata(tmp_path):
    put(tmp_path, "1.png", "2.png", "sub/e\u0301.png")
    csv(tmp_path, "file_name,text,label", '1.png,"a, b",dog', "2.png,,cat", "./sub/\u00e9.png,,dog")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = open_dataset(tmp_path, 8)
    assert dataset.label_names == ("cat", "dog") and dataset.labels.tolist() == [1, 0, 1] and not dataset.skipped
    csv(tmp_path, "file_name,class", "1.png,3", "2.png,0", "sub/\u00e9.png,1")
    assert open_dataset(tmp_path, 8).labels.tolist() == [3, 0, 1]
    (tmp_path / "metadata.csv").unlink()
    rows = [{"file_name": name, "label": label} for name, label in (("1.png", 2), ("2.png", 2), ("sub/\u00e9.png", 0))]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = open_dataset(tmp_path, 8)
    assert dataset.labels.tolist() == [2, 2, 0] and dataset.numbered
    assert open_dataset(tmp_path, 8, labels="none").labels is None


def test_columns_in_any_case_and_other_forms_of_numbers(tmp_path):
    put(tmp_path, "a_1.png", "a_2.png", "b_3.png")
    csv(tmp_path, "File_Name, Label", "a_1.png, x", "a_2.png, y", "b_3.png, x")
    dataset = open_dataset(tmp_path, 8)
    assert dataset.label_names == ("x", "y") and dataset.labels.tolist() == [0, 1, 0]
    csv(tmp_path, "file_name,Label,class", "a_1.png,0,p", "a_2.png,0,q", "b_3.png,0,p")
    assert open_dataset(tmp_path, 8).label_names == ("p", "q")  # an exact name goes first
    csv(tmp_path, "file_name,Label,LABEL", "a_1.png,0,1")
    with pytest.warns(UserWarning, match=r"no column of labels \(it has Label, LABEL\)"):
        open_dataset(tmp_path, 8)
    (tmp_path / "metadata.csv").unlink()
    rows = [{"file_name": "a_1.png", "label": True}, {"file_name": "a_2.png", "label": 2.0}, {"file_name": "b_3.png"}]
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join(json.dumps(row) for row in [*rows[::-1], {**rows[2], "label": 0}][1:])
    )
    assert open_dataset(tmp_path, 8).labels.tolist() == [1, 2, 0]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows[::-1])))  # the first row has no label
    with pytest.raises(DataError, match=r"metadata.jsonl has no label for 1 of 3 images \(b_3.png\)"):
        open_dataset(tmp_path, 8)


def test_metadata_without_labels_leave_the_folders(tmp_path):
    put(tmp_path, "cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png")
    csv(tmp_path, "file_name,text", "cat/1.png,a cat")
    assert open_dataset(tmp_path, 8).label_names == ("cat", "dog")
    csv(tmp_path, "name,label", "cat/1.png,cat")
    with pytest.raises(DataError, match=r"metadata.csv has a row without file_name"):
        open_dataset(tmp_path, 8)
    csv(tmp_path, "file_name,label", "cat/1.png,cat", "dog/3.png,")
    with pytest.raises(DataError, match=r"metadata.csv has no label for 3 of 4 images \(cat/2.png, ... \(3 in all\)\)"):
        open_dataset(tmp_path, 8)
    assert open_dataset(tmp_path, 8, labels="folders").label_names == ("cat", "dog")
    (tmp_path / "metadata.csv").write_bytes(b"file_name,label\n\xff")
    with pytest.raises(DataError, match=r"metadata.csv cannot be read"):
        open_dataset(tmp_path, 8)
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text("[1, 2]\n")
    with pytest.raises(DataError, match=r"metadata.jsonl has a line that is not an object"):
        open_dataset(tmp_path, 8)
