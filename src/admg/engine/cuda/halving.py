"""Weights in half precision on a GPU, cast and laid out once; autocast would do both at every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from admg.engine.exchange import Exchanged, exchanged, is_watched
from admg.models.blocks import exchangeable


@contextmanager
def halved(*networks: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it, and within autocast to `dtype`, layers of these networks on a GPU have their weights in this dtype.

    Results are those of autocast up to rounding: a bias is added in float32. They are differentiable in the images, to
    any order, and not in the weights, which must not change meanwhile. It takes half the memory of the weights more.
    """
    layers: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
    for layer in dict.fromkeys(layer for network in networks for layer in network.modules()):
        zeros_around = getattr(layer, "padding_mode", "zeros") == "zeros"
        if exchangeable(layer) and layer.weight.is_cuda and zeros_around:
            layers[layer] = Halved(layer, dtype)
    with exchanged(layers):
        yield


class Halved(Exchanged):
    """A layer with its weights in half precision."""

    def __init__(self, layer: Any, dtype: torch.dtype):
        super().__init__(layer)
        layout = torch.channels_last if layer.weight.ndim == 4 else torch.contiguous_format
        self.weight = layer.weight.detach().to(dtype, memory_format=layout)
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        self.bias_in_half = None if self.bias is None else self.bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self._apply(x, self.bias_in_half) if self.takes(x) else self.plain(x)

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The layer's result without its bias, and the bias (C,) in float32: adding it would be a pass of its own."""
        return (self._apply(x, None), self.bias) if self.takes(x) else (self.plain(x), None)

    def takes(self, x: Tensor) -> bool:
        """Not where autocast is off, as for the last layer, nor if the weights changed, against what halved() asks."""
        wanted = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == self.weight.dtype
        return wanted and x.is_cuda and not is_watched() and self.is_current()

    def _apply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x, layer = x.to(self.weight.dtype), self.layer
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, self.weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        weight = self.weight[:, :, 0] if self.weight.ndim == 3 else self.weight  # a Conv1x1
        return F.linear(x, weight, bias)
