"""What the commands that train say of the data before they train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import TRUNK, refused, run
from PIL import Image

import admg
from admg.cli.training import print_summary
from admg.data import from_arrays

SMALL = {name: value for name, value in TRUNK.items() if name not in ("image_size", "image_channels")}


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 50).save(root / name)
    return root


def command(data: Path, out: Path, *options: object, name: str = "train") -> list[object]:
    return [name, "--data", data, "--out", out, "--image-size", 8, "--channels", 32, "--channel-mult", "1,1",
            "--head-channels", 32, "--attention-resolutions", 4, "--num-res-blocks", 1, "--steps", 1, "--batch-size", 2,
            "--diffusion-steps", 50, *options]  # fmt: skip


def test_classes_are_printed_with_their_counts(capsys, tmp_path):
    images = np.zeros((3, 8, 8), np.uint8)
    dataset = from_arrays(images, ["cat", "cat", "dog"], label_names=["cat", "cow", "dog"])
    print_summary(admg.train_diffusion(dataset, tmp_path, network=SMALL))
    out, err = capsys.readouterr()
    assert "3 images of 8x8 pixels, 3 labels" in out and "\nclasses: cat (2), cow (0), dog (1)\n" in out
    assert "note: no images of the class cow\n" in err
    print_summary(admg.train_diffusion(from_arrays(images), tmp_path / "b", network=SMALL))
    assert "3 images of 8x8 pixels, no labels" in (out := capsys.readouterr().out) and "\nclasses:" not in out


@pytest.mark.thorough
def test_training_says_what_it_understood_and_asks_nothing(capsys, tmp_path):
    data = put(
        tmp_path / "data", "train/1.png", "train/2.png", "val/3.png", "val/4.png", "@eaDir/5.png", "val/.a/6.png"
    )
    code, out, err = run(capsys, *command(data, tmp_path / "out"))
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert code == 0 and "classes: train (2), val (2)" in out and len(notes) == 2
    assert "@eaDir, val/.a" in notes[0] and "train, val" in notes[1] and "--labels" in notes[1]
    code, out, err = run(capsys, *command(data, tmp_path / "none", "--labels", "none"))
    assert (
        code == 0 and "2 images of 8x8 pixels, no labels" in out and "using the images in train, the split train" in err
    )


@pytest.mark.thorough
def test_unlabelled_training_takes_any_file_names(capsys, tmp_path):
    data = put(tmp_path / "data", "IMG_0001.png", "holiday.png")
    line = refused(capsys, *command(data, tmp_path / "out"))
    assert "1 of 2 images" in line and "holiday.png" in line and "--labels none" in line
    assert not (tmp_path / "out").exists()
    code, out, _ = run(capsys, *command(data, tmp_path / "out", "--unlabelled"))
    assert code == 0 and "2 images of 8x8 pixels, no labels" in out
    assert "--unlabelled ignores labels" in refused(
        capsys, *command(data, tmp_path / "b", "--unlabelled", "--labels", "prefix")
    )


@pytest.mark.thorough
def test_validation_that_lacks_a_class_is_named_and_one_of_another_class_is_refused(capsys, tmp_path):
    train = put(tmp_path / "train", *(f"{name}/{i}.png" for name in ("cat", "cow", "dog") for i in range(2)))
    val = put(tmp_path / "val", *(f"{name}/{i}.png" for name in ("cow", "dog") for i in range(2)))
    options = ["--val-data", val, "--verify", "full", "--labels", "folders"]
    code, out, err = run(capsys, *command(train, tmp_path / "out", *options, name="train-classifier"))
    assert code == 0 and "note: no validation images of the class cat\n" in err, err
    assert "classes: cat (2), cow (2), dog (2)" in out
    (val / "dog").rename(val / "fox")
    line = refused(capsys, *command(train, tmp_path / "b", *options, name="train-classifier"))
    assert "fox is not among cat, cow, dog" in line and not (tmp_path / "b").exists()


@pytest.mark.thorough
def test_resuming_says_what_has_changed_and_the_end_what_was_measured(capsys, tmp_path):
    data = put(tmp_path / "data", "a/1.png", "a/2.png", "b/3.png", "b/4.png")
    options = [data, tmp_path / "out", "--val-data", data]
    assert run(capsys, *command(*options, name="train-classifier"))[0] == 0
    changed = [*options, "--lr", "0.0005", "--steps", 2, "--preview-every", 2]
    code, out, _ = run(capsys, *command(*changed, name="train-classifier"))
    assert code == 0 and "\nresumed at step 1; changed: steps 2 (was 1), lr 0.0005 (was 0.001)" in out
    assert "--lr 0.001" not in out  # which was the default
    assert "\nlast measured: val_accuracy 0.5, train_accuracy 0.5\n" in out  # all of one of two labels
    other = command(*options, "--image-size", 16, "--attention-resolutions", 8, name="train-classifier")
    code, _, err = run(capsys, *other)
    assert code == 2 and err.endswith("choose another --out, or --overwrite it\n")
