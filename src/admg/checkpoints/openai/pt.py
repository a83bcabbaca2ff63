"""Read state dicts from OpenAI's `.pt` files without running code that a pickle may contain."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from admg.checkpoints.weights import CheckpointError, load_pickle

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which some training code stores the state dict."""


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Return the state dict in a `.pt` file, in float32; memory-mapped if the file has torch's zip format.

    A state dict stored under one of WRAPPERS, or with DistributedDataParallel's prefix "module.", is unwrapped.

    Raises CheckpointError if the file cannot be read, holds Python objects, is not a `.pt` file, or is the state of an
    optimizer.
    """
    path = Path(path).expanduser()
    content = _load(path)
    if isinstance(content, dict) and {"state", "param_groups"} <= content.keys():
        ema = ema_beside(path)
        use = f"load {ema.name} next to it" if ema else "load the ema_*.pt (or model*.pt) of the same step"
        raise CheckpointError(f"{path} is the state of an optimizer, not a model: {use}")
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    try:
        return as_state(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None


def as_state(content: Any) -> dict[str, Tensor]:
    """Return a state dict in float32, without the prefix "module.". Raises CheckpointError if it is none."""
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"holds no state dict (names and tensors) but {_type_text(content)}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"holds no state dict: {name!r} is {_type_text(value)}, not a tensor")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value.float() for name, value in content.items()}


def ema_beside(path: Path | str) -> Path | None:
    """Return the `ema_RATE_STEP.pt` next to a `modelSTEP.pt` or `optSTEP.pt`: of the same step, or else the last one.

    Of several rates, the highest is returned. Return None if there is none, or if the file has another name.
    """
    path = Path(path)
    own = re.fullmatch(r"(?:model|opt)(\d+)\.pt", path.name)
    found = []
    for other in path.parent.glob("ema_*.pt") if own else ():
        if match := re.fullmatch(r"ema_(\d*\.?\d+)_(\d+)\.pt", other.name):
            step = int(match[2])
            found.append((own is not None and step == int(own[1]), step, float(match[1]), other))
    return max(found)[-1] if found else None


def _load(path: Path) -> Any:
    """Return the contents of a file. Raises CheckpointError if torch cannot load it."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {'no such file' if not path.exists() else error.strerror}"
        ) from None
    foreign = _foreign(start)
    if foreign:
        raise CheckpointError(f"{path} is {foreign}, not a .pt file")
    return load_pickle(path, mmap=start.startswith(b"PK"))


def _foreign(start: bytes) -> str:
    """Return the type of a file that starts with these bytes, or "" if it may be torch's."""
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (a failed download?)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (fetch the file itself with `git lfs pull`)"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return "a safetensors file"
    return ""


def _type_text(value: object) -> str:
    return f"an empty {type(value).__name__}" if value == {} else f"a {type(value).__name__}"
