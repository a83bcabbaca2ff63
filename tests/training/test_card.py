"""The model card beside the weights."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from helpers import CPU, TRUNK
from PIL import Image

import admg
from admg.checkpoints.card import MARK
from admg.checkpoints.weights import CheckpointError
from admg.data import from_arrays
from admg.generation.images import save_png
from admg.training import DiffusionTask, TrainConfig
from admg.training.card import RunDetails, card_text, latest_picture

SMALL = {name: value for name, value in TRUNK.items() if name not in ("image_size", "image_channels")}
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
DATA = from_arrays(PIXELS, ["cat", "dog"] * 6)


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch):
    """Previews are a grey picture, lighter with each step."""

    def preview(self, network, folder, step):
        save_png(Image.new("L", (4, 4), 10 * step), folder / f"step_{step:07d}.png")
        return {}

    monkeypatch.setattr(DiffusionTask, "preview", preview)


def train(out, steps, data=DATA, **more):
    config = TrainConfig(steps=steps, batch_size=2, precision="fp32", preview_every=2, log_every=1, checkpoint_every=1,
                         log=("none",), seed=7)  # fmt: skip
    run = admg.train_diffusion(
        data, out, config, network=SMALL, diffusion=admg.DiffusionConfig(diffusion_steps=50), **more
    )
    list(run)
    return run


def rows(text: str) -> dict[str, str]:
    """Return the first two cells of each row of all tables."""
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].removeprefix("| ").strip("`"): row[1].removesuffix(" |").strip("`") for row in cells}


@pytest.mark.thorough
def test_a_run_leaves_a_card_with_data_command_options_results_pictures_and_environment(tmp_path):
    provenance = {"command": "admg train --data pets", "recipe": "small-32"}
    run = train(tmp_path / "pets", 2, validation=0.17, val_images=2, provenance=provenance)
    folder = tmp_path / "pets" / "model"
    text = (folder / "README.md").read_text()
    front, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert "library_name: admg\npipeline_tag: unconditional-image-generation\ntags:\n- diffusion\n" in front
    assert all(re.fullmatch(r"[a-z_]+:( [a-z-]+)?|- [a-z-]+|# .*", line) for line in front.splitlines())
    assert not any(line.startswith("license") for line in front.splitlines())
    assert body.startswith(f"\n{MARK}\n\n# pets\n")
    assert "A class-conditional diffusion model for grey images of 8 x 8 pixels with 2 labels" in body
    assert f"{run.parameters / 1e6:.2f} M parameters and was trained for 2 steps (4 images)" in body
    assert "10 images of `Dataset`. Classes: cat (5), dog (5)." in body and "2 further images (0.17 of all)" in body
    assert "\n    admg train --data pets\n" in body and "Recipe: `small-32`." in body
    found = rows(body)
    assert found["batch_size"] == "2" and found["diffusion_steps"] == "50" and found["channel_mult"] == "1,1"
    assert found["objective"] == "hybrid" and found["predict"] == run.model.config.predict
    assert float(found["val_loss"]) == pytest.approx(run.model.training["val_loss"], rel=1e-3)
    assert found["PyTorch"] == torch.__version__ and found["seed"] == "7" and found["processes"] == "1"
    for name in ("card-samples.png", "card-curves.png"):
        assert f"]({name})" in body and (folder / name).is_file()
    assert np.asarray(Image.open(folder / "card-samples.png")).max() == 20
    assert admg.load(folder).training["steps"] == 2


@pytest.mark.thorough
def test_the_card_is_replaced_at_each_save_unless_the_user_has_changed_it(tmp_path):
    card = tmp_path / "model" / "README.md"
    train(tmp_path, 1)
    assert "1 step (" in card.read_text()
    train(tmp_path, 2)
    text = card.read_text()
    assert "2 steps" in text
    own = text.replace(MARK, "My own words.").encode() + b"\xff"
    card.write_bytes(own)
    train(tmp_path, 4)
    assert card.read_bytes() == own and admg.load(tmp_path).training["steps"] == 4
    assert (tmp_path / "model" / "card-samples.png").is_file()


@pytest.mark.thorough
def test_another_file_in_the_folder_is_still_not_overwritten_and_our_card_does_not_outlive_its_weights(
    tiny_model, tmp_path
):
    tiny_model.save(tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text(f"---\n---\n\n{MARK}\n\nold\n")
    tiny_model.save(tmp_path / "m")
    assert not (tmp_path / "m" / "README.md").exists()
    (tmp_path / "m" / "README.md").write_text("mine")
    tiny_model.save(tmp_path / "m")
    assert (tmp_path / "m" / "README.md").read_text() == "mine"
    (tmp_path / "m" / "notes.txt").write_text("mine, too")
    with pytest.raises(CheckpointError, match="is not \\(only\\) an admg checkpoint"):
        tiny_model.save(tmp_path / "m")


@pytest.mark.thorough
def test_a_card_that_cannot_be_written_does_not_stop_the_training(monkeypatch, tmp_path):
    monkeypatch.setattr("admg.training.card.card_text", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="could not write the model card in .*: division by zero"):
        train(tmp_path, 2)
    assert admg.load(tmp_path).training["steps"] == 2 and not list((tmp_path / "model").glob(".*"))


@pytest.mark.thorough
def test_names_of_any_kind_stay_on_one_line_and_do_not_format_the_card(tmp_path):
    names = ["a|b `c`\n# d", "<b>_x_</b>"]
    run = train(tmp_path, 1, from_arrays(PIXELS, [0, 1] * 6, label_names=names))
    model = run.model
    model.training["command"] = "admg train --data 'x\n\n# y'"
    text = card_text(model, RunDetails(tmp_path, run.dataset, CPU, 1), set())
    assert "<b>" not in text.replace('"a|b', "") and "\n# d" not in text and "\n# y" not in text
    assert "&lt;b&gt;\\_x\\_&lt;/b&gt;" in text and 'admg.sample(model, "a|b `c`\\n# d", num=8)' in text
    assert "![Samples]" not in text


def test_cards_of_classifiers_and_upsamplers_say_how_they_are_used(tiny_classifier, tiny_upsampler, tmp_path):
    details = RunDetails(tmp_path, DATA, CPU, 2)
    facts = {"steps": 1, "images": 2, "train": {"seed": 0}, "val_accuracy": 0.5}
    for model, tag, line in (
        (tiny_classifier, "image-classification", "admg sample --model MODEL --classifier this-folder --scale 2"),
        (tiny_upsampler, "image-to-image", "admg upsample --model this-folder --base samples.npz --out large"),
    ):
        trained = type(model)(**{**vars(model), "training": facts})
        text = card_text(trained, details, set())
        assert f"pipeline_tag: {tag}\n" in text and line in text
        assert rows(text)["val_accuracy"] == "0.5" and rows(text)["processes"] == "2"


def test_the_picture_is_that_of_the_last_preview_up_to_the_step(tmp_path):
    for name in ("step_0000010.png", "step_0000030.png", "loss_0000020.png", "step_x.png"):
        save_png(Image.new("L", (2, 2)), tmp_path / name)
    assert latest_picture(tmp_path, 20).name == "step_0000010.png"
    assert latest_picture(tmp_path, 30).name == "step_0000030.png" and latest_picture(tmp_path, 5) is None
    assert latest_picture(tmp_path / "none", 5) is None
