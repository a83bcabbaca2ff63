"""Models by name: those that come with the package, and folders of one's own."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from .model import Classifier, Model

SHIPPED = Path(str(files("admg"))) / "models"


def names() -> list[str]:
    """The models that come with the package."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir()) if SHIPPED.is_dir() else []


def load(name: str | Path) -> Model:
    """A diffusion model, in float32 and evaluation mode.

    name: of a shipped model, a folder that Model.save wrote, or the folder of a training run
    ValueError: no such model (near names are suggested), or a checkpoint that cannot be used.
    """
    return Model.load(find(name, "diffusion"))


def load_classifier(name: str | Path) -> Classifier:
    """A noisy classifier, found as load() finds a model."""
    return Classifier.load(find(name, "classifier"))


def find(name: str | Path, part: str) -> Path:
    """The checkpoint folder of a name; part: "diffusion" or "classifier", of the shipped ones."""
    if str(name) in names():
        return SHIPPED / str(name) / part
    folder = Path(name).expanduser()
    if (folder / "model" / "config.json").is_file():  # the folder of a training run
        return folder / "model"
    if folder.exists():
        return folder
    near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"unknown model {str(name)!r}: {hint}shipped are {', '.join(names())}; or give a checkpoint folder"
    )
