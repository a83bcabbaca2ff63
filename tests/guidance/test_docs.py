"""The Python code of docs/guidance.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guidance.md"


@pytest.mark.thorough
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where it saves models
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert len(blocks) == 7 and namespace["samples"].images.shape == (1, 32, 32, 1)


def test_every_link_of_the_page_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(links) > 15
    for link in links:
        assert link.startswith("http") or (PAGE.parent / link).exists(), link
