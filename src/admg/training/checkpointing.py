"""checkpoint.pt: the state that a killed run is resumed from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from admg.checkpoints import pickles
from admg.checkpoints.weights import CheckpointError
from admg.files import atomic

from . import averages
from .sharding import load_network, load_optimizer, local, network_state, optimizer_state
from .step import Learner

FILE = "checkpoint.pt"


def state_of(learner: Learner, step: int) -> dict[str, Any]:
    """Return the weights, their averages, the optimiser's state and the number of steps done.

    If the network is sharded, all processes must call this together, and the first one gets the whole state.
    """
    network = network_state(learner.network)
    optimizer = optimizer_state(learner.network, learner.optimizer)
    kept = averages.state_of(learner.averages, len(learner.config.profiles))
    return {"step": step, "optimizer": optimizer, "network": network, **kept, "learner": learner.state()}


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of a run."""
    with atomic(folder / FILE) as temporary:
        torch.save(state, temporary)


def read(folder: Path, mmap: bool = False) -> dict[str, Any] | None:
    """Return the contents of the checkpoint of a run directory, or None if there is none. Raises CheckpointError."""
    path = folder / FILE
    if not path.exists():
        return None
    with _not_resumable(path):
        state = pickles.load(path, mmap)
        if not isinstance(state, dict):
            raise ValueError("it holds no training run")
        return state


def resume(folder: Path, learner: Learner) -> int:
    """Restore the checkpoint of a run directory, if there is one, and return the number of steps done.

    Raises CheckpointError if the checkpoint belongs to another network or is damaged, and ValueError if snapshots
    cannot begin at its step.
    """
    state = read(folder)
    if state is None:
        return 0
    with _not_resumable(folder / FILE):
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
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"cannot resume from {path}: {reason}; choose another run directory or remove the file"
        ) from None


def _match_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give the moments the memory format of the weights, since the fused AdamW pairs them by their place in memory.

    The weights may be channels-last here and may not have been where the checkpoint was saved.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape and local(parameter) is parameter:
                state[name] = torch.empty_like(parameter).copy_(value)
