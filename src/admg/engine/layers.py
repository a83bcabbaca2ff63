"""Layers that compute with prepared weights: prepacked for a CPU, or cast to half precision on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from admg.models.blocks import Conv1x1


class PreparedLayer(nn.Module):
    """Stands for a layer, with weights prepared once.

    It shares the parameters of the layer. Where it cannot compute, and once the layer's weights have changed, it calls
    the layer itself.
    """

    layer: Any

    def __init__(self, layer: Any):
        super().__init__()
        self.__dict__["layer"] = layer  # not a child: names of parameters are the layer's
        self.__dict__["_parameters"] = layer._parameters
        self.weights = [(p, p._version, p.data_ptr()) for p in layer._parameters.values() if p is not None]

    def is_current(self) -> bool:
        """Whether the layer's parameters are those that the weights were prepared from, and unchanged."""
        now = [p for p in self.layer._parameters.values() if p is not None]
        return len(now) == len(self.weights) and all(
            p is q and p._version == version and p.data_ptr() == place
            for p, (q, version, place) in zip(now, self.weights)
        )

    def without_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output, and the bias (C,) that is still to be added to it, or None."""
        return self(x), None


def without_bias(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return layer(x), and the bias (C,) that is still to be added to it, or None. Adding it may be fused."""
    return layer.without_bias(x) if isinstance(layer, PreparedLayer) else (layer(x), None)


def can_be_prepared(layer: nn.Module) -> bool:
    """Whether the module is a plain convolution or linear layer with a float32 weight of its own.

    Layers that compute in their own way (weight norm, standardised weights, low-rank additions) are left alone.
    """
    plain = nn.Conv2d.forward, Conv1x1.forward, nn.Linear.forward
    weight = layer._parameters.get("weight")
    if type(layer).forward not in plain or "forward" in vars(layer):
        return False
    if isinstance(layer, nn.Conv2d) and type(layer)._conv_forward is not nn.Conv2d._conv_forward:
        return False
    if layer._forward_pre_hooks:  # as old-style weight norm has, which sets the weight
        return False
    return weight is not None and weight.dtype == torch.float32 and not weight.is_inference()


def keeps_size(conv: nn.Conv2d) -> bool:
    """Whether the output has the size of the input, so that the gradient is a convolution of the same kind."""
    height, width = conv.kernel_size
    same = conv.stride == conv.dilation == (1, 1) and conv.padding == (height // 2, width // 2) and conv.groups == 1
    return same and conv.padding_mode == "zeros" and height % 2 == width % 2 == 1
