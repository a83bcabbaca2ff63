"""Labels of folders: sub-folders, file names, dataset.json, and what is said where they may be misunderstood."""

from __future__ import annotations

import json
import os
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from admg.data import DataError, from_arrays, from_dataset
from admg.data import open as open_dataset
from admg.data.classes import with_classes


def put(root: Path, *names: str) -> Path:
    """Write grey images of 2x2 pixels."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), 100 + i).save(root / name)
    return root


def described(root: Path, **content: object) -> Path:
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def opened(root: Path, **options: object) -> tuple[dict[str, str | int], list[str]]:
    """Return the name of each file's label (-1 for none), and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = open_dataset(root, 2, progress=False, **options)
    files = [path.relative_to(root).as_posix() for path in dataset.images]
    numbers = [dataset[i][1] for i in range(len(dataset))]
    labels = {name: dataset.label_names[k] if k >= 0 else -1 for name, k in zip(files, numbers)}
    return labels, [str(warning.message) for warning in caught if warning.category is UserWarning]


def refused(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_dataset(root, 2, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


GUIDED = ("00000/cat_1.png", "00000/dog_2.png", "00001/cat_3.png", "00001/dog_4.png")


@pytest.mark.parametrize("folders", [("00000", "00001"), ("train", "val")])
def test_guided_diffusions_layout_in_nested_folders(tmp_path, folders):
    names = [name.replace("00000", folders[0]).replace("00001", folders[1]) for name in GUIDED]
    labels, notes = opened(put(tmp_path, *names))
    assert list(labels.values()) == ["cat", "dog", "cat", "dog"]
    (note,) = notes
    assert f"({folders[0]}, {folders[1]})" in note and "cat, dog" in note and "choose with labels" in note
    assert opened(tmp_path, labels="prefix") == (labels, [])
    by_folder, notes = opened(tmp_path, labels="folders")
    assert list(by_folder.values()) == [folders[0]] * 2 + [folders[1]] * 2 and not notes


def test_imagenet_as_guided_diffusion_reads_it(tmp_path):
    names = [f"{part}/n0{k}/n0{k}_{i}.JPEG" for part in ("train", "val") for k in (1, 2) for i in range(2)]
    labels, _ = opened(put(tmp_path, *names))
    assert list(labels.values()) == ["n01", "n01", "n02", "n02"] * 2
    assert opened(tmp_path / "train")[1] == []  # folders and file names agree


def test_file_names_that_disagree_with_folders_are_reported(tmp_path):
    put(tmp_path / "a", "one/cat_1.png", "one/dog_1.png", "two/cat_2.png", "two/dog_2.png")
    labels, (note,) = opened(tmp_path / "a")
    assert list(labels.values()) == ["one", "one", "two", "two"] and "(one, two)" in note and "(cat, dog)" in note
    put(tmp_path / "b", "cat/1.png", "cat/2.png", "dog/3.png", "dog/cat_4.png")
    _, (note,) = opened(tmp_path / "b")
    assert "1 images have the name of another class" in note and "dog/cat_4.png" in note
    camera = put(tmp_path / "c", *(f"{name}/IMG_{i}.png" for name in ("cat", "dog") for i in range(3)))
    serial = put(tmp_path / "d", *(f"{name}/{i}{name}_x.png" for name in ("cat", "dog") for i in range(3)))
    assert opened(camera)[1] == opened(serial)[1] == []


@pytest.mark.parametrize(
    "names, words",
    [
        (("train/1.png", "train/2.png", "val/3.png", "val/4.png"), ("including train, val", "parts of a data set")),
        (("train/1.png", "test/2.png", "test/3.png", "dog/4.png"), ("including test, train", "parts of a data set")),
        (("00000/1.png", "00000/2.png", "00001/3.png", "00001/4.png"), ("00000, 00001", "parts of a data set")),
        (("cat/1.png", "dog/2.png", "fox/3.png"), ("each of the 3 classes", "one image", "sub-folders")),
        (("a_1.png", "b_1.png"), ("each of the 2 classes", "one image", "beginnings of the file names")),
        (("IMG_1.png", "IMG_2.png"), ("all 2 images", "one class, IMG")),
    ],
)
def test_what_may_be_no_class_is_reported_in_one_line(tmp_path, names, words):
    _, notes = opened(put(tmp_path, *names))
    assert len(notes) == 1 and not [word for word in (*words, "choose with labels") if word not in notes[0]], notes
    assert "\n" not in notes[0]
    labels, notes = opened(tmp_path, labels="none")
    assert set(labels.values()) == {-1} and not [note for note in notes if "choose with" in note]


def test_years_and_numbers_are_classes_like_others(tmp_path):
    names = [f"{year}/{i}.png" for year in (1998, 2003, 7, "train") for i in range(2)]  # a train may be a class
    labels, notes = opened(put(tmp_path, *names))
    assert list(dict.fromkeys(labels.values())) == ["1998", "2003", "7", "train"] and not notes


def test_unlabelled_never_looks_at_labels(tmp_path):
    names = ("IMG_0001.png", "_x.png", "cat/1.png", "holiday.png")
    put(tmp_path, *names)
    (tmp_path / "dataset.json").write_text("not JSON")
    assert opened(tmp_path, labels="none") == (
        dict.fromkeys(["IMG_0001.png", "_x.png", "cat/1.png", "holiday.png"], -1),
        [],
    )


def test_edms_dataset_json(tmp_path):
    put(tmp_path, "00000/img00000000.png", "00000/img00000001.png", "00001/img00000002.png")
    described(tmp_path, labels=[[f"0000{i // 2}/img0000000{i}.png", k] for i, k in enumerate((3, 0, 1))], other=1)
    labels, notes = opened(tmp_path)
    assert list(labels.values()) == ["3", "0", "1"] and not notes
    dataset = open_dataset(tmp_path, 2)
    assert dataset.labels.tolist() == [3, 0, 1] and dataset.label_names == ("0", "1", "2", "3") and not dataset.skipped
    named = open_dataset(tmp_path, 2, label_names=["a", "b", "c", "d"])
    assert named.labels.tolist() == [3, 0, 1] and named.label_names == ("a", "b", "c", "d")
    assert "label 3" in refused(tmp_path, label_names=["a", "b"])
    assert opened(tmp_path, labels="json")[0] == labels
    described(tmp_path, labels=None)
    assert set(opened(tmp_path)[0].values()) == {-1}


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"labels": [["a.png", 1]', ("dataset.json", "not valid JSON", '"labels"')),
        ("[1, 2]", ("dataset.json", "no labels")),
        ('{"images": []}', ("dataset.json", "no labels")),
        ('{"labels": [["a.png", 1]]}', ("no label for 1 of 2 images", "b.png")),
        ('{"labels": [["a.png", 1], ["b.png", -2]]}', ('["b.png", -2]', "a label of at least 0")),
        ('{"labels": [["a.png", 1], ["b.png", -1]]}', ("no label (-1) for 1 of 2 images (b.png)", "--unlabelled")),
        ('{"labels": [["a.png", 1], ["b.png", [0.5, 0.5]]]}', ("[0.5, 0.5]", "a label of at least 0")),
        ('{"labels": [["a.png", 1], ["b.png", true]]}', ("true", "a label of at least 0")),
        ('{"labels": [["a.png", 1], ["b.png", 0]], "label_names": {"0": "cat"}}', ("does not name all",)),
        ('{"labels": [["a.png", 1], ["b.png", 0]], "label_names": {"0": "cat", "1": "cat"}}', ("cat occurs twice",)),
    ],
)
def test_a_dataset_json_of_another_kind_is_refused(tmp_path, content, words):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "dataset.json").write_text(content)
    message = refused(tmp_path)
    assert not [word for word in words if word not in message], message


