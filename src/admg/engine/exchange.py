"""Another forward for a layer, for a while, unless somebody looks into it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LOCK = threading.Lock()
"""Held while a forward is exchanged: several threads may sample with one network."""


@contextmanager
def exchanged(layers: dict[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within it, calls of these layers call what is given for each; of one that is exchanged already, as before."""
    mine = {}
    try:
        for layer, forward in layers.items():
            with LOCK:
                if "forward" not in vars(layer):
                    mine[layer] = layer.forward = forward  # type: ignore[assignment]
        yield
    finally:
        for layer, forward in mine.items():
            with LOCK:
                if vars(layer).get("forward") is forward:
                    del layer.forward


class Exchanged:
    """What takes the place of a layer's forward, with weights made ready once. A copy of the network is without it."""

    def __init__(self, layer: Any):
        self.layer = layer
        self.plain: Callable[[Tensor], Tensor] = plain_forward(layer)
        self.weights = [(p, p._version) for p in layer._parameters.values() if p is not None]

    def is_current(self) -> bool:
        """Whether the layer's weights are those that it was made of, unchanged."""
        now = [p for p in self.layer._parameters.values() if p is not None]
        same = len(now) == len(self.weights)
        return same and all(p is q and p._version == version for p, (q, version) in zip(now, self.weights))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[nn.Module]]:
        return plain_forward, (self.layer,)


def plain_forward(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return type(layer).forward.__get__(layer)


def is_heard(module: nn.Module) -> bool:
    """Whether somebody hooks into it."""
    before, after = module._forward_pre_hooks or module._backward_pre_hooks, module._forward_hooks
    return bool(before or after or module._backward_hooks)


def is_watched() -> bool:
    """Whether somebody looks into what is computed: torch.compile, torch.func, or forward-mode differentiation."""
    if torch.compiler.is_compiling():  # which understands neither of the others
        return True
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def apart(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """layer(x), and what is still to be added to it: the bias (C,) of a halved convolution, or None."""
    if not torch.compiler.is_compiling():
        without_bias = getattr(vars(layer).get("forward"), "apart", None)
        if without_bias is not None and not is_heard(layer):
            return without_bias(x)
    return layer(x), None
