"""checkpoint.pt: the state that a killed run is resumed from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from admg.checkpoints import pickles
from admg.checkpoints.weights import CheckpointError
from admg.files import atomic

from .sharding import load_network, load_optimizer, local, network_state, optimizer_state
from .step import Learner

FILE = "checkpoint.pt"


def state_of(learner: Learner, step: int) -> dict[str, Any]:
    """Return the weights, their average, the optimiser's state and the number of steps done.

    If the network is sharded, all processes must call this together, and the first one gets the whole state.
    """
    network = network_state(learner.network)
    optimizer = optimizer_state(learner.network, learner.optimizer)
    average = learner.average.state_dict()
    return {"step": step, "optimizer": optimizer, "network": network, "average": average, "learner": learner.state()}


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of a run."""
    with atomic(folder / FILE) as temporary:
        torch.save(state, temporary)


def resume(folder: Path, learner: Learner) -> int:
    """Restore the checkpoint of a run directory, if there is one, and return the number of steps done.

    Raises CheckpointError if the checkpoint belongs to another network or is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return 0
    try:
        state = pickles.load(path)
        load_network(learner.network, state["network"])
        learner.average.load_state_dict(state["average"])
        load_optimizer(learner.network, learner.optimizer, state["optimizer"])
        _match_memory_format(learner.optimizer)
        learner.load_state(state.get("learner", {}))
        return int(state["step"])
    except Exception as error:  # torch raises many kinds for a foreign or truncated file
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
