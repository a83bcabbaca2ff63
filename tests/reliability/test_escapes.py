"""Control characters in the names of labels, files and folders reach neither the terminal nor a text file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import run
from PIL import Image
from sandbox import CONTROL

RED, TITLE = "\x1b[31mred", "b\x07\x1b]0;owned\x07"
TEXTS = (".csv", ".md", ".json", ".jsonl", ".toml", ".txt")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Images of two classes, with a file that is none."""
    folder = tmp_path / f"data{TITLE}"
    for name in (RED, TITLE):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((8, 8), 60 * number, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}{TITLE}.png")
        (folder / name / f"no-image{TITLE}.png").write_text("x")
    return folder


def clean(folder: Path) -> None:
    """Check all text files, and the names of files, below a folder whose own name does not count."""
    for path in folder.rglob("*"):
        assert not CONTROL.search(path.name), path
        if path.suffix in TEXTS:
            found = CONTROL.search(path.read_text())
            assert found is None, (path, path.read_text()[found.start() - 40 : found.end() + 40])


@pytest.mark.slow
def test_a_run_shows_no_control_characters(capsys, tmp_path, photos):
    out = tmp_path / f"run{RED}"
    network = (
        "--image-size 8 --channels 32 --channel-mult 1 --num-res-blocks 1 --attention-resolutions 8 --diffusion-steps 2"
    )
    small = [*network.split(), "--batch-size", "2", "--log", "none", "--preview-every", "1", "--steps", "1"]
    commands = [
        ["data", "info", photos, "--all"],
        ["data", "info", photos, "--verify", "full"],
        ["train", "--data", photos, *small, "--out", out],
        ["info", out],
        ["sample", "--model", out, "--label", RED, "--num", "2", "--steps", "2", "--out", tmp_path / f"samples{TITLE}"],
        ["sample", "--model", out, "--label", f"no{TITLE}", "--out", tmp_path / "none"],
        ["sample", "--model", tmp_path / f"no{TITLE}", "--out", tmp_path / "none"],
        ["data", "pack", photos, "--image-size", "8", "--workers", "0", "--out", tmp_path / f"packed{RED}.zip"],
        ["data", "info", tmp_path / f"packed{RED}.zip"],
        ["verify", out],
        ["export", out, "--to", "diffusers", "--out", tmp_path / "exported"],
    ]
    codes, errors = [], []
    for command in commands:
        code, text, err = run(capsys, *command)
        codes.append(code)
        errors.append(err[-400:])
        assert not CONTROL.search((text + err).replace("\r", "").replace("\x1b[A", "")), (command, text, err)
    assert codes == [0, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0], errors
    for folder in (out, tmp_path / f"samples{TITLE}", tmp_path / "exported"):
        clean(folder)
