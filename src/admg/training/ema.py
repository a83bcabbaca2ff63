"""The moving average of a network's weights, which gives better samples than the weights themselves."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from admg.engine.foreach import lerp_

from .profiles import Decay, Profile
from .sharding import load_network, local, network_state


class EMA:
    """A copy of the network whose weights follow the trained ones: average += (1 - β)(weights - average).

    profile: β of each update, see `profiles`; a number is the decay of an exponential average. The first update copies
        the weights.
    """

    def __init__(self, network: nn.Module, profile: Profile | float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.profile = Decay(profile) if isinstance(profile, int | float) else profile
        self.count = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards the weights of the network, in one pass over memory."""
        beta = self.profile.beta(self.count)
        lerp_([*map(local, self.network.parameters())], [*map(local, network.parameters())], 1 - beta)
        for mine, theirs in zip(self.network.buffers(), network.buffers()):
            mine.copy_(theirs)
        self.count += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, with the keys of `torch.optim.swa_utils.AveragedModel`, which older checkpoints hold.

        If the network is sharded, each process gets its parts.
        """
        weights = {f"module.{name}": value for name, value in network_state(self.network, whole=False).items()}
        return {"n_averaged": torch.tensor(self.count), **weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        weights = {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
        load_network(self.network, weights)
        self.count = int(state["n_averaged"])

    def restart(self, weights: dict[str, Any]) -> None:
        """Restart from the current weights of the network."""
        load_network(self.network, weights)
        self.count = 0
