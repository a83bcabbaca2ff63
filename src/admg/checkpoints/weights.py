"""Load state dicts into networks: strictly, and without a second copy in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

Shapes = dict[str, tuple[int, ...]]
Network = TypeVar("Network", bound=nn.Module)
FILLS = {getattr(of, name) for of in (init, Tensor) for name in ("uniform_", "normal_")}
FILLS |= {init.kaiming_uniform_, init.constant_, Tensor.fill_, Tensor.zero_, Tensor.div, Tensor.__truediv__}
"""Functions that initialise weights in place."""
_DIGESTS: ContextVar[dict[int, tuple[nn.Module, str]] | None] = ContextVar("digests", default=None)


class CheckpointError(ValueError):
    """Raised if a checkpoint cannot be used. The message is one line that names the checkpoint and the reason."""


class DamagedError(CheckpointError):
    """The file of a checkpoint is truncated or corrupted."""


def build_network(network_type: type[nn.Module], config: Any, state: dict[str, Tensor], source: Path | str) -> Any:
    """Return the network of this config with these weights, in float32 and eval mode, without gradients.

    float32 tensors become the parameters without a copy, so memory-mapped weights stay memory-mapped, and no random
    weights are initialised first.

    Raises CheckpointError if names or shapes differ, and ValueError if the config is invalid.
    """
    network = on_meta(network_type, config)
    check_state(source, state, network)
    network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


def shapes_of(network_type: type[nn.Module], config: Any) -> Shapes:
    """Return the shape of every parameter of the network of this config, without allocating it."""
    return shapes_in(on_meta(network_type, config).state_dict())


def shapes_in(state: dict[str, Tensor]) -> Shapes:
    """Return the shape of every tensor of a state dict."""
    return {name: tuple(value.shape) for name, value in state.items()}


def check_state(source: Path | str, state: dict[str, Tensor], network: nn.Module) -> None:
    """Raise CheckpointError if names or shapes are not those of the network, or values are not finite floats."""
    compare(source, shapes_in(network.state_dict()), shapes_in(state))
    check_values(source, state)


def compare(source: Path | str, expected: Shapes, found: Shapes) -> None:
    """Raise CheckpointError if names or shapes differ."""
    if expected != found:
        raise CheckpointError(f"{source} does not fit its architecture: {difference(expected, found)}")


def check_values(source: Path | str, state: dict[str, Tensor]) -> None:
    """Raise CheckpointError if weights are not floating-point numbers, or not finite."""
    for name, value in state.items():
        if not is_plain(value):
            layout = "" if value.layout is torch.strided else " and sparse"
            raise CheckpointError(f"{source}: weights must be floating-point, got {name} as {value.dtype}{layout}")
        as_loaded = value.float() if value.dtype == torch.float64 else value  # float64 may exceed float32
        if not value.is_meta and not is_finite(as_loaded):
            raise CheckpointError(f"{source} has NaN or infinite numbers in {name}")


def is_finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())  # a sum, which may overflow, is much faster


def is_plain(value: Tensor) -> bool:
    """Whether a tensor holds floating-point numbers, one after the other."""
    strided = value.layout is torch.strided and not value.is_nested
    return strided and value.is_floating_point() and not value.is_quantized


def check_stored(name: str, value: Tensor, size: int) -> None:
    """Raise CheckpointError if a tensor is larger than its stored bytes in a file of this size."""
    stored = 0 if value.device.type == "meta" else min(value.untyped_storage().nbytes(), size)
    if value.nbytes > stored:
        raise CheckpointError(f"is damaged: it stores {stored} bytes of {name}, which has shape {tuple(value.shape)}")


def digest_of(network: nn.Module) -> str:
    """Return the SHA-256 of the names, shapes and values of all parameters and buffers, persistent or not."""
    kept = _DIGESTS.get()
    if kept is not None and id(network) in kept:
        return kept[id(network)][1]
    state = network.state_dict()
    digest = digest_of_state({**state, **{name: value for name, value in network.named_buffers() if name not in state}})
    if kept is not None:
        kept[id(network)] = network, digest  # keeps the network alive, so that its id is not reused
    return digest


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, shapes and values of tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def cached_digests() -> Iterator[None]:
    """Context in which no weights change, and each network is hashed once. Usable as decorator."""
    token = _DIGESTS.set({} if _DIGESTS.get() is None else _DIGESTS.get())
    try:
        yield
    finally:
        _DIGESTS.reset(token)


def difference(expected: Shapes, found: Shapes) -> str:
    """Return how two sets of shapes differ, in one line with the first key of each kind."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    wrong = sorted(k for k in expected.keys() & found.keys() if expected[k] != found[k])
    parts = [f"{len(missing)} missing, first {missing[0]}"] if missing else []
    parts += [f"{len(extra)} unexpected, first {extra[0]}"] if extra else []
    parts += [f"{len(wrong)} of another shape, first {k}: {found[k]} for {expected[k]}" for k in wrong[:1]]
    return "; ".join(parts)


class _Unfilled(TorchFunctionMode):
    """Context in which weights are not initialised.

    On the meta device they have no values anyway, but to find that out PyTorch imports its compiler, which takes a
    second or more.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FILLS:
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


def on_meta(network_type: type[Network], config: Any) -> Network:
    """Return the network of this config without memory for its weights."""
    with torch.device("meta"), _Unfilled():
        return network_type(config)
