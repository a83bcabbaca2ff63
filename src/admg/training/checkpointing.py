"""The checkpoints that a run is resumed from: checkpoints/0001000/ and so on, each with the checksums of its files.

A checkpoint holds state.pt or, if the network is sharded, the parts of the processes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from admg.checkpoints import pickles
from admg.checkpoints.weights import CheckpointError
from admg.checksums import read_any, write_json
from admg.disk import cannot_write
from admg.engine.device import ALONE, Processes
from admg.files import atomic, remove, sha256
from admg.warn import warn

from . import ema_state
from .sharded_checkpoint import load_parts, load_rest, load_whole, save_parts
from .sharding import has_parts, load_network, load_optimizer, local, network_state, trained_names
from .step import Learner

FOLDER, STATE, CHECKSUMS = "checkpoints", "state.pt", "checksums.json"


def checkpoint_state(learner: Learner, step: int) -> dict[str, Any]:
    """Return the weights, their averages, the optimiser's state and the number of steps done.

    If the network is sharded, each process gets its parts. The keys are those of a network that is not.
    """
    network = network_state(learner.network, whole=False)
    optimizer = learner.optimizer.state_dict()
    kept = ema_state.checkpoint_entries(learner.averages, len(learner.config.profiles))
    trained = {"optimizer": optimizer, "trained": trained_names(learner.network)}
    return {"step": step, **trained, "network": network, **kept, "learner": learner.state()}


def save(
    folder: Path,
    state: dict[str, Any],
    processes: Processes = ALONE,
    keep: int = 3,
    keep_every: int = 0,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write the state of a run, and remove old checkpoints. Return the folder of the checkpoint.

    If the state is sharded, all processes must call this together; else, the first one does.

    keep: number of latest checkpoints to keep
    keep_every: also keep checkpoints whose number of steps is a multiple of this; 0 for none
    beside: content of JSON files in the checkpoint, by name, that describe the run

    Raises OSError if the disk is full or cannot be written; earlier checkpoints are then unchanged.
    """
    path = folder / FOLDER / f"{state['step']:07d}"

    def finish(temporary: Path) -> None:
        for name, content in (beside or {}).items():
            write_json(temporary / name, content)
        write_checksums(temporary)

    if has_parts(state):
        save_parts(path, state, processes, finish)
    else:
        with atomic(path, durable=True) as temporary:
            temporary.mkdir()
            try:
                torch.save(state, temporary / STATE)
            except RuntimeError as error:  # torch raises it for a full disk
                raise cannot_write(path, temporary, error) from None
            finish(temporary)
    if processes.rank == 0:
        remove_old(folder, keep, keep_every)
    return path


def remove_old(folder: Path, keep: int, keep_every: int) -> None:
    """Remove old checkpoints; the arguments are those of `save`."""
    for other in saved_checkpoints(folder)[:-keep]:
        if not (keep_every and step_of(other) % keep_every == 0):
            remove(other)


def saved_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run directory, the latest one last, including damaged ones."""
    names = (folder / FOLDER).glob("*")
    return sorted((path for path in names if path.is_dir() and re.fullmatch(r"\d{7,}", path.name)), key=step_of)


def step_of(path: Path) -> int:
    """Return the number of steps done in a checkpoint."""
    return int(path.name)


def latest(folder: Path) -> Path | None:
    """Return the last checkpoint of a run directory that is not damaged, or None if the run has none yet.

    Damaged checkpoints are skipped with a warning. Raises CheckpointError if all are damaged.
    """
    checkpoints = saved_checkpoints(folder)
    for path in reversed(checkpoints):
        problem = damage(path)
        if problem is None:
            return path
        warn(f"skipping {path}: {problem}")
    if checkpoints:
        count = len(checkpoints)
        raise CheckpointError(f"all {count} checkpoints of the run in {folder} are damaged: choose another folder")
    return None


def damage(path: Path) -> str | None:
    """Read all files of a checkpoint, and return a description of the damage, or None if it is intact."""
    try:
        recorded = read_any(path / CHECKSUMS)
        names = {file.name for file in path.iterdir()} - {CHECKSUMS}
        if not isinstance(recorded, dict) or recorded.keys() != names:
            return "its files differ from those listed in its checksums"
        return next((f"{name} is damaged" for name in sorted(names) if sha256(path / name) != recorded[name]), None)
    except (OSError, ValueError) as error:
        return str(error)


def write_checksums(path: Path) -> None:
    """Write the SHA-256 of each file of a checkpoint."""
    found = {file.name: sha256(file) for file in sorted(path.iterdir())}
    (path / CHECKSUMS).write_text(json.dumps(found, indent=1) + "\n")


def read(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Return the contents of a checkpoint. Raises CheckpointError.

    The sharded tensors of a checkpoint of parts are left out.
    """
    with _not_resumable(path):
        state = pickles.load(path / STATE, mmap) if (path / STATE).exists() else load_rest(path)
        if not isinstance(state, dict):
            raise ValueError("it does not hold a training run")
        return state


