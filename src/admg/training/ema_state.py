"""The averages of a run: which there are, and how they are kept in its checkpoint and restored from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from admg.checkpoints import native
from admg.checkpoints.weights import CheckpointError
from admg.warn import warn

from .config import ResolvedConfig
from .ema import EMA
from .profiles import SNAPSHOT_PROFILES, Decay, Spec, parse_profile, specs_of

OLD_DECAY = 0.9999
"""Decay of runs that do not name their average: the default when there was no other kind."""


def resume_profiles(config: ResolvedConfig, state: Mapping[str, Any] | None, folder: Path) -> ResolvedConfig:
    """Return the configuration with the averages of the checkpoint that is resumed, unless it names others.

    state: contents of the checkpoint in this run directory, or None if there is none
    """
    if config.ema is not None or state is None:
        return dataclasses.replace(config, ema=specs_of(config.profiles))
    specs = state.get("ema") or [_old_decay(folder)]
    return dataclasses.replace(config, ema=specs_of([parse_profile(spec) for spec in specs]))


def folder_of(average: EMA, first: EMA) -> str:
    """Return the folder of a run directory that the model with this average is written to."""
    return "model" if average is first else own_folder(average)


def own_folder(average: EMA) -> str:
    """Return the folder of a run directory that the model with this average is written to if it is not the first."""
    return f"model-ema-{average.profile.slug}"


def checkpoint_entries(averages: Sequence[EMA], named: int) -> dict[str, Any]:
    """Return the entries of a checkpoint; the first average stands where older checkpoints have their only one.

    named: number of averages that the configuration names; those of the snapshots follow
    """
    first, *others = averages
    return {
        "average": first.state_dict(),
        "averages": {str(average.profile): average.state_dict() for average in others},
        "ema": [average.profile.spec for average in averages[:named]],
    }


def restore(averages: Sequence[EMA], state: Mapping[str, Any], folder: Path) -> list[str]:
    """Restore averages from the contents of a checkpoint, and return the names of those that begin there.

    An average that the checkpoint does not hold begins from its weights.
    """
    specs: Sequence[Spec] = state.get("ema") or [_old_decay(folder)]
    saved = {str(parse_profile(specs[0])): state["average"], **state.get("averages", {})}
    for average in averages:
        entry = saved.get(str(average.profile))
        if entry is None:
            average.restart(state["network"])
        else:
            average.load_state_dict(entry)
    return [str(average.profile) for average in averages if str(average.profile) not in saved]


def check_snapshots(averages: Sequence[EMA], step: int, folder: Path) -> None:
    """Raise ValueError if the averages that snapshots hold have not been kept since the first step of the run."""
    short = [str(a.profile) for a in averages if a.profile in SNAPSHOT_PROFILES and a.count != step]
    if short:
        raise ValueError(
            f"ema_snapshots must be 0 for the run in {folder}, which is resumed at step {step}: it "
            f"has not kept the average {' and '.join(short)} from its first step on; start over in another folder"
        )


def note_changes(started: Sequence[str], state: Mapping[str, Any], folder: Path, kept: Sequence[EMA]) -> None:
    """Warn of averages that begin at the step of the checkpoint, and of those of the checkpoint that end there."""
    before = [str(parse_profile(spec)) for spec in state.get("ema") or [_old_decay(folder)]]
    ended = [name for name in before if name not in [str(average.profile) for average in kept]]
    begins = [f"the average {name} begins from the weights at step {state['step']}" for name in started]
    ends = [f"the average {name} is not continued" for name in ended]
    if begins or ends:
        warn("; ".join(begins + ends))


def _old_decay(folder: Path) -> Spec:
    """Return the decay that the model of an older run was trained with."""
    try:
        train: Any = native.read_config(folder / "model").get("training", {}).get("train", {})
        return Decay(float(train["ema"])).spec
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError):
        return OLD_DECAY
