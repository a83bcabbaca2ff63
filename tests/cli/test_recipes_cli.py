"""`--recipe` of the commands that train, and `admg recipes`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import refused, run

TINY = ("--channels", 32, "--channel-mult", "1,1", "--num-res-blocks", 1, "--head-channels", 32, "--steps", 1,
        "--attention-resolutions", 4, "--image-size", 8, "--batch-size", 2, "--diffusion-steps", 50)  # fmt: skip


@pytest.fixture
def images(tmp_path):
    np.savez(tmp_path / "images.npz", np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    return tmp_path / "images.npz"


def configuration(out: str) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in out.splitlines() if " = " in line)


def test_a_recipe_fills_what_neither_the_command_line_nor_the_file_gives(capsys, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("lr = 5e-4\nbatch_size = 32\nrecipe = 'adm-128'\n")
    words = ("train", "--recipe", "adm-64", "--config", file, "--batch-size", 64, "--data", "x", "--out", "y")
    code, out, _ = run(capsys, *words, "--print-config")
    printed = configuration(out)
    assert code == 0 and printed["recipe"] == '"adm-64"'  # the command line before the file
    assert printed["batch_size"] == "64" and printed["lr"] == "0.0005"
    assert printed["dropout"] == "0.1" and printed["channels"] == "192" and printed["image_size"] == "64"
    assert printed["grad_clip"] == "inf" and printed["noise_schedule"] == '"cosine"'
    file.write_text(out)
    again = run(capsys, "train", "--config", file, "--print-config")[1]
    assert again.replace("1.0, 2.0, 3.0, 4.0", "1, 2, 3, 4").replace('"0.9999"', "0.9999") == out


@pytest.mark.thorough
def test_the_recipe_is_recorded(capsys, tmp_path, images):
    words = ("train", "--recipe", "adm-256", *TINY, "--unlabelled", "--data", images, "--out", tmp_path / "run")
    assert run(capsys, *words)[0] == 0
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["training"]["recipe"] == "adm-256" and config["training"]["train"]["lr"] == 1e-4
    assert config["network"]["resblock_updown"] and config["diffusion"]["noise_schedule"] == "linear"


def test_other_recipes_are_refused(capsys, tmp_path, images):
    out = tmp_path / "run"
    line = refused(capsys, "train", "--recipe", "adm-64-256-upsampler", "--data", images, "--out", out)
    assert "belongs to admg train-upsampler" in line and "adm-64," in line
    assert "did you mean 'adm-64-classifier'" in refused(capsys, "train-classifier", "--recipe", "adm-64-clasifier",
                                                          "--data", images, "--out", out)  # fmt: skip
    assert "did you mean 'lsun'" in refused(capsys, "recipes", "lsum")
    assert "--gpus must be at least 1" in refused(capsys, "recipes", "--gpus", 0)
    assert not out.exists()


def test_list(capsys):
    code, out, _ = run(capsys, "recipes", "--gpus", 8, "--tflops", 300)
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert code == 0 and "295.9 M" in rows["adm-64"] and "540,000" in rows["adm-64"]
    # 540,000 x 2,048 images x 3 x 219.36 GFLOPs / (8 x 300 TFLOPS) = 3.51 days
    assert rows["adm-64"].endswith("3.5 days")
    # 20 bytes + 2 bytes of 295.9 M parameters, and 256 images of 390 MB
    assert "106 GB" in rows["adm-64"]


def test_one_in_full(capsys):
    code, out, _ = run(capsys, "recipes", "adm-128", "--gpus", 4)
    assert code == 0 and "steps = 4360000" in out and "# table 11, iterations" in out
    assert "--shard on 4" in out and "admg info openai/imagenet-128" in out
    # 22 bytes of 421.5 M parameters and 1,053.8 MB; 7 with --shard on 4: 5 + 2
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["1"])
    assert row[1] == "10.3" and row[3] == "4.0"
