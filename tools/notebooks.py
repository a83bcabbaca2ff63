"""Run the notebooks of examples/notebooks and write them with their pictures: python tools/notebooks.py [NAME ...]

The sources are the scripts, with a line "# %%" before each cell. Needs `pip install ".[notebooks]"`.
"""

import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"


def executed(script: Path) -> nbformat.NotebookNode:
    """Run a script as a notebook, in an empty folder, and return it with what its cells show."""
    notebook = jupytext.read(script)
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": folder}}).execute()
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", {}  # the same each time
        if "outputs" in cell:  # without warnings
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main(names: list[str]) -> None:
    for script in sorted(FOLDER.glob("*.py")):
        if not names or script.stem in names:
            nbformat.write(executed(script), script.with_suffix(".ipynb"))
            print(f"wrote {script.with_suffix('.ipynb')}")


if __name__ == "__main__":
    main(sys.argv[1:])