def test_names_that_are_given_for_the_numbers_of_dataset_json_are_matched(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png")
    described(tmp_path, labels=[["a.png", 0], ["b.png", 1], ["c.png", 1]])
    named, plain = open_dataset(tmp_path, 2, label_names=["dog", "cat"]), open_dataset(tmp_path, 2)
    assert not named.numbered and plain.numbered
    assert with_classes(named, ("cat", "dog")).labels.tolist() == [1, 0, 0]
    assert with_classes(plain, ("cat", "dog")).labels.tolist() == [0, 1, 1]  # numbers alone are those of the model


def test_a_chosen_layout_that_the_folder_has_not_is_refused(tmp_path):
    put(tmp_path, "IMG_0001.png", "holiday.png")
    assert "holiday.png" in refused(tmp_path, labels="prefix") and "IMG_0001" in refused(tmp_path, labels="folders")
    assert "dataset.json" in refused(tmp_path, labels="json")
    assert "'auto', 'folders', 'prefix', 'json', 'none'" in refused(tmp_path, labels="folder")
    assert "labels='none'" in refused(tmp_path)
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 2, 2), np.uint8))
    assert "not a folder of images" in refused(tmp_path / "a.npz", labels="folders")


def test_system_and_hidden_folders_are_left_out_and_named(tmp_path):
    put(tmp_path, *(f"{name}/{i}.png" for name in ("cat", "dog", ".thumbs", "@eaDir", "__MACOSX") for i in range(2)))
    put(tmp_path, "cat/@eaDir/1.png")
    labels, (note,) = opened(tmp_path)
    assert set(labels.values()) == {"cat", "dog"} and len(labels) == 4
    assert all(name in note for name in (".thumbs", "@eaDir", "__MACOSX", "cat/@eaDir"))


