"""The native checkpoint: a folder with `model.safetensors` (weights) and `config.json` (all else, for people too)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from admg.files import atomic

from .weights import CheckpointError, check_state

FORMAT = "admg"
FILES = frozenset({"config.json", "model.safetensors"})
VERSION = 1


def check_target(folder: Path | str) -> None:
    """CheckpointError: something else than one of our checkpoints, or an empty folder, stands where one is to be."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - FILES:
        raise CheckpointError(
            f"{folder} exists and is not (only) an admg checkpoint, so it is not replaced: name another"
        )
    read_config(folder)


def write(folder: Path | str, config: dict[str, Any], network: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Write both files; a checkpoint that is there already is replaced only once all is written.

    dtype: in which to store the weights, e.g. torch.float16 for half the size; None: as they are
    CheckpointError: something else is there.
    """
    check_target(folder)
    state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in network.state_dict().items()}
    with atomic(folder) as temporary:
        temporary.mkdir()
        text = json.dumps({"format": FORMAT, "version": VERSION, **config}, indent=2, ensure_ascii=False)
        (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")  # else only the owner may read it


def read_config(folder: Path | str, *kinds: str) -> dict[str, Any]:
    """The contents of config.json. CheckpointError: none there, not ours, of a newer version or none of the kinds."""
    folder = Path(folder)
    path = folder / "config.json"
    if not folder.is_dir():
        what = (
            "is a file; a checkpoint is a folder with" if folder.exists() else "does not exist; expected a folder with"
        )
        raise CheckpointError(f"{folder} {what} config.json and model.safetensors")
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json, so it is not an admg checkpoint")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f'{path} is not of an admg checkpoint ("format": "{FORMAT}" is missing)')
    version = config.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(
            f"{path} has version {version!r}; this admg reads up to version {VERSION}: update admg to load it"
        )
    if kinds and config.get("kind") not in kinds:
        needed = " or ".join(map(repr, kinds))
        raise CheckpointError(f"{folder} holds a {config.get('kind')!r} checkpoint where a {needed} one is needed")
    return config


def read_state(folder: Path | str) -> dict[str, Tensor]:
    """The weights, memory-mapped. CheckpointError: none there, truncated or foreign."""
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no model.safetensors")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from None


def load_weights(folder: Path | str, network: nn.Module) -> None:
    """Fill the network strictly. CheckpointError: truncated or foreign weights, naming the first keys that differ."""
    state = read_state(folder)
    check_state(Path(folder) / "model.safetensors", state, network)
    network.load_state_dict(state)
