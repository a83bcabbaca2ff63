"""The state that a killed run is resumed from: checkpoint.pt, or a folder of parts if the network is sharded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from admg.checkpoints import pickles
from admg.checkpoints.weights import CheckpointError
from admg.engine.device import ALONE, Processes
from admg.files import atomic, remove

from . import averages
from .sharded_checkpoint import load_parts, load_rest, load_whole, save_parts
from .sharding import has_parts, load_network, load_optimizer, local, network_state, trained_names
from .step import Learner

FILE = "checkpoint.pt"
FOLDER = re.compile(r"checkpoint_(\d+)")


def state_of(learner: Learner, step: int) -> dict[str, Any]:
    """Return the weights, their averages, the optimiser's state and the number of steps done.

    If the network is sharded, each process gets its parts. The keys are those of a network that is not.
    """
    network = network_state(learner.network, whole=False)
    optimizer = learner.optimizer.state_dict()
    kept = averages.state_of(learner.averages, len(learner.config.profiles))
    return {"step": step, "optimizer": optimizer, "network": network, **kept, "learner": learner.state()}


def save(folder: Path, state: dict[str, Any], processes: Processes = ALONE) -> None:
    """Write the state of a run. If it is sharded, all processes must call this together; else, the first one does.

    A run directory holds one checkpoint, whatever its kind. Older ones are removed once the new one is complete.
    """
    if has_parts(state):
        path = folder / f"checkpoint_{state['step']:07d}"
        save_parts(path, state, processes)
    else:
        path = folder / FILE
        with atomic(path) as temporary:
            torch.save(state, temporary)
    if processes.rank == 0:
        for other in saved(folder):
            if other != path:
                remove(other)


def saved(folder: Path) -> list[Path]:
    """Return the checkpoints of a run directory. There is more than one if the run was killed while it saved."""
    folders = [path for path in folder.glob("checkpoint_*") if path.is_dir() and FOLDER.fullmatch(path.name)]
    return [path for path in (folder / FILE,) if path.is_file()] + sorted(folders)


def latest(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps, or None if the run directory has none."""
    found = saved(folder)
    return max(found, key=steps_of) if len(found) > 1 else next(iter(found), None)


def steps_of(path: Path) -> int:
    """Return the number of steps done in a checkpoint; -1 if it is damaged."""
    if match := FOLDER.fullmatch(path.name):
        return int(match[1])
    try:
        return int(pickles.load(path, mmap=True)["step"])
    except (CheckpointError, KeyError, TypeError):
        return -1


def read(folder: Path, mmap: bool = False) -> dict[str, Any] | None:
    """Return the contents of the checkpoint of a run directory, or None if there is none. Raises CheckpointError.

    The sharded tensors of a checkpoint of parts are left out.
    """
    path = latest(folder)
    if path is None:
        return None
    with _not_resumable(path):
        state = load_rest(path) if path.is_dir() else pickles.load(path, mmap)
        if not isinstance(state, dict):
            raise ValueError("it holds no training run")
        return state


def resume(folder: Path, learner: Learner) -> int:
    """Restore the checkpoint of a run directory, if there is one, and return the number of steps done.

    It may have been saved by another number of processes, sharded or not. If the network is sharded, all processes must
    call this together.

    Raises CheckpointError if the checkpoint belongs to another network or is damaged, and ValueError if snapshots
    cannot begin at its step.
    """
    path = latest(folder)
    if path is None:
        return 0
    with _not_resumable(path):
        state = _whole_or_parts(path, learner)
        load_network(learner.network, state["network"])
        started = averages.restore(learner.averages, state, folder)
        load_optimizer(learner.network, learner.optimizer, state["optimizer"])
        _match_memory_format(learner.optimizer)
        learner.load_state(state.get("learner", {}))
        step = int(state["step"])
    if learner.config.ema_snapshots:
        averages.check_snapshots(learner.averages, step, folder)
    if learner.processes.rank == 0:
        averages.note_changes(started, state, folder, learner.averages)
    return step


@contextmanager
def _not_resumable(path: Path) -> Iterator[None]:
    """Raise CheckpointError in place of the many kinds of error that torch raises for a foreign or damaged file."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"cannot resume from {path}: {lines[0]}; choose another run directory or remove the file"
        ) from None


def _whole_or_parts(path: Path, learner: Learner) -> dict[str, Any]:
    """Return the state of a checkpoint: whole, or the parts of this process if both are sharded."""
    if path.is_dir() and learner.config.shard:
        return load_parts(path, lambda key: _parameter_of(key, learner.network))
    state: Any = load_whole(path) if path.is_dir() else pickles.load(path)
    if not isinstance(state, dict):
        raise ValueError("it holds no training run")
    return state


def _parameter_of(key: str, network: nn.Module) -> Tensor:
    """Return the weight that a sharded tensor belongs to, by its key in the flattened state. Raises ValueError."""
    *_, number, last = key.split("/")
    names = trained_names(network)
    name = last.removeprefix("module.")
    if key.startswith("optimizer/"):
        name = names[int(number)] if int(number) < len(names) else f"weight number {number}"
    found = dict(network.named_parameters()).get(name)
    if found is None:
        raise ValueError(f"the network has no {name}")
    return found


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give the moments the memory format of the weights, since the fused AdamW pairs them by their place in memory.

    The weights may be channels-last here and may not have been where the checkpoint was saved.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape and local(parameter) is parameter:
                state[name] = torch.empty_like(parameter).copy_(value)
