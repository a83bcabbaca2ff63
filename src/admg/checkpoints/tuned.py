"""Tuned steps of a model, see generation/step_search.py: stored in config.json and used by sampling."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from admg.checksums import write_json
from admg.files import atomic

from .native import CONFIG, read_config
from .weights import CheckpointError

KEY = "tuned_steps"
"""Entry of the "training" section: from the number of steps to a dictionary with "steps", a respacing "at...", and
"sampler", "guide" and the errors, for people to read."""


def explicit(spec: int | str, training: Mapping[str, Any], kind: str = "model") -> int | str:
    """Return the steps in a model's "training" section for a respacing "tunedN", and any other respacing unchanged.

    kind: "model" or "upsampler", for which steps cannot be tuned

    Raises ValueError if it has none for this number of steps.
    """
    named = re.fullmatch(r"\s*tuned0*([1-9]\d*)\s*", spec, re.ASCII) if isinstance(spec, str) else None
    if named is None:
        return spec
    tuned = training.get(KEY)
    entry = tuned.get(named[1]) if isinstance(tuned, Mapping) else None
    steps = entry.get("steps") if isinstance(entry, Mapping) else None
    if not isinstance(steps, str) or steps.count("+") + 1 != int(named[1]) or not steps.startswith("at"):
        known = ", ".join(f"tuned{count}" for count in sorted(tuned, key=str)) if isinstance(tuned, Mapping) else ""
        hint = "" if kind == "upsampler" else "; `admg tune-steps` finds some"
        raise ValueError(f"steps {spec!r}: this {kind} has {known or 'no tuned steps'}{hint}")
    return steps


def digest(folder: Path | str) -> str:
    """Return a digest of the weights of a checkpoint, for `store`. Raises CheckpointError if it cannot be used."""
    return _digest(read_config(folder))


def _digest(content: Mapping[str, Any]) -> str:
    training = {k: v for k, v in content.get("training", {}).items() if k != KEY}
    return hashlib.sha256(json.dumps({**content, "training": training}, sort_keys=True).encode()).hexdigest()


def store(folder: Path | str, found: Mapping[int, Mapping[str, Any]], found_for: str | None = None) -> None:
    """Add steps to the config.json of a checkpoint, by their number.

    found_for: `digest` of the checkpoint for which the steps were found

    Raises CheckpointError if the checkpoint cannot be used, or if it was replaced by another since then.
    """
    content = read_config(folder)
    if found_for is not None and _digest(content) != found_for:
        raise CheckpointError(
            f"{folder} was replaced during the search, so its steps are not stored: "
            f"{', '.join(str(entry['steps']) for entry in found.values())}"
        )
    training = dict(content.get("training", {}))
    before = training.get(KEY)
    training[KEY] = {**(before if isinstance(before, Mapping) else {}), **{str(n): dict(e) for n, e in found.items()}}
    with atomic(Path(folder) / CONFIG, durable=True) as temporary:
        write_json(temporary, {**content, "training": training}, indent=2)
