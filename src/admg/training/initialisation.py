"""Initialisation of a run: random weights, or a model with its architecture and process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from admg.checkpoints import native
from admg.checkpoints.compatibility import check_pair, facts_of
from admg.checkpoints.initial import Initial, inherited, initial_of_run, load_initial
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.networks import NETWORK_KINDS, Kind, unwrapped
from admg.checkpoints.openai import GivenFlags
from admg.checkpoints.transfer import transfer
from admg.checkpoints.weights import CheckpointError, digest_of_state
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, SuperResConfig, UNetConfig
from admg.warn import warn

from . import checkpointing

N = TypeVar("N", bound=nn.Module)
C = TypeVar("C", UNetConfig, SuperResConfig, ClassifierConfig)

Init = str | Path | Model | Classifier
"""A model to start from: a name, folder or file of weights, or a loaded model."""


def open_initial(init: Init | None, flags: GivenFlags | None, kind: Kind, out: Path | str | None) -> Initial | None:
    """Return the model that a run starts from, or None for random weights.

    out: run directory; a resumed run has its own weights, so the initial model is not read again

    Raises ValueError as load_initial() does, for flags without a model, and if the run trains another kind of network.
    """
    if out is not None:
        check_kind(out, kind)
    if init is None:
        if flags is not None:
            raise ValueError("init_flags requires init")
        return None
    if out is not None and (folder := folder_to_resume(out)) is not None:
        return initial_of_run(folder, kind, f"the run in {out}")
    return load_initial(init, kind, flags)


def check_kind(out: Path | str, kind: Kind) -> None:
    """Raise ValueError if a run directory holds the run of another kind of network."""
    with suppress(CheckpointError):
        folder = folder_to_resume(out)
        present = kind if folder is None else native.read_about(folder).kind
        if present != kind:
            wanted, there = (NETWORK_KINDS[k].title for k in (kind, present))
            raise ValueError(
                f"{out} holds the training of a {there}, not of a {wanted}: choose another directory, or "
                f"--overwrite this one"
            )


def folder_to_resume(out: Path | str) -> Path | None:
    """Return the folder in a run directory whose config.json describes the run to resume; None if there is no run.

    It is the last checkpoint whose config.json is not damaged, or else model/: older checkpoints have no config.json.
    """
    checkpoints = checkpointing.saved_checkpoints(Path(out))
    for folder in reversed(checkpoints):
        with suppress(CheckpointError):
            native.read_about(folder)
            return folder
    model = Path(out) / "model"
    return model if checkpoints and (model / native.CONFIG).is_file() else None


def process_of(given: DiffusionConfig | Mapping[str, Any] | None, initial: Initial | None) -> DiffusionConfig:
    """Return the diffusion process: the given fields, and the others from the initial model or the defaults."""
    if isinstance(given, DiffusionConfig):
        return given
    return DiffusionConfig(**({} if initial is None else dataclasses.asdict(initial.diffusion)) | dict(given or {}))


def fit_to_data(kind: type[C], network: C | Mapping[str, Any] | None, initial: Initial | None, **derived: Any) -> C:
    """Return the architecture with the fields that follow from the data.

    network: fields that were given; the others are those of the model to start from, or the defaults

    Raises ValueError if the given network has other values for these fields, or contradicts the weights.
    """
    given = {} if network is None else network if isinstance(network, Mapping) else dataclasses.asdict(network)
    for name, value in derived.items():
        if given.get(name, value) != value:
            raise ValueError(f"network: {name} must be {value} for this data and the other options, got {given[name]}")
    return kind(**{**given, **derived}) if initial is None else inherited(initial, kind, given, derived)


def initialised(kind: type[N], architecture: Any, seed: int) -> N:
    """Return a network with random float32 weights of this seed, and leave torch's global state as it was."""
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            return kind(architecture)
        finally:
            torch.set_default_dtype(default)


def start_from(part: Model | Classifier, initial: Initial | None, init: Init | None, kind: Kind) -> dict[str, Any]:
    """Fill the network with the weights of the model, and return a record of the initialisation for the provenance.

    Raises ValueError if the weights do not fit, or mean something else.
    """
    if initial is None:
        return {}
    if not initial.state:  # the run is resumed
        recorded: Mapping[str, Any] = initial.training.get("init") or {}
        if not _began_with(recorded, init):
            given = "the given model" if isinstance(init, Model | Classifier) else init
            warn(f"resuming {initial.name} with its own weights: ignoring {given}")
        return {"init": dict(recorded)} if recorded else {}
    check_pair("init", facts_of(part, "this run"), initial.facts(kind))
    done = transfer(initial, part.network, part.labels)
    dropout = {} if initial.takes_labels or kind == "classifier" else {"label_dropout": 1.0}
    named = {"model": initial.name, "digest": digest_of_state(initial.state)}
    return {"init": {**named, **initial.training, **dropout, "start": done.record()}}


def _began_with(recorded: Mapping[str, Any], init: Init | None) -> bool:
    """Whether a run, by the record of its initialisation, began with this model."""
    if isinstance(init, Model | Classifier):  # earlier versions recorded no digest
        digest = recorded.get("digest")
        return bool(recorded) and digest in (None, digest_of_state(unwrapped(init.network).state_dict()))
    return bool(recorded.get("model") == str(init))