NFC, NFD = (unicodedata.normalize(form, "Käfer é") for form in ("NFC", "NFD"))


def test_both_spellings_of_a_name_in_unicode_are_one_class(tmp_path):
    put(tmp_path, f"{NFC}/1.png", f"{NFD}/2.png", "Zebra/3.png", "Zebra/4.png")
    dataset = open_dataset(tmp_path, 2)
    assert dataset.label_names == (NFC, "Zebra") and dataset.labels.tolist() == [0, 0, 1, 1]
    assert open_dataset(tmp_path, 2, label_names=["Zebra", NFD]).labels.tolist() == [1, 1, 0, 0]
    assert f"{NFC} occurs twice" in refused(tmp_path, label_names=[NFC, NFD, "Zebra"])
    arrays = from_arrays(np.zeros((2, 2, 2), np.uint8), [NFC, NFD])
    assert arrays.label_names == (NFC,) and arrays.labels.tolist() == [0, 0]
    put(tmp_path / "flat", f"{NFD}_1.png", f"{NFC}_2.png", "Zebra_3.png", "Zebra_4.png")
    assert open_dataset(tmp_path / "flat", 2).label_names == (NFC, "Zebra")
    entries = [[f"{NFC}_1.png", 2], [f"{NFD}_2.png", 1], ["Zebra_3.png", 0], ["Zebra_4.png", 0]]
    described(tmp_path / "flat", labels=entries)
    assert open_dataset(tmp_path / "flat", 2).labels.tolist() == [2, 1, 0, 0]


def test_the_order_of_files_does_not_depend_on_the_spelling(tmp_path):
    """A copy of a folder from a Mac has the same images in the same order, so that a run resumes with them."""
    names = ("az.png", "ä1.png", "b.png", "zé.png")
    orders = []
    for form in ("NFC", "NFD"):
        folder = put(tmp_path / form, *(unicodedata.normalize(form, name) for name in names))
        orders.append([path.name for path in open_dataset(folder, 2, labels="none").images])
    assert orders[0] == [unicodedata.normalize("NFC", name) for name in orders[1]] == sorted(names)


def test_labels_in_memory_are_numbers_or_names_but_not_both():
    images = np.zeros((3, 2, 2), np.uint8)
    numbers = from_arrays(images, [1, 2, 1], label_names=["1", "2", "3"])
    assert numbers.labels.tolist() == [1, 2, 1] and not numbers.numbered  # they have names
    assert from_arrays(images, ["1", "2", "1"]).labels.tolist() == [0, 1, 0]
    assert from_arrays(images, [1, 2, 1]).numbered
    with pytest.raises(DataError, match="some labels are integers and some are names"):
        from_arrays(images, ["cat", 1, "cat"])


def test_labels_of_any_kind_are_left_out_of_a_torch_data_set():
    items = [(np.zeros((2, 2, 3), np.uint8), np.array([0.5, 0.5]))] * 3  # as the attributes of CelebA
    dataset = from_dataset(items, labels=False)
    assert dataset.label_names == () and dataset[0][1] == -1
    with pytest.raises(DataError, match="item 0 must have a non-negative integer label, or None"):
        from_dataset(items)


def test_a_name_that_is_not_valid_unicode_is_refused(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system allows only valid Unicode")
    Image.new("L", (2, 2)).save(os.fsdecode(folder + b"/1.png"))
    assert r"'caf\udce9' is not valid Unicode" in refused(tmp_path)
    assert len(opened(tmp_path, labels="none")[0]) == 1
