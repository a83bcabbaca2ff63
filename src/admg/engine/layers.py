"""Layers that compute with prepared weights: prepacked for a CPU, or cast to half precision on a GPU."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from admg.models.blocks import Conv1x1


class PreparedLayer(nn.Module):
    """A shallow copy of a layer, with weights prepared once. Its class derives from that of the layer too.

    It shares the parameters of the layer, and calls the layer itself for unsupported inputs and once the weights of the
    layer have changed.
    """

    layer: Any

    def __new__(cls, *given: Any) -> PreparedLayer:
        kind = _class_for(cast(Any, cls), cast(Any, type(given[0]))) if given else cls  # without: by copy.copy
        made: PreparedLayer = object.__new__(kind)
        return made

    def __init__(self, layer: Any):
        vars(self).update(vars(layer), layer=layer)  # not a child: names of parameters are the layer's
        self.weights = [(p, p._version, p.data_ptr(), Probe(p)) for p in layer._parameters.values() if p is not None]

    def is_current(self) -> bool:
        """Whether the layer's parameters are those that the weights were prepared from, and unchanged."""
        now = [p for p in self.layer._parameters.values() if p is not None]
        return len(now) == len(self.weights) and all(
            p is q and p._version == version and p.data_ptr() == place and probe.is_same()
            for p, (q, version, place, probe) in zip(now, self.weights)
        )

    def without_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the output, and the bias (C,) that is still to be added to it, or None."""
        return self(x), None


class Probe:
    """Three elements of a tensor on a CPU. Torch counts no version for changes through `.data` or NumPy.

    They are read from memory without torch, in 0.3 µs, so the tensor must still be where it was.
    """

    def __init__(self, tensor: Tensor):
        dense = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
        readable = tensor.is_cpu and type(tensor) in (Tensor, nn.Parameter) and dense and tensor.element_size() == 4
        count = tensor.numel() if readable else 0
        at = sorted({0, count // 2, count - 1}) if count else []
        self.elements = [ctypes.c_int32.from_address(tensor.data_ptr() + 4 * i) for i in at]
        self.values = [element.value for element in self.elements]

    def is_same(self) -> bool:
        return [element.value for element in self.elements] == self.values


@cache
def _class_for(kind: Any, of_layer: Any) -> type[PreparedLayer]:
    return type(kind.__name__, (kind, of_layer), {"__module__": kind.__module__})


def without_bias(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return layer(x), and the bias (C,) that is still to be added to it, or None. Adding it may be fused."""
    return layer.without_bias(x) if isinstance(layer, PreparedLayer) else (layer(x), None)


def can_be_prepared(layer: nn.Module) -> bool:
    """Whether the module is a plain convolution or linear layer with a float32 weight of its own.

    Layers with a custom computation (weight norm, standardised weights, low-rank additions) are left alone.
    """
    if not computes_plainly(layer) or "forward" in vars(layer):
        return False
    weight = layer._parameters.get("weight")
    if isinstance(layer, nn.Conv2d) and type(layer)._conv_forward is not nn.Conv2d._conv_forward:
        return False
    if layer._forward_pre_hooks:  # as old-style weight norm has, which sets the weight
        return False
    return weight is not None and weight.dtype == torch.float32 and not weight.is_inference()


def computes_plainly(layer: nn.Module) -> bool:
    """Whether the class of the module computes as a convolution or linear layer of torch or ours."""
    scripted = isinstance(layer, torch.jit.ScriptModule)
    return not scripted and type(layer).forward in (nn.Conv2d.forward, Conv1x1.forward, nn.Linear.forward)


def keeps_size(conv: nn.Conv2d) -> bool:
    """Whether the output has the size of the input, so that the gradient is a convolution of the same kind."""
    height, width = conv.kernel_size
    same = conv.stride == conv.dilation == (1, 1) and conv.padding == (height // 2, width // 2) and conv.groups == 1
    return same and conv.padding_mode == "zeros" and height % 2 == width % 2 == 1
