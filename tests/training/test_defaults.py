"""Options that are not given: chosen for the data in a new run, and kept when a run is resumed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers import run

import admg
from admg.checksums import read_json, write_json
from admg.diffusion.config import DiffusionConfig
from admg.models import UNet, UNetConfig
from admg.training.choices import Choices
from admg.training.config import ResolvedConfig
from admg.training.defaults import BATCH_SIZE, LR, SMALL_DATASET_SIZE, WARMUP, fill_defaults, network_defaults

OLD = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 2, "head_channels": 16, "attention_resolutions": (4,)}
"""An architecture that no default is."""


def images(count: int = 6) -> admg.data.Dataset:
    return admg.data.from_arrays(np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))


def trained(out, **options):
    training = admg.train_diffusion(images(), out, **options)
    list(training)
    training.close()
    return json.loads((out / "model" / "config.json").read_text())


def test_what_is_given_is_kept_and_the_rest_settled():
    given = admg.TrainConfig(steps=7, lr=2e-4)
    settled = fill_defaults(given)
    assert (settled.steps, settled.lr, settled.batch_size, settled.warmup) == (7, 2e-4, BATCH_SIZE, WARMUP)
    assert fill_defaults(settled, {"training": {"train": {"lr": 1.0}}}) is settled
    recorded = {"training": {"train": {"batch_size": 64, "lr": 3e-4, "warmup": 500}}}
    assert fill_defaults(given, recorded) == ResolvedConfig(steps=7, lr=2e-4, batch_size=64, warmup=500)


@pytest.mark.parametrize(("batch_size", "lr"), [(1, 1e-3), (16, 1e-3), (36, 1.5e-3), (64, 2e-3), (2048, 2e-3)])
def test_the_learning_rate_grows_with_the_batch_within_the_range_that_was_compared(batch_size, lr):
    assert fill_defaults(admg.TrainConfig(batch_size=batch_size)).lr == pytest.approx(lr)
    resumed = {"training": {"train": {"batch_size": batch_size}}}
    assert fill_defaults(admg.TrainConfig(), resumed).lr == pytest.approx(lr)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("given", "size", "count", "expected"),
    [
        ({}, 32, SMALL_DATASET_SIZE - 1, (64, 1, 64)),
        ({}, 32, SMALL_DATASET_SIZE, (128, 2, 64)),
        ({"channels": 32}, 32, 100, (32, 1, 32)),
        ({"channels": 32, "channel_mult": (1, 3)}, 32, 100, (32, 1, 32)),
        ({"channels": 32}, 512, 100, (32, 1, 16)),  # channel_mult begins with 0.5
        ({"channels": 96, "channel_mult": (1, 2)}, 32, 100, (96, 1, 32)),
        ({"num_heads": 4}, 32, 100, (64, 1, 0)),
        ({"head_channels": 8}, 32, 100, (64, 1, 8)),
    ],
)
def test_architecture_by_number_of_images_with_heads_that_divide_its_widths(given, size, count, expected):
    network = {**network_defaults(given, size, count), **given}
    assert (network["channels"], network["num_res_blocks"], network["head_channels"]) == expected
    config = UNetConfig(image_size=size, **network)
    assert all(config.heads(config.width(level)) for level in range(config.levels))
    if size == 32:
        UNet(config)


@pytest.mark.thorough
def test_a_new_run_records_what_was_chosen(tmp_path):
    config = trained(tmp_path, config=admg.TrainConfig(steps=1, lr=5e-4), network={"channels": 32})
    assert config["diffusion"]["predict"] == "v" and config["diffusion"]["noise_schedule"] == "cosine"
    assert config["network"]["channels"] == 32 and config["network"]["head_channels"] == 32
    chosen = {"batch_size": BATCH_SIZE, "warmup": WARMUP, "predict": "v", "noise_schedule": "cosine"}
    assert config["training"]["chosen"] == chosen | {"num_res_blocks": 1, "head_channels": 32}
    assert config["training"]["train"]["lr"] == 5e-4 and config["training"]["train"]["batch_size"] == BATCH_SIZE


@pytest.mark.thorough
def test_a_run_without_recorded_choices_is_resumed_with_its_own_settings(tmp_path):
    """As one that was written when the defaults were others: linear, eps, batch 64, lr 3e-4, warm-up 500."""
    process = DiffusionConfig(diffusion_steps=50)
    first = admg.TrainConfig(steps=1, batch_size=3, lr=3e-4, warmup=500)
    config = trained(tmp_path / "a", config=first, network=OLD, diffusion=process)
    assert "chosen" not in config["training"]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    again = admg.TrainConfig(steps=3, batch_size=3, lr=3e-4, warmup=500)
    expected = trained(tmp_path / "a", config=again, network=OLD, diffusion=process)
    resumed = trained(tmp_path / "b", config=admg.TrainConfig(steps=3))
    assert (resumed["network"], resumed["diffusion"]) == (expected["network"], expected["diffusion"])
    assert all(resumed["training"][name] == expected["training"][name] for name in ("train", "loss", "steps", "images"))
    weights = [admg.load(tmp_path / name).network.state_dict() for name in "ab"]
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])


@pytest.mark.thorough
def test_choices_of_a_resumed_run_are_kept_and_shown_in_its_record(tmp_path):
    first = trained(tmp_path, config=admg.TrainConfig(steps=1), network={"channels": 32, "channel_mult": (1, 1)})
    again = trained(tmp_path, config=admg.TrainConfig(steps=2))
    assert again["training"]["chosen"] == first["training"]["chosen"] and again["network"] == first["network"]
    assert again["training"]["train"]["batch_size"] == first["training"]["train"]["batch_size"]
    with pytest.raises(ValueError, match="begun with other settings"):
        admg.train_diffusion(images(), tmp_path, admg.TrainConfig(steps=3), network={"channels": 64})


@pytest.mark.thorough
def test_a_run_of_a_version_with_fewer_settings_has_the_defaults_of_the_new_ones(tmp_path):
    small, process = {"channels": 32, "channel_mult": (1, 1)}, DiffusionConfig(diffusion_steps=50)
    trained(tmp_path, config=admg.TrainConfig(steps=1), network=small, diffusion=process)
    record = read_json(tmp_path / "run.json")
    for part, name in (("network", "ddpm_layers"), ("diffusion", "zero_terminal_snr"), ("objective", "weighting_k")):
        del record["settings"][part][name]
    del record["settings"]["sampling"]
    write_json(tmp_path / "run.json", record)
    with pytest.raises(ValueError, match=r"network\.ddpm_layers is False there, True here"):
        other = small | {"ddpm_layers": True}
        trained(tmp_path, config=admg.TrainConfig(steps=2), network=other, diffusion=process)
    config = trained(tmp_path, config=admg.TrainConfig(steps=2), network=small, diffusion=process)
    assert config["training"]["steps"] == 2


def test_a_run_that_starts_from_a_model_chooses_neither_network_nor_process():
    choices = Choices(8, 100, initial=True)
    assert choices.network({"channels": 32}) == {"channels": 32} and choices.process(None) == {}
    assert choices.training(None).lr == LR and set(choices.made) == {"batch_size", "lr", "warmup"}


def test_classifiers_have_the_schedule_of_models_and_upsamplers_their_process(tmp_path):
    labelled = admg.data.from_arrays(np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1])
    small = {"channels": 32, "channel_mult": (1, 1)}
    classifier = admg.train_classifier(labelled, tmp_path / "c", network=small)
    assert classifier.model.config.noise_schedule == "cosine" and "predict" not in classifier.provenance["chosen"]
    upsampler = admg.train_upsampler(images(), tmp_path / "u", network=small, small_size=4)
    assert upsampler.model.config == DiffusionConfig(predict="v", noise_schedule="cosine")
    assert {"predict", "noise_schedule"} <= set(upsampler.provenance["chosen"])


@pytest.mark.thorough
def test_commands_need_no_flags_and_print_what_was_chosen(capsys, tmp_path):
    np.savez(tmp_path / "images.npz", np.zeros((4, 8, 8, 3), np.uint8))
    words = ("--data", tmp_path / "images.npz", "--image-size", 8, "--unlabelled", "--out", tmp_path / "run")
    code, out, err = run(capsys, "train", *words, "--channels", 32, "--steps", 1)
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("defaults chosen for this data: "))
    assert f"--batch-size {BATCH_SIZE}, --lr {LR}, --warmup {WARMUP}, --predict v, --noise-schedule cosine" in line
    assert line.endswith("--num-res-blocks 1, --head-channels 32")
    for command in ("train", "train-upsampler"):
        _, out, _ = run(capsys, command, "--help")
        text = " ".join(out.split())
        assert "(default: v)" in text and "(default: cosine)" in text and f"from {SMALL_DATASET_SIZE:,} images)" in text
