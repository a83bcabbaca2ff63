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

from ..files import atomic

FORMAT = "admg"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why, in one line."""


def write(folder: Path | str, config: dict[str, Any], network: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Write both files; a folder that is there already is replaced only once all is written.

    dtype: in which to store the weights, e.g. torch.float16 for half the size; None: as they are
    """
    state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in network.state_dict().items()}
    with atomic(folder) as temporary:
        temporary.mkdir()
        text = json.dumps({"format": FORMAT, "version": VERSION, **config}, indent=2, ensure_ascii=False)
        (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")  # else only the owner may read it


def read_config(folder: Path | str, kind: str | None = None) -> dict[str, Any]:
    """The contents of config.json. CheckpointError: none there, not ours, of a newer version or of another kind."""
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
    if kind is not None and config.get("kind") != kind:
        raise CheckpointError(f"{folder} holds a {config.get('kind')!r} checkpoint where a {kind!r} one is needed")
    return config


def load_weights(folder: Path | str, network: nn.Module) -> None:
    """Fill the network strictly. CheckpointError: truncated or foreign weights, naming the first keys that differ."""
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no model.safetensors")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from None
    check_state(path, state, network)
    network.load_state_dict(state)


def check_state(source: Path | str, state: dict[str, Tensor], network: nn.Module) -> None:
    """CheckpointError if names or shapes are not those of the network."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected == found:
        return
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = sorted(k for k in expected.keys() & found.keys() if expected[k] != found[k])
    parts = [f"{len(missing)} missing, first {missing[0]}"] if missing else []
    parts += [f"{len(extra)} unexpected, first {extra[0]}"] if extra else []
    parts += [f"{len(wrong)} of another shape, first {k}: {found[k]} for {expected[k]}" for k in wrong[:1]]
    raise CheckpointError(f"{source} does not fit its architecture: {'; '.join(parts)}")
