"""The table of OpenAI's training options in docs/training.md: complete, with options and tests that exist."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from admg import config
from admg.checkpoints.openai.table import IGNORED, Flags

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").split("## Coming from OpenAI's scripts")[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in SECTION.split("\n## ")[0].splitlines()
    if line.startswith("| `")
]
PATCHED = {  # arguments of guided-diffusion's classes that none of its scripts has a flag for
    *("num_classes", "image_channels", "conv_resample", "classifier_channel_mult", "classifier_num_heads"),
    *("classifier_num_head_channels", "classifier_use_new_attention_order", "classifier_dropout"),
    "classifier_use_checkpoint",
}
OF_SAMPLING = {"num_samples", "clip_denoised", "use_ddim", "base_samples", "base_name", "model_path", "seed", "eta",
               "classifier_path", "classifier_scale"}  # fmt: skip
ELSEWHERE = {"log_dir"}  # of forks
TRAINING = ("train", "train-classifier", "train-upsampler")


def test_every_flag_is_in_one_row():
    listed = [flag for row in ROWS for flag in re.findall(r"`(\w+)`", row[0])]
    known = {field.name for field in dataclasses.fields(Flags)} | IGNORED
    assert sorted(listed) == sorted(known - PATCHED - OF_SAMPLING - ELSEWHERE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_options_and_tests_of_a_row_exist(row):
    assert len(row) == 3
    _, here, test = row
    options = {
        f"--{option.name.replace('_', '-')}"
        for command in (*TRAINING, "sample")
        for option in config.options(importlib.import_module(f"admg.cli.{command.replace('-', '_')}").Options)
    }
    named = re.findall(r"--[a-z-]+", here)
    assert named or "no option" in here
    for option in named:
        assert option in options or option.replace("--no-", "--") in options, option
    file, name = re.fullmatch(r"`(tests/[\w/]+\.py)::(\w+)`", test).groups()
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test
