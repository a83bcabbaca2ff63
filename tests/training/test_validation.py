"""The loss by noise level on held-out images, and the share of the training images that is held out."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TRUNK, make, randomised, refused, succeed, write_idx
from PIL import Image
from torch import nn

import admg
from admg.data import from_arrays
from admg.data.spread import spread_indices
from admg.models import SuperResConfig, SuperResUNet
from admg.training import DiffusionTask, TrainConfig, UpsamplerTask
from admg.training.held_out import ClassifierValidationConfig, ValidationConfig, divide, open_validation
from admg.training.timesteps import evenly_spaced_timesteps
from admg.training.validation import ValidationLoss, losses_by_level

SMALL = {name: value for name, value in TRUNK.items() if name not in ("image_size", "image_channels")}
PROCESS = admg.DiffusionConfig(diffusion_steps=50)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
LABELS = ["cat", "dog"] * 20
QUICK = {"batch_size": 4, "precision": "fp32", "log_every": 1, "log": ("none",)}


@pytest.fixture
def without_previews(monkeypatch):
    for task in (DiffusionTask, UpsamplerTask):
        monkeypatch.setattr(task, "preview", lambda *_: {})


class Zero(nn.Module):
    """Predicts zero whatever it is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, timesteps, y=None):
        return torch.zeros(len(x), 2, 8, 8)


def test_the_levels_are_spread_from_the_first_to_the_last_step():
    assert evenly_spaced_timesteps(1000) == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert evenly_spaced_timesteps(4) == [0, 1, 2, 3] and evenly_spaced_timesteps(1) == [0]


def test_the_loss_of_a_network_that_predicts_zero_is_that_of_v_in_closed_form():
    """E|v|² = ᾱ + (1 - ᾱ) E|x_0|², which is 1 at pure noise's end for noise and the images' power at the other."""
    process = admg.DiffusionConfig(diffusion_steps=50, predict="v").build()
    model = admg.Model(Zero(), process, (1, 8, 8), takes_labels=False)
    found = losses_by_level(model, from_arrays(PIXELS), 40)
    power = float(np.square(PIXELS / 127.5 - 1).mean())
    values = 40 * 64
    for t, loss in found.items():
        alpha_bar = float(process.schedule.alpha_bar[t])
        expected = alpha_bar + (1 - alpha_bar) * power
        deviation = (2 * alpha_bar**2 + 4 * alpha_bar * (1 - alpha_bar) * power) / values  # of a mean of squares
        assert loss == pytest.approx(expected, abs=5 * deviation**0.5), t
    assert list(found) == evenly_spaced_timesteps(50)


@pytest.mark.thorough
def test_the_loss_is_the_mean_square_at_each_level_and_does_not_depend_on_the_batch(monkeypatch):
    """Compare with the network called for one image at a time, with the noise of the image's number."""
    task = make()
    randomised(task.network, 0)
    data, process = from_arrays(PIXELS, [0, 1] * 20), task.model.diffusion
    model = task.as_model(task.network, {})
    found = losses_by_level(model, data, 7)
    x, y = data.batch(spread_indices(40, 7))
    sums = dict.fromkeys(evenly_spaced_timesteps(50), 0.0)
    for i in range(7):
        noise = admg.diffusion.SeededNoise(0, [i])
        for t in sums:
            eps = noise(x[i : i + 1], t)
            x_t = process.q_sample(x[i : i + 1], t, eps)
            with torch.no_grad():
                output = task.network(x_t, torch.tensor([t]), y=y[i : i + 1])
            sums[t] += (output[:, :1] - eps).square().mean().item() / 7
    assert found == pytest.approx(sums, rel=1e-5)
    monkeypatch.setattr("admg.training.validation.memory.batch_size", lambda *_: 2)
    assert losses_by_level(model, data, 7) == pytest.approx(sums, rel=1e-5)


@pytest.mark.thorough
def test_an_upsampler_is_given_the_small_copy():
    torch.manual_seed(0)
    network = randomised(SuperResUNet(SuperResConfig(**TRUNK, num_classes=2, small_size=4)), 0)
    model = admg.Model(network, PROCESS.build(), (1, 8, 8), admg.Labels(2), PROCESS)
    task = UpsamplerTask(model, 4)
    data = from_arrays(PIXELS, [0, 1] * 20)
    found = losses_by_level(model, data, 1, task.shrink)
    x, y = data.batch(spread_indices(40, 1))
    noise = admg.diffusion.SeededNoise(0, [0])
    for t, loss in found.items():
        eps = noise(x, t)
        with torch.no_grad():
            low_res = F.interpolate(x, 4, mode="area")
            output = network(model.diffusion.q_sample(x, t, eps), torch.tensor([t]), low_res, y=y)
        assert loss == pytest.approx((output[:, :1] - eps).square().mean().item(), rel=1e-5)


