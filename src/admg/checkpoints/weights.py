"""State dicts into networks: checked strictly, and without a second copy in memory."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why, in one line."""


def load_pickle(path: Path, mmap: bool = False) -> Any:
    """What is in a file of torch.save, its tensors on the CPU. CheckpointError: damaged, or not only tensors in it."""
    try:
        with warnings.catch_warnings():  # of unusual pickles, which it refuses all the same
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} {_refused(str(error))}") from None
    except Exception as error:  # whatever torch meets in a damaged file
        first = str(error).partition("\n")[0].partition(". ")[0]
        reason = f": {first}" if isinstance(error, RuntimeError) and first else ""
        raise CheckpointError(f"{path} is truncated, damaged, or no .pt file{reason}") from None


def _refused(message: str) -> str:
    """Why torch.load(weights_only=True) refused."""
    found = re.search(r"(?:GLOBAL|global|class|function) ([\w.]*\w\.\w+)", message)
    if found is None:
        return "is damaged, or no .pt file of tensors alone: refused"
    return (
        f"holds Python code or objects ({found[1]}) and not only tensors, and could run anything when it is opened: "
        "refused; if you trust it, save its state_dict() alone"
    )


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
