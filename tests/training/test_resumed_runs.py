"""A run is resumed with the images, noise and labels that it was begun with, or the command says what changed."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import refused, run
from PIL import Image

import admg
from admg.checksums import read_json, write_json
from admg.training import ObjectiveConfig

SMALL = ["--image-size", 8, "--channels", 32, "--channel-mult", "1,1", "--num-res-blocks", 1, "--batch-size", 4,
         "--attention-resolutions", 4, "--diffusion-steps", 50, "--preview-every", 1000, "--log", "none"]  # fmt: skip
NETWORK = {
    "channels": 32,
    "channel_mult": (1, 1),
    "num_res_blocks": 1,
    "head_channels": 32,
    "attention_resolutions": (4,),
}


@pytest.fixture
def transparent(tmp_path):
    """Images that are transparent in their upper half, of two classes."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (folder := tmp_path / "transparent" / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 255, (8, 8, 4)).astype(np.uint8)
            pixels[:4, :, 3] = 0
            Image.fromarray(pixels, "RGBA").save(folder / f"{i}.png")
    return tmp_path / "transparent"


@pytest.fixture
def wide(tmp_path):
    """Grey images of 16 bits, with values up to 4095."""
    rng = np.random.default_rng(0)
    (tmp_path / "wide").mkdir()
    for i in range(4):
        Image.fromarray(rng.integers(0, 4096, (8, 8)).astype(np.uint16)).save(tmp_path / "wide" / f"{i}.png")
    return tmp_path / "wide"


@pytest.mark.thorough
def test_images_are_read_as_before(capsys, transparent, wide, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    train = ["train", *SMALL, "--steps"]
    assert run(capsys, *train, 1, "--data", transparent, "--background", "black", "--out", a)[0] == 0
    line = refused(capsys, *train, 2, "--data", transparent, "--out", a)
    assert "data.background is 0 there, unset here" in line
    assert run(capsys, *train, 2, "--data", transparent, "--background", "black", "--out", a)[0] == 0

    assert run(capsys, *train, 1, "--data", wide, "--value-range", "0,4095", "--out", b)[0] == 0
    line = refused(capsys, *train, 2, "--data", wide, "--value-range", "0,65535", "--out", b)
    assert "data.value_range is 0.0,4095.0 there, 0.0,65535.0 here" in line


@pytest.mark.thorough
def test_a_record_that_does_not_say_how_images_were_read_is_no_obstacle(capsys, transparent, tmp_path):
    """As versions before 30 November 2026 wrote it."""
    train = ["train", *SMALL, "--data", transparent, "--background", "black", "--out", tmp_path / "run", "--steps"]
    assert run(capsys, *train, 1)[0] == 0
    record = read_json(tmp_path / "run" / "run.json")
    for name in ("value_range", "background", "frames"):
        del record["settings"]["data"][name]
    write_json(tmp_path / "run" / "run.json", record)
    assert run(capsys, *train, 2)[0] == 0


@pytest.mark.thorough
def test_a_classifier_of_clean_images_stays_one(capsys, digits, tmp_path):
    train = ["train-classifier", *SMALL, "--data", digits, "--out", tmp_path / "run", "--steps"]
    assert run(capsys, *train, 1, "--no-noised")[0] == 0
    assert "noised is False there, True here" in refused(capsys, *train, 2)
    assert run(capsys, *train, 2, "--no-noised")[0] == 0
    assert admg.load_classifier(tmp_path / "run").training["noised"] is False


@pytest.mark.thorough
def test_the_share_of_dropped_labels_is_kept_and_a_change_is_named(capsys, digits, tmp_path):
    def trained(steps: int, **objective: float) -> admg.TrainingRun:
        config = admg.TrainConfig(steps=steps, batch_size=4, log=("none",), preview_every=1000)
        data = admg.data.open(digits, 8)
        run = admg.train_diffusion(data, tmp_path, config, network=NETWORK, objective=ObjectiveConfig(**objective))
        for _ in run:
            pass
        return run

    assert trained(1).task.label_dropout == 0.1
    assert trained(2, label_dropout=0.0).changes["label_dropout"] == (0.1, 0.0)
    again = trained(3)
    assert again.task.label_dropout == 0.0 and "label_dropout" not in again.changes
    assert "label_dropout is 0.1 there, 0.0 here" in read_json(tmp_path / "run.json")["changes"][0]["changed"]