@pytest.mark.thorough
def test_overfitting_is_seen(tmp_path):
    """A network that knows four training images by heart predicts their noise, and not that of others."""

    class Memory(nn.Module):
        """Predicts the noise of the nearest training image."""

        def __init__(self, images):
            super().__init__()
            self.images = nn.Parameter(images)

        def forward(self, x, timesteps, y=None):
            a = PROCESS.build().schedule.alpha_bar.float()[timesteps.long()].view(-1, 1, 1, 1)
            nearest = torch.cdist(x.flatten(1), (a.sqrt() * self.images).flatten(1)[: len(self.images)]).argmin(1)
            eps = (x - a.sqrt() * self.images[nearest]) / (1 - a).sqrt()
            return torch.cat([eps, torch.zeros_like(eps)], 1)

    training = from_arrays(PIXELS[:4])
    model = admg.Model(Memory(training.batch(range(4))[0]), PROCESS.build(), (1, 8, 8), takes_labels=False)
    measure = ValidationLoss(1, from_arrays(PIXELS[4:]), training, 30)
    metrics = measure(DiffusionTask(model), model.network, tmp_path, 7)
    assert metrics["train_loss"] < 0.2 < 1 < metrics["val_loss"]
    assert metrics["val_loss"] == pytest.approx(
        np.mean([metrics[f"val_loss_t{t}"] for t in evenly_spaced_timesteps(50)])
    )
    assert (tmp_path / "loss_0000007.png").stat().st_size > 1000


@pytest.mark.slow
def test_training_with_validation_has_the_same_steps_as_without(without_previews, tmp_path):
    """On the images that are not held out, with both losses in the log."""
    parts = divide("data", from_arrays(PIXELS, LABELS), 0.25, seed=0, resumed={})
    assert (len(parts.training), len(parts.held_out)) == (30, 10)
    options = {"network": SMALL, "diffusion": PROCESS}
    config = TrainConfig(steps=3, preview_every=2, **QUICK)
    plain = [step["loss"] for step in admg.train_diffusion(parts.training, tmp_path / "a", config, **options)]
    run = admg.train_diffusion(
        from_arrays(PIXELS, LABELS), tmp_path / "b", config, validation=0.25, val_images=5, **options
    )
    assert [step["loss"] for step in run] == plain
    with (tmp_path / "b" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["val_loss"]) for row in rows] == [False, True, True]
    assert all(
        float(rows[1][f"{name}_loss_t{t}"]) > 0 for name in ("train", "val") for t in evenly_spaced_timesteps(50)
    )
    record = admg.load(tmp_path / "b").training
    assert record["validation"] == {"fraction": 0.25, "seed": 0, "images": 10} and record["val_loss"] > 0


@pytest.mark.slow
def test_the_held_out_images_stay_the_same_when_a_run_is_resumed(without_previews, tmp_path):
    data, options = from_arrays(PIXELS, LABELS), {"network": SMALL, "diffusion": PROCESS}

    def train(out, validation=None, seed=0, steps=1, images=data):
        config = TrainConfig(steps=steps, seed=seed, **QUICK)
        run = admg.train_diffusion(images, tmp_path / out, config, validation=validation, val_images=2, **options)
        list(run)
        return run

    first = train("a", 0.25, seed=3)
    with pytest.raises(ValueError, match="seed is 3 there, 4 here"):
        train("a", 0.25, seed=4, steps=2)
    held_out = first.measures[0].held_out.batch(range(10))[0]
    again = train("a", 0.25, seed=3, steps=2)
    assert torch.equal(again.measures[0].held_out.batch(range(10))[0], held_out)
    for validation, out in ((0.2, "a"), (None, "a"), (data, "a")):
        with pytest.raises(ValueError, match=r"the run was started with val_fraction 0.25, .* resume it in the same"):
            train(out, validation, seed=3, steps=3)
    train("b")
    with pytest.raises(ValueError, match="the run was started without val_fraction"):
        train("b", 0.25, steps=2)
    fewer = from_arrays(PIXELS[:30], LABELS[:30])
    with (
        pytest.warns(UserWarning, match="has changed since the run was started"),
        pytest.raises(ValueError, match=r"data\.images is \d+ there"),
    ):
        train("a", 0.25, seed=3, steps=3, images=fewer)


