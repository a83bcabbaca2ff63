"""Read the weights of a network from a `.pt` or safetensors file, without running code that a pickle may contain."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from admg.checkpoints import pickles
from admg.checkpoints.weights import CheckpointError, Shapes, check_stored, is_plain

from . import wrappers
from .wrappers import Weights

CONTAINERS = ("state_dict", "model_state_dict", "model")
"""Keys to search for the state dict of a network that is not ours."""
RESUMED = {"step", "optimizer", "network", "average"}
"""Keys of the state.pt of a checkpoint in a run directory of admg."""


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Return the state dict in a file, in float32; memory-mapped if it has safetensors' or torch's zip format.

    Raises CheckpointError as `read` does.
    """
    return read(path).state


def read(path: Path | str, fits: Callable[[Shapes], bool] = lambda shapes: True) -> Weights:
    """Return the weights of the network in a file, in float32; memory-mapped if possible.

    fits: which weights to take where the file holds those of several networks; see wrappers.find

    Other content of the file is ignored. Prefixes and nested dictionaries are allowed; averages are preferred.

    Raises CheckpointError if the file cannot be read, is not of torch or safetensors, has no weights that can be read
    without running code, or is the state of an optimizer or of a training run of admg.
    """
    path = Path(path).expanduser()
    content = _load(path)
    _refuse_training_state(path, content)
    try:
        weights = as_weights(content, fits)
        for name, value in weights.state.items():
            check_stored(name, value, path.stat().st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from None
    except RuntimeError as error:  # raised for nested and other unusual tensors
        raise CheckpointError(f"{path} holds tensors that cannot be weights: {str(error).splitlines()[0]}") from None
    return weights


def as_weights(content: Any, fits: Callable[[Shapes], bool] = lambda shapes: True, copy: bool = False) -> Weights:
    """Return the weights in what a file held, in float32. Raises CheckpointError if there are none.

    copy: whether float32 tensors are copied, too, so that they share no memory with the content
    """
    weights = wrappers.find(content, fits) or Weights(_other_state(content))
    for name, value in weights.state.items():
        if not is_plain(value):
            raise CheckpointError(f"holds {name} as {_dtype_text(value)}: weights must be plain floating-point tensors")
    return replace(weights, state={name: value.to(torch.float32, copy=copy) for name, value in weights.state.items()})


def ema_beside(path: Path | str) -> Path | None:
    """Return the `ema_RATE_STEP.pt` next to a `modelSTEP.pt` or `optSTEP.pt`: of the same step, or else the last one.

    Of several rates, the highest is returned. Return None if there is none, or if the file has another name.
    """
    path = Path(path)
    own = re.fullmatch(r"(?:model|opt)(\d+)\.pt", path.name)
    rates = []
    for other in path.parent.glob("ema_*.pt") if own else ():
        if match := re.fullmatch(r"ema_(\d*\.?\d+)_(\d+)\.pt", other.name):
            step = int(match[2])
            rates.append((own is not None and step == int(own[1]), step, float(match[1]), other))
    return max(rates)[-1] if rates else None


def _refuse_training_state(path: Path, content: Any) -> None:
    """Raise CheckpointError if the content is that of an optimizer, or the state of a training run of admg."""
    keys = set(content) if isinstance(content, dict) else set()
    if keys >= RESUMED:
        model = path.parent.parent.parent / "model"  # from run/checkpoints/0001000/state.pt
        use = f"the model is {model}" if model.is_dir() else "the model is the folder model/ of the run directory"
        raise CheckpointError(f"{path} is the state of a training run, not a model: {use}")
    if keys >= {"state", "param_groups"}:
        ema = ema_beside(path)
        use = f"load {ema.name} next to it" if ema else "load the ema_*.pt (or model*.pt) of the same step"
        raise CheckpointError(f"{path} is the state of an optimizer, not a model: {use}")


def _other_state(content: Any) -> dict[str, Tensor]:
    """Return a state dict of another network, without the prefix "module."; its shapes identify it.

    Raises CheckpointError if there is none.
    """
    if objects := wrappers.python_objects(content):
        raise CheckpointError(pickles.refused_objects(", ".join(objects[:3])))
    for container in CONTAINERS:
        if isinstance(content, dict) and container in content and isinstance(content[container], dict):
            content = content[container]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"does not hold a state dict (names and tensors): it holds {_type_text(content)}")
    for name, value in dict.items(content):
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"does not hold a state dict: {name!r} is {_type_text(value)}, not a tensor")
    if any(".resnets." in name for name in content):
        raise CheckpointError("holds a network of diffusers, whose parameters have other names: not supported")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): value for name, value in wrappers.tensors_in(content).items()}


# -- files ------------------------------------------------------------------------------------------------------------


def _load(path: Path) -> Any:
    """Return the contents of a file. Raises CheckpointError if it cannot be read."""
    if path.exists() and not path.is_file():  # a device may have no end
        raise CheckpointError(f"{path} is {'a folder' if path.is_dir() else 'a special file'}, not a file of weights")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {'no such file' if not path.exists() else error.strerror}"
        ) from None
    if foreign := _foreign(start):
        raise CheckpointError(f"{path} is {foreign}, not a .pt or safetensors file")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is a safetensors file that is truncated or damaged: {error}") from None
    zipped = start.startswith(b"PK")
    if zipped:
        pickles.check_members(path)
    return pickles.load_inert(path, mmap=zipped)


def _foreign(start: bytes) -> str:
    """Return the type of a file that starts with these bytes, or "" if it may hold weights."""
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (a failed download?)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (fetch the file itself with `git lfs pull`)"
    return ""


def _type_text(value: object) -> str:
    return f"an empty {type(value).__name__}" if value == {} else f"a {type(value).__name__}"


def _dtype_text(value: Tensor) -> str:
    if value.is_nested:
        return "a nested tensor"
    kind = "quantized " if value.is_quantized else "" if value.layout is torch.strided else "sparse "
    return f"a {kind}tensor of {str(value.dtype).removeprefix('torch.')}"
