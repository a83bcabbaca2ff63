"""State dicts into networks: checked strictly, and without a second copy in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why, in one line."""


def build_network(network_type: type[nn.Module], config: Any, state: dict[str, Tensor], source: Path | str) -> Any:
    """The network of this config with these weights, in float32 and eval mode, its gradients off.

    Tensors that are float32 already become the parameters as they are: memory-mapped ones stay so, and no weights are
    made at random first. CheckpointError: names or shapes differ; ValueError: a config that makes no network.
    """
    network = _on_meta(network_type, config)
    check_state(source, state, network)
    network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


def shapes_of(network_type: type[nn.Module], config: Any) -> Shapes:
    """Name -> shape of every parameter that the network of this config has, computed without making one."""
    return shapes_in(_on_meta(network_type, config).state_dict())


def shapes_in(state: dict[str, Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


def check_state(source: Path | str, state: dict[str, Tensor], network: nn.Module) -> None:
    """CheckpointError if names or shapes are not those of the network."""
    expected, found = shapes_in(network.state_dict()), shapes_in(state)
    if expected != found:
        raise CheckpointError(f"{source} does not fit its architecture: {difference(expected, found)}")


def difference(expected: Shapes, found: Shapes) -> str:
    """The first keys in which two sets of shapes differ, in one line."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = sorted(k for k in expected.keys() & found.keys() if expected[k] != found[k])
    parts = [f"{len(missing)} missing, first {missing[0]}"] if missing else []
    parts += [f"{len(extra)} unexpected, first {extra[0]}"] if extra else []
    parts += [f"{len(wrong)} of another shape, first {k}: {found[k]} for {expected[k]}" for k in wrong[:1]]
    return "; ".join(parts)


def _on_meta(network_type: type[nn.Module], config: Any) -> nn.Module:
    with torch.device("meta"):
        return network_type(config)
