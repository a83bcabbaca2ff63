"""checkpoint.pt: the state that a killed run is resumed from."""

from __future__ import annotations

from pathlib import Path

import torch

from admg.checkpoints import pickles
from admg.checkpoints.weights import CheckpointError
from admg.files import atomic

from .step import Learner

FILE = "checkpoint.pt"


def save(folder: Path, learner: Learner, step: int) -> None:
    """Write the weights, their average, the optimiser's state and the number of steps done."""
    state = {"network": learner.network.state_dict(), "average": learner.average.state_dict()}
    with atomic(folder / FILE) as temporary:
        torch.save({"step": step, "optimizer": learner.optimizer.state_dict(), **state}, temporary)


def resume(folder: Path, learner: Learner) -> int:
    """Restore the checkpoint of a run directory, if there is one, and return the number of steps done.

    Raises CheckpointError if the checkpoint belongs to another network or is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return 0
    try:
        state = pickles.load(path)
        learner.network.load_state_dict(state["network"])
        learner.average.load_state_dict(state["average"])
        learner.optimizer.load_state_dict(state["optimizer"])
        _match_memory_format(learner.optimizer)
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
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)
