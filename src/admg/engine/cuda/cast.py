"""Weights cast to half precision once on a GPU; autocast would cast and rearrange them at every call."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from admg.engine.layers import PreparedLayer, can_be_prepared
from admg.engine.observers import is_traced


def with_cast_weights(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the layer with weights in this dtype, for autocast to it, or the layer itself if it cannot have them.

    Results are those of autocast up to rounding: biases are added in float32. They are differentiable in the images,
    to any order, and not in the weights. It takes half the memory of the weights.
    """
    zeros_around = getattr(layer, "padding_mode", "zeros") == "zeros"
    return CastLayer(layer, dtype) if can_be_prepared(layer) and layer.weight.is_cuda and zeros_around else layer


class CastLayer(PreparedLayer):
    """A layer with its weights in half precision."""

    def __init__(self, layer: Any, dtype: torch.dtype):
        super().__init__(layer)
        layout = torch.channels_last if layer.weight.ndim == 4 else torch.contiguous_format
        self.fixed_weight = layer.weight.detach().to(dtype, memory_format=layout)
        self.fixed_bias = None if layer.bias is None else layer.bias.detach().float()
        self.half_bias = None if self.fixed_bias is None else self.fixed_bias.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self._compute(x, self.half_bias) if self.takes(x) else self.layer.forward(x)

    def without_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output without the bias, and the bias (C,) in float32; adding it here would need another pass."""
        return (self._compute(x, None), self.fixed_bias) if self.takes(x) else (self.layer(x), None)

    def takes(self, x: Tensor) -> bool:
        """Whether to compute in half precision: not where autocast is off, as for the last layer."""
        autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == self.fixed_weight.dtype
        return autocast and x.is_cuda and not is_traced() and self.is_current()

    def _compute(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x, layer = x.to(self.fixed_weight.dtype), self.layer
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, self.fixed_weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        weight = self.fixed_weight[:, :, 0] if self.fixed_weight.ndim == 3 else self.fixed_weight  # a Conv1x1
        return F.linear(x, weight, bias)
