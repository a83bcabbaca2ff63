"""Whether two run directories hold the same: weights, state, logs, events and pictures, apart from times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from admg.files import LEFTOVER
from admg.training.log import read_jsonl, read_rows

TIMES = {"images_per_second", "data_wait", "memory_gib", "seconds_per_image"}
"""Measurements that differ from run to run."""


def content_of(folder: Path) -> dict[str, Any]:
    """Return the content of a run directory by the names of its files, without what depends on the time."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name in (".lock", "checksums.json", "curves.png", "card-curves.png", "README.md"):
            continue
        if name.startswith("tensorboard/"):
            continue
        found[name] = _content(path)
    if (folder / "tensorboard").is_dir():
        found["tensorboard"] = events(folder / "tensorboard")
    return found


def leftovers(folder: Path) -> list[str]:
    """Return the names of temporary files and folders."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if LEFTOVER.fullmatch(path.name)]


def difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Return the first difference of two contents, "" for none."""
    if extra := sorted(a.keys() ^ b.keys()):
        return f"only one has {', '.join(extra[:5])}"
    return next((f"{name}: {str(a[name])[:300]} != {str(b[name])[:300]}" for name in a if a[name] != b[name]), "")


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the scalars that TensorBoard shows, by tag, with their steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    scalars = {
        tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"] if tag not in TIMES
    }
    return scalars | {tag: [e.step for e in accumulator.Images(tag)] for tag in tags["images"]}


def _content(path: Path) -> Any:
    if path.name == "log.csv":
        return [_timeless(row) for row in read_rows(path)]
    if path.name == "metrics.jsonl":
        return [_timeless(row) for row in read_jsonl(path)]
    if path.name == "state.pt":
        state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(_flat({name: value for name, value in state.items() if name != "row"}))
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".npz":
        with np.load(path) as file:
            return {name: _digest(file[name].tobytes()) for name in file.files}
    return _digest(path.read_bytes())


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        left_out = {*TIMES, "checksum", "date", "command"}
        return {name: _timeless(inner) for name, inner in value.items() if name not in left_out}
    return value


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for key, inner in enumerate(value):
            yield from _flat(inner, f"{name}/{key}")
    elif isinstance(value, Tensor):
        yield (
            name,
            (
                str(value.dtype),
                tuple(value.shape),
                _digest(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()),
            ),
        )
    else:
        yield name, value


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