def was_healthy(path: Path) -> bool:
    """Whether the loss of the last step before a checkpoint was finite and not far too high; see LossMonitor."""
    health = read(path, mmap=True).get("health", {})
    return not (health.get("skipped") or health.get("high"))


def resume(path: Path, learner: Learner) -> dict[str, Any]:
    """Restore a checkpoint, and return its contents, of which "step" is the number of steps done.

    It may have been saved by another number of processes, sharded or not. If the network is sharded, all processes must
    call this together.

    Raises CheckpointError if the checkpoint belongs to another network, and ValueError if snapshots cannot begin at its
    step.
    """
    folder = path.parent.parent
    with _not_resumable(path):
        state = _whole_or_parts(path, learner)
        load_network(learner.network, state["network"])
        started = ema_state.restore(learner.averages, state, folder)
        names = trained_names(learner.network)
        if other := set(state.get("trained", names)) ^ set(names):
            raise ValueError(f"the trained tensors differ from those of this run, such as {min(other)} (see freeze)")
        load_optimizer(learner.network, learner.optimizer, state["optimizer"])
        _match_memory_format(learner.optimizer)
        learner.load_state(state.get("learner", {}))
        step = int(state["step"])
    if learner.config.ema_snapshots:
        ema_state.check_snapshots(learner.averages, step, folder)
    if learner.processes.rank == 0:
        ema_state.note_changes(started, state, folder, learner.averages)
    return state


@contextmanager
def _not_resumable(path: Path) -> Iterator[None]:
    """Context manager that turns the various errors of torch for a foreign or damaged file into CheckpointError."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"cannot resume from {path}: {lines[0]}; choose another run directory") from None


def _whole_or_parts(path: Path, learner: Learner) -> dict[str, Any]:
    """Return the state of a checkpoint: whole, or the parts of this process if both are sharded."""
    whole = (path / STATE).exists()
    if not whole and learner.config.shard:
        return load_parts(path, lambda key: _parameter_of(key, learner.network))
    state: Any = pickles.load(path / STATE) if whole else load_whole(path)
    if not isinstance(state, dict):
        raise ValueError("it does not hold a training run")
    return state


def _parameter_of(key: str, network: nn.Module) -> Tensor:
    """Return the weight of a sharded tensor, by its key in the flattened state. Raises ValueError if there is none."""
    *_, number, last = key.split("/")
    names = trained_names(network)
    name = last.removeprefix("module.")
    if key.startswith("optimizer/"):
        name = names[int(number)] if int(number) < len(names) else f"weight number {number}"
    parameter = dict(network.named_parameters()).get(name)
    if parameter is None:
        raise ValueError(f"the network has no {name}")
    return parameter


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give the moments the memory format of the weights, since the fused AdamW pairs elements by memory position.

    The weights may be channels-last here and may not have been where the checkpoint was saved.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape and local(parameter) is parameter:
                state[name] = torch.empty_like(parameter).copy_(value)