@pytest.mark.slow
def test_an_upsampler_and_a_classifier_hold_out_images_too(without_previews, tmp_path):
    options = {"network": SMALL, "diffusion": PROCESS, "validation": 0.25, "val_images": 3}
    config = TrainConfig(steps=1, **QUICK)
    upsampler = admg.train_upsampler(from_arrays(PIXELS, LABELS), tmp_path / "u", config, small_size=4, **options)
    assert upsampler.task.examples is upsampler.measures[0].held_out and len(upsampler.dataset) == 30
    list(upsampler)
    assert upsampler.model.training["val_loss"] > 0
    classifier = admg.train_classifier(from_arrays(PIXELS, LABELS), tmp_path / "c", config, **options)
    assert (len(classifier.dataset), len(classifier.task.validation)) == (30, 10)
    list(classifier)
    assert classifier.model.training["validation"] == {"fraction": 0.25, "seed": 0, "images": 10}


# -- options -----------------------------------------------------------------------------------------------------------

COMMAND = ["--image-size", 8, "--channels", 32, "--channel-mult", "1,1", "--num-res-blocks", 1, "--head-channels", 32,
           "--attention-resolutions", 4, "--batch-size", 2, "--diffusion-steps", 50, "--steps", 1,
           "--log", "none"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_test_split_of_idx_files_is_for_validation_unless_it_is_trained_on(
    without_previews, tmp_path, capsys, split
):
    for name, count in (("train", 6), ("t10k", 5)):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", PIXELS[:count, ..., 0])
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.arange(count) % 2)
    succeed(capsys, "train", "--data", tmp_path, "--split", split, *COMMAND, "--out", tmp_path / "run")
    found = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["training"].get("validation")
    assert found == ({"data": tmp_path.name, "images": 5} if split == "train" else None)


@pytest.mark.slow
def test_idx_files_without_a_test_split_are_trained_on(without_previews, tmp_path, capsys):
    write_idx(tmp_path / "train-images-idx3-ubyte", PIXELS[:6, ..., 0])
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(6) % 2)
    for command in ("train", "train-classifier"):
        succeed(capsys, command, "--data", tmp_path, *COMMAND, "--out", tmp_path / command)


def test_options_that_do_not_fit(without_previews, digits, tmp_path, capsys):
    train = ["train", "--data", digits, "--out", tmp_path / "run", *COMMAND]
    line = refused(capsys, *train, "--val-data", digits, "--val-fraction", "0.1")
    assert "--val-data cannot be combined with --val-fraction" in line
    for value in ("0", "1", "nan"):
        assert "--val-fraction must be above 0 and below 1" in refused(capsys, *train, "--val-fraction", value)
    assert "must be at least 0.00056 for 1797 images, got 1e-05" in refused(capsys, *train, "--val-fraction", "1e-5")
    assert not list((tmp_path / "run").glob("*"))
    with pytest.raises(ValueError, match="the validation images are 4x4 pixels with 1 channel, and the training"):
        open_validation(from_arrays(PIXELS[:, :4, :4]), from_arrays(PIXELS), "data")
    with pytest.raises(ValueError, match="fox is not among cat, dog"):
        open_validation(from_arrays(PIXELS, ["cat", "fox"] * 20), from_arrays(PIXELS, LABELS), "data")
    grey = open_validation(from_arrays(PIXELS), from_arrays(np.repeat(PIXELS, 3, 3)), "data")
    assert grey.batch([0])[0].shape == (1, 3, 8, 8)
    colour = np.repeat(PIXELS, 3, 3)
    few = from_arrays(colour[:4], [LABELS[0]] * 4)  # lacks classes, so that its labels are renumbered
    with pytest.warns(UserWarning, match="converting the validation images to grey"):
        made = open_validation(few, from_arrays(PIXELS, LABELS), "data")
    x, y = made.batch(range(4))
    assert torch.equal(x, from_arrays(PIXELS[:4]).batch(range(4))[0]) and made.channels == 1
    assert [made.label_names[label] for label in y] == [LABELS[0]] * 4


def save_images(folder, *arrays) -> str:
    folder.mkdir()
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}.{'tif' if array.dtype == np.float32 else 'png'}")
    return str(folder)


