"""Files of samples whose labels have any name: safe file names, from which training reads the same labels."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from admg.checkpoints.labels import MOST_BYTES, file_name, file_names
from admg.data import open as open_dataset
from admg.generation.images import save_images
from admg.generation.label_names import names_of
from admg.generation.samples import Samples

AWKWARD = (
    ".hidden", "..", "T-shirt/top", "a\\b", "a_b", "a-b", "A-B", "a b", "con.x", "NUL", "x" * 250, "x" * 250 + "y",
    "ä" * 250, "中" * 250, "line\nbreak", "tab\t", "quote\"'", "100%", "50%2F", "*?<>|:", " ", "", "é", "हिन्दी", "हन्द",
    "عربي", "-", "sample", "end.", "~2", "3", "🦊",
)  # fmt: skip


def write(folder: Path, labels: list[int | None], names: list[str]) -> list[Path]:
    """Save grey images, image i of value i, and return their files in order."""
    images = np.arange(len(names), dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(4, 1).repeat(4, 2)
    save_images(images, labels, names, folder)
    return sorted(folder.glob("*.png"), key=lambda path: path.stem[-6:])


def test_any_label_is_read_back_from_a_folder_of_samples(tmp_path):
    names = [name for name in AWKWARD if name] * 2
    write(tmp_path / "images", [names.index(name) for name in names], names)
    content = json.loads((tmp_path / "images" / "dataset.json").read_bytes())
    edm = dict(content["labels"])  # as training.dataset.ImageFolderDataset of EDM looks them up, by file name
    assert sorted(edm) == sorted(path.name for path in (tmp_path / "images").glob("*.png"))
    dataset = open_dataset(tmp_path / "images", 4)
    assert [edm[path.name] for path in dataset.images] == dataset.labels.tolist()
    assert dataset.label_names == tuple(names[: len(names) // 2]) and not dataset.skipped
    values = [round((float(dataset[i][0].mean()) + 1) * 127.5) for i in range(len(dataset))]
    assert [dataset.label_names[k] for k in dataset.labels] == [names[value] for value in values]
    assert sorted(values) == list(range(len(names)))


def test_file_names_are_safe_and_different_for_different_labels(tmp_path):
    files = write(tmp_path / "images", list(range(len(AWKWARD))), list(AWKWARD))
    beginnings = [path.name[: -len("_000000.png")] for path in files]
    assert len({name.casefold() for name in beginnings}) == len(AWKWARD)
    for name in beginnings:
        assert not set(name) & set('_/\\:*?"<>|%\n\t ') and not name.startswith(".") and name, name
        assert len(name.encode()) <= MOST_BYTES + 3 and name.isprintable()
        assert name.split(".")[0].lower() != "con" or "." not in name  # Windows takes con.x.png for a device
    assert file_name("Ankle boot") == "Ankle-boot" and file_name("हिन्दी") == "हिन्दी"
    assert file_name(unicodedata.normalize("NFD", "é")) == unicodedata.normalize("NFC", "é")
    assert file_names(["a b", "a-b", "A_B", "a b"]) == {"a b": "a-b", "a-b": "a-b~2", "A_B": "A-B~3"}


def test_labels_that_have_no_names_are_the_numbers_of_edms_layout(tmp_path):
    write(tmp_path / "images", [3, 0, 3], ["3", "0", "3"])
    content = json.loads((tmp_path / "images" / "dataset.json").read_text())
    assert content == {"labels": [["3_000000.png", 3], ["0_000001.png", 0], ["3_000002.png", 3]]}
    dataset = open_dataset(tmp_path / "images", 4)
    assert dataset.labels.tolist() == [0, 3, 3] and dataset.label_names == ("0", "1", "2", "3")


def test_names_that_are_numbers_are_kept_among_others(tmp_path):
    """Sorted as text, class 10 has the number 2; in EMNIST, the first ten names equal their numbers."""
    for names in (("0", "1", "10", "2"), ("0", "1", "A")):
        labels = torch.arange(len(names))
        samples = Samples(torch.zeros(len(names), 1, 8, 8), labels, names)
        assert names_of(samples) == names_of(samples.save(tmp_path / names[-1])) == names
    assert names_of(Samples(torch.zeros(2, 1, 8, 8), torch.arange(2), ("0", "1"))) == ()


def test_samples_without_labels_are_read_without_labels(tmp_path):
    write(tmp_path / "images", [None] * 3, [""] * 3)
    dataset = open_dataset(tmp_path / "images", 4)
    assert dataset.labels is None and [path.name for path in dataset.images] == [
        "sample_000000.png",
        "sample_000001.png",
        "sample_000002.png",
    ]


@pytest.mark.parametrize("label", ["../up", "/etc", "a/../../b"])
def test_no_label_leaves_the_folder(tmp_path, label):
    (file,) = write(tmp_path / "out" / "images", [0], [label])
    assert file.parent == tmp_path / "out" / "images" and [path.name for path in tmp_path.iterdir()] == ["out"]
