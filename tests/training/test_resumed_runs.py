"""A run is resumed with the images, noise and labels that it was begun with, or the command says what changed."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
import torch
from helpers import refused, run
from PIL import Image

import admg
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.checksums import read_json, write_json
from admg.data import from_arrays
from admg.models import UNet, UNetConfig
from admg.training import DiffusionTask, ObjectiveConfig
from admg.training.sharding import network_state
from admg.training.timesteps import Timesteps

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


def task(objective: str = "hybrid", **changes: object) -> DiffusionTask:
    process = admg.DiffusionConfig(diffusion_steps=50)
    torch.manual_seed(0)
    network = UNet(UNetConfig(image_size=8, image_channels=1, num_classes=2, **NETWORK))
    return DiffusionTask(
        Model(network, process.build(), (1, 8, 8), Labels(2, ("a", "b")), process), objective, **changes
    )


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
CLASSES = ["a", "b"] * 4


def trained(out, steps: int, given: DiffusionTask | None = None, **changes: object) -> admg.TrainingRun:
    options = {"steps": steps, "batch_size": 4, "log": ("none",), "preview_every": 1000, "precision": "fp32"}
    config = admg.TrainConfig(**options | {"lr": 1e-2, "warmup": 1, "checkpoint_every": 1} | changes)
    run = admg.TrainingRun(given or task(), from_arrays(IMAGES, CLASSES), out, config)
    for _ in run:
        pass
    run.close()
    return run


@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_weight_decay_that_is_changed_applies(tmp_path, shard):
    """AdamW subtracts lr * decay * w from the weights w, besides the step of the gradient."""
    before = trained(tmp_path / "a", 1, weight_decay=0.0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    weights = [p.detach().clone() for p in before.learner.network.parameters()]
    plain = trained(tmp_path / "a", 2, weight_decay=0.0, shard=shard)
    decayed = trained(tmp_path / "b", 2, weight_decay=10.0, shard=shard)
    assert decayed.changes["weight_decay"] == (0.0, 10.0)
    assert {group["weight_decay"] for group in decayed.learner.optimizer.param_groups} == {10.0}
    pairs = zip(weights, *(network_state(run.learner.network).values() for run in (plain, decayed)), strict=True)
    for w, without, with_decay in pairs:
        error = (without - with_decay - 1e-2 * 10.0 * w).abs()
        assert error.max() <= 4 * torch.finfo(torch.float32).eps * (w.abs().max() + 0.01)  # four roundings


def test_a_task_with_another_objective_does_not_continue_a_run(tmp_path):
    trained(tmp_path, 1, task("hybrid"))
    with pytest.raises(ValueError, match=r"begun with other settings: loss\.objective is hybrid there, vlb here"):
        trained(tmp_path, 2, task("vlb"))
    with pytest.raises(ValueError, match=r"loss\.timesteps\.kind is uniform there, logit-normal here"):
        trained(tmp_path, 2, task(timesteps=Timesteps(kind="logit-normal")))
    record = read_json(tmp_path / "run.json")
    del record["settings"]["loss"]  # as an earlier version wrote it
    write_json(tmp_path / "run.json", record)
    assert trained(tmp_path, 2, task("vlb")).step == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (from_arrays(np.zeros((4, 16, 16), np.uint8), ["a", "b"] * 2),
         "images of the data set must be 1x8x8, as those of the network, got 1x16x16"),
        (from_arrays(np.zeros((4, 8, 8, 3), np.uint8), ["a", "b"] * 2), "must be 1x8x8, .* got 3x8x8"),
        (from_arrays(np.zeros((4, 8, 8), np.uint8), [0, 1] * 2, label_names=["b", "a"]),
         "labels of the data set must be those of the network, in their order, a, b; got b, a"),
        (from_arrays(np.zeros((4, 8, 8), np.uint8), [0, 2] * 2), "has 3 labels, more than the 2 of the network"),
    ],
)  # fmt: skip
def test_a_data_set_of_other_images_or_labels_than_the_task_is_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        admg.TrainingRun(task(), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_with_numbers_or_without_labels_fit_a_task_with_names(tmp_path):
    for data in (from_arrays(IMAGES, [0, 1] * 4), from_arrays(IMAGES)):
        admg.TrainingRun(task(), data, tmp_path / "run").close()


def test_metrics_are_logged_at_the_step_at_which_they_were_measured(tmp_path):
    """Also between the rows of the log."""
    measure = type("Measure", (), {"every": 2, "__call__": lambda *arguments: {"of_step": float(arguments[-1])}})()
    config = admg.TrainConfig(steps=7, batch_size=4, log_every=3, log=("none",), preview_every=1000, precision="fp32")
    losses = [row["loss"] for row in admg.TrainingRun(
        task(), from_arrays(IMAGES, CLASSES), tmp_path, config, measures=[measure]
    )]  # fmt: skip
    with (tmp_path / "log.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert {step: row["of_step"] for step, row in rows.items()} == {2: "2", 3: "", 4: "4", 6: "6", 7: "7"}
    means = [losses[:2], losses[2:3], losses[3:4], losses[4:6], losses[6:]]  # of the steps since the last row
    assert [float(row["loss"]) for row in rows.values()] == pytest.approx([np.mean(m) for m in means], rel=1e-5)


def test_a_task_with_attributes_of_its_own_keeps_them(tmp_path):
    class Scaled(DiffusionTask):
        scale = 1.0

        def loss(self, *arguments, **conditioning):
            return {name: self.scale * value for name, value in super().loss(*arguments, **conditioning).items()}

    def first_loss(scale: float) -> float:
        given = Scaled(task().model)
        given.scale = scale
        config = admg.TrainConfig(steps=1, batch_size=4, log=("none",), preview_every=1000, precision="fp32")
        return next(admg.TrainingRun(given, from_arrays(IMAGES, CLASSES), tmp_path / str(scale), config))["loss"]

    assert first_loss(8.0) == pytest.approx(8 * first_loss(1.0), rel=1e-6)
