"""Export models to other libraries: diffusers, OpenAI's guided-diffusion, ONNX and torch.export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from .diffusers.export import to_diffusers
from .diffusers.readme import Scheduler
from .exported import Exported
from .graph_export import to_graph
from .loading import Part, load_any
from .model import Classifier, Model
from .openai.export import to_openai
from .weights import check_values

__all__ = ["Exported", "Library", "Scheduler", "export", "to_diffusers", "to_graph", "to_openai"]

Library = Literal["diffusers", "openai", "onnx", "torch-export"]


def export(
    model: Model | Classifier | str | Path,
    to: Library,
    out: Path | str,
    *,
    part: Part | None = None,
    scheduler: Scheduler = "ddpm",
    overwrite: bool = False,
) -> Exported:
    """Export a model, or the checkpoint of this name, to another library.

    to: diffusers, openai, or the network alone as a graph: onnx or torch-export; see to_graph
    out: folder (diffusers) or file (.pt for openai, .onnx, .pt2 for torch-export) to write
    part: diffusion or classifier, for a name that has both (default: diffusion)
    scheduler: ddpm, ddim or dpmpp_2m, for diffusers; see to_diffusers
    overwrite: replace a file, or the folder of an earlier export

    Raises ValueError if the other library has no counterpart, if the weights are not finite, if `out` exists and
    `overwrite` is False, or as `load_any` does.
    """
    out = Path(out).expanduser()
    if not overwrite:
        check_absent(out, to)
    loaded = model if isinstance(model, Model | Classifier) else load_any(model, part)
    check_values("the network", loaded.network.state_dict())
    if to == "openai":
        return to_openai(loaded, out)
    if to == "onnx" or to == "torch-export":
        return to_graph(loaded, out, to)
    if to != "diffusers":
        raise ValueError(f"to must be one of {', '.join(get_args(Library))}, got {to!r}")
    if isinstance(loaded, Classifier):
        raise ValueError(
            "diffusers has no noisy classifier: a classifier can only be exported to openai, onnx and torch-export"
        )
    return to_diffusers(loaded, out, scheduler)


def check_absent(out: Path, to: Library) -> None:
    """Raise ValueError if an export would replace something. Formats of one file leave folders to their functions."""

    def taken(path: Path) -> bool:
        if path.is_dir():
            return to == "diffusers" and any(path.iterdir())
        return os.path.lexists(path)

    paths = [out, out.with_name(f"{out.name}.data")] if to == "onnx" else [out]  # .data: weights of a large network
    if found := next(filter(taken, paths), None):
        raise ValueError(f"{found} exists: choose another --out, or --overwrite it")