def test_validation_images_are_decoded_like_the_training_images(tmp_path):
    """With their border and their range of values, also where the validation images suggest others."""
    grey, clear = np.full((6, 6, 4), 100, np.uint8), np.full((6, 6, 4), 100, np.uint8)
    grey[..., 3] = 255
    clear[..., 3] = 0
    folders = [save_images(tmp_path / "mixed", grey, clear), save_images(tmp_path / "opaque", grey[..., :3])]

    def corner_and_middle(training: str, validation: str, **options) -> list[int]:
        config = admg.data.DataConfig(data=training, image_size=8, fit="pad", **options)
        x = open_validation(config.held_out(validation), config.open(), "data").batch([0])[0]
        return ((x[0, 0].diagonal()[[0, 4]] + 1) * 127.5).round().int().tolist()

    with pytest.warns(UserWarning, match="mixed has transparent images"):
        assert corner_and_middle(*folders) == [255, 100]
    assert corner_and_middle(*folders, background="black") == [0, 100]
    hidden = save_images(tmp_path / "hidden", clear)
    assert corner_and_middle(folders[1], hidden) == [0, 255]  # transparent pixels on white, and the border of training

    signed, positive = np.float32([[-1, 1], [0, 0.5]]), np.float32([[0, 0.6], [0, 0.25]])
    config = admg.data.DataConfig(data=save_images(tmp_path / "signed", signed), image_size=2)
    dark = save_images(tmp_path / "positive", positive)
    for data in (config.held_out(dark), dark):
        x = open_validation(data, config.open(), "data").batch([0])[0]
        assert x.flatten().tolist() == pytest.approx([0, 0.6, 0, 0.25], abs=1.01 / 255)
    stated = admg.data.DataConfig(data=dark, image_size=2, value_range=(0, 1))
    x = open_validation(stated, config.open(), "data").batch([0])[0]
    assert x.flatten().tolist() == pytest.approx([-1, 0.2, -1, -0.5], abs=1.01 / 255)
    message = r"positive range from -1 to 1, outside \[0, 1\] \(black and white are 0 and 1 in the training images\)"
    save_images(tmp_path / "other", positive)
    Image.fromarray(signed).save(tmp_path / "positive" / "1.tif")
    config = admg.data.DataConfig(data=str(tmp_path / "other"), image_size=2)
    with pytest.raises(ValueError, match=message):
        open_validation(config.held_out(dark), config.open(), "data")


def test_validation_on_the_training_images_is_noted(without_previews, digits, tmp_path):
    with pytest.warns(UserWarning, match="has the training images: validation metrics are too optimistic"):
        admg.data.DataConfig(data=digits, image_size=8).held_out(digits)
    folder = Path(digits)
    with pytest.warns(UserWarning, match="lies in .*: if training uses its images, validation metrics are too"):
        admg.data.DataConfig(data=str(folder.parent), image_size=8).held_out(digits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a neighbour is no part of it
        admg.data.DataConfig(data=str(folder.parent / f"{folder.name}-2"), image_size=8).held_out(digits)


def test_a_number_of_validation_images_needs_validation_images(digits, tmp_path):
    images = admg.data.DataConfig(data=digits, image_size=8)
    assert ValidationConfig().chosen(images) is None
    assert ValidationConfig(val_images=7, val_fraction=0.5).chosen(images) == 0.5
    assert ClassifierValidationConfig(val_images=1000).chosen(images) is None  # its default
    with pytest.raises(ValueError, match="val_images needs val_data or"):
        ClassifierValidationConfig(val_images=200).chosen(images)


# -- previews ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diffusion", "upsampler"])
def test_previews_show_the_same_images_from_step_to_step(monkeypatch, tmp_path, kind):
    """Weights that hardly move give hardly another picture, also in another precision and after resumption."""
    shown = []
    module = f"admg.training.{'tasks' if kind == 'diffusion' else 'upsampler'}.save_png"
    monkeypatch.setattr(module, lambda image, path: shown.append(np.asarray(image, np.int64)[30:]))  # below the title
    data, options = from_arrays(PIXELS[:8]), {"network": SMALL, "diffusion": PROCESS}
    if kind == "upsampler":
        options["small_size"] = 4
    train = getattr(admg, f"train_{kind}")
    for steps, precision in ((1, "fp32"), (2, "bf16"), (3, "fp32")):
        config = TrainConfig(steps=steps, preview_every=1, lr=1e-12, **QUICK | {"precision": precision})
        list(train(data, tmp_path, config, **options))
    assert len(shown) == 3 and shown[0].std() > 10
    assert all(np.abs(picture - shown[0]).max() <= 1 for picture in shown[1:])
