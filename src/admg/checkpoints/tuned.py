"""Steps that were found for a model, see generation/step_search.py: how config.json keeps and sampling uses them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from admg.checksums import write_json
from admg.files import atomic

from .native import CONFIG, read_config

KEY = "tuned_steps"
"""Entry of the "training" section: from the number of steps to a dictionary with "steps", a respacing "at...", and
"sampler", "guide" and the errors, for people to read."""


def explicit(spec: int | str, training: Mapping[str, Any]) -> int | str:
    """Return a respacing "tunedN" as the steps that a model's "training" section has, and any other as it is.

    Raises ValueError if it has none for so many steps.
    """
    named = re.fullmatch(r"\s*tuned0*([1-9]\d*)\s*", spec, re.ASCII) if isinstance(spec, str) else None
    if named is None:
        return spec
    found = training.get(KEY)
    entry = found.get(named[1]) if isinstance(found, Mapping) else None
    steps = entry.get("steps") if isinstance(entry, Mapping) else None
    if not isinstance(steps, str) or steps.count("+") + 1 != int(named[1]) or not steps.startswith("at"):
        known = ", ".join(f"tuned{count}" for count in sorted(found, key=str)) if isinstance(found, Mapping) else ""
        raise ValueError(f"steps {spec!r}: this model has {known or 'no tuned steps'}; `admg tune-steps` finds some")
    return steps


def store(folder: Path | str, found: Mapping[int, Mapping[str, Any]]) -> None:
    """Add steps to the config.json of a checkpoint, by their number. Raises CheckpointError if it cannot be used."""
    content = read_config(folder)
    training = dict(content.get("training", {}))
    before = training.get(KEY)
    training[KEY] = {**(before if isinstance(before, Mapping) else {}), **{str(n): dict(e) for n, e in found.items()}}
    with atomic(Path(folder) / CONFIG, durable=True) as temporary:
        write_json(temporary, {**content, "training": training}, indent=2)
