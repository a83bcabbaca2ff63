"""What the "training" section of a checkpoint says about how its network was trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

DEFAULT_DROPOUT = 0.1
"""Share that `admg train` dropped by default before checkpoints recorded it."""


MEASURED = re.compile(r"(train|val)_(loss|accuracy)(_t\d+)?|fd|fid")
"""Names of what training measures with the averaged weights."""


def without(training: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the section without these entries, and without what was measured with the weights that it was made for."""
    return {k: v for k, v in training.items() if k not in names and not MEASURED.fullmatch(k)}


def label_dropout(training: Mapping[str, Any]) -> float | None:
    """Return the share of images that a network was trained on without their label; None if it is not known.

    It is recorded as "label_dropout", and before that in the command of `admg train`. A network that was trained on
    from other weights counts with these too: once trained without labels, it has an unconditional prediction.
    """
    recorded = training.get("label_dropout")
    own = float(recorded) if isinstance(recorded, int | float) else _of_command(str(training.get("command", "")))
    init = training.get("init")
    if own or not isinstance(init, Mapping):
        return own
    inherited = label_dropout(init)
    return inherited or (own if own is None or inherited == 0 else None)


def _of_command(command: str) -> float | None:
    """Return the share of a command of `admg train` or `admg train-upsampler`; None of anything else."""
    if not re.match(r"admg train(-upsampler)? ", command):
        return None
    named = re.search(r"--label-dropout[ =]([\d.eE+-]+)", command)
    if named:
        return float(named[1])
    return None if "--config" in command else DEFAULT_DROPOUT
