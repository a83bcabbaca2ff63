"""The "training" section of a checkpoint: the provenance of its network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from typing import Any

DEFAULT_DROPOUT = 0.1
"""Default share of labels dropped by `admg train` before checkpoints recorded it."""


MEASURED = re.compile(r"(train|val)_(loss|accuracy)(_t\d+)?|fd|fid")
"""Names of measurements of the averaged weights during training."""


def installed_version() -> str:
    """Return the version of this package, or "" if it runs without being installed."""
    try:
        return metadata.version("admg")
    except metadata.PackageNotFoundError:
        return ""


def without(training: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the section without these entries, and without measurements of its original weights."""
    return {k: v for k, v in training.items() if k not in names and not MEASURED.fullmatch(k)}


def label_dropout(training: Mapping[str, Any]) -> float | None:
    """Return the share of images that a network was trained on without their label; None if it is not known.

    It is recorded as "label_dropout", and before that in the command of `admg train`. The training of initial
    weights also counts: once trained without labels, a network has an unconditional prediction.
    """
    recorded = training.get("label_dropout")
    own = float(recorded) if isinstance(recorded, int | float) else _of_command(str(training.get("command", "")))
    init = training.get("init")
    if own or not isinstance(init, Mapping):
        return own
    inherited = label_dropout(init)
    return inherited or (own if own is None or inherited == 0 else None)


def _of_command(command: str) -> float | None:
    """Return the share in a command of `admg train` or `admg train-upsampler`; None for anything else."""
    if not re.match(r"admg train(-upsampler)? ", command):
        return None
    named = re.search(r"--label-dropout[ =]([\d.eE+-]+)", command)
    if named:
        return float(named[1])
    return None if "--config" in command else DEFAULT_DROPOUT
