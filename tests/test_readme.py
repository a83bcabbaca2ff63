"""The README's Python runs as it stands, in order."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    scope: dict = {}
    for block in blocks:
        exec(block.replace("steps=25", "steps=4").replace("respace(25)", "respace(4)"), scope)  # sooner done
    assert len(blocks) == 3 and scope["samples"].label_names == ("Bag",)
    assert scope["step"].index == 0 and scope["step"].x.shape == (2, 1, 32, 32)


def test_pictures_and_links_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    for link in links:
        if not link.startswith("http"):
            assert (README.parent / link).exists(), link
