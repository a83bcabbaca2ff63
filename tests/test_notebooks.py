"""The notebooks: their scripts run on small settings, and the stored notebooks have their cells, with pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib
import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
SMALL = {"guidance_tour": "2, 2", "inverse_problem": "2, 300, 0.05", "own_images": "2, 2, 8, 4"}
"""Values of the settings of each notebook, which are its one line of names in capitals."""


def cells(script: str) -> list[tuple[str, str]]:
    """Return the kind and the text of each cell of a script."""
    parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)[1:]
    found = []
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        kind = "markdown" if "[markdown]" in mark else "code"
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE) if kind == "markdown" else text
        found.append((kind, text.strip()))
    return found


def test_every_notebook_has_small_settings():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SMALL) == {path.stem for path in FOLDER.glob("*.ipynb")}


@pytest.mark.parametrize("name", SMALL)
def test_a_stored_notebook_is_that_of_its_script_and_has_pictures(name):
    """After a change, `python tools/notebooks.py NAME` runs and writes it anew."""
    stored = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    script = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in stored] == cells(script)
    outputs = [output for cell in stored for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert not any(output["output_type"] == "error" for output in outputs)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["inverse_problem", "own_images", pytest.param("guidance_tour", marks=pytest.mark.slow)]
)
def test_a_notebook_runs_on_small_settings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    script = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    small, count = re.subn(r"^([A-Z_]+(?:, [A-Z_]+)+) = .*$", rf"\1 = {SMALL[name]}", script, flags=re.MULTILINE)
    assert count == 1
    exec(compile(small, f"{name}.py", "exec"), {"__name__": "notebook"})


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_in_jupyter(name, tmp_path):
    """As tools/notebooks.py runs it, which needs the extra `notebooks`."""
    jupytext, client = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    notebook = jupytext.read(FOLDER / f"{name}.py")
    for cell in notebook.cells:
        cell.source = re.sub(r"^([A-Z_]+(?:, [A-Z_]+)+) = .*$", rf"\1 = {SMALL[name]}", cell.source, flags=re.MULTILINE)
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
