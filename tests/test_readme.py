"""The README: its Python examples run in order, its commands parse, and its links and pictures exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers import run

from admg.cli.main import COMMANDS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ROOT = Path(__file__).parents[1]
LINES = [shlex.split(line)[1:] for line in re.findall(r"^    (admg .*)$", README, re.MULTILINE)]


@pytest.mark.thorough
def test_python_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope: dict = {}
    for block in blocks:
        exec(
            block.replace("steps=25", "steps=4").replace("respace(25)", "respace(4)"), scope
        )  # fewer steps, sooner done
    assert len(blocks) == 3 and scope["samples"].label_names == ("Bag",) * 4
    assert scope["step"].index == 0 and scope["step"].x.shape == (2, 1, 32, 32)


@pytest.mark.parametrize("words", LINES, ids=lambda words: words[0])
def test_commands_have_the_options_that_the_readme_gives_them(capsys, words):
    assert words[0] in COMMANDS
    code, out, _ = run(capsys, words[0], "--help")
    assert code == 0
    for word in words[1:]:
        if word.startswith("--") and " " not in word:
            assert word in out, word


def test_pictures_and_links_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link
