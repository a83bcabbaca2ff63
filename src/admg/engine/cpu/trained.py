"""3x3 convolutions of a network that is trained on a CPU in float32, by Winograd's algorithm there and back.

Unlike those of packing.py, their weights change from call to call, and have gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from admg.engine.exchange import Exchanged, exchanged, is_watched
from admg.models.blocks import exchangeable, keeps_size

from . import reads, winograd
from .weight_gradient import pays, weight_gradient

SAME = [1, 1], [1, 1], [1, 1], False, [0, 0], 1
"""Stride, padding, dilation, transposed, output padding, groups: as many pixels out as in."""


@contextmanager
def trained(*networks: nn.Module) -> Iterator[None]:
    """Within it, 3x3 convolutions of these networks compute by our kernels, in float32 on a CPU, for training.

    Results differ from the plain ones by rounding. They are differentiable in images, weights and biases, to any order.
    """
    layers: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
    for layer in dict.fromkeys(layer for network in networks for layer in network.modules()):
        if not isinstance(layer, nn.Conv2d) or not layer.weight.is_cpu or not exchangeable(layer):
            continue
        if layer.kernel_size == (3, 3) and keeps_size(layer):
            layers[layer] = TrainedConvolution(layer)
    with exchanged(layers):
        yield


class TrainedConvolution(Exchanged):
    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        differentiated = torch.is_grad_enabled() and weight.requires_grad
        if not differentiated or x.ndim != 4 or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return self.plain(x)
        if is_watched() or not reads(x, weight, bias) or not pays(weight, x):
            return self.plain(x)
        if weight.dtype != torch.float32 or (bias is not None and bias.dtype != torch.float32):
            return self.plain(x)
        return _Convolution.apply(x, weight, bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.of_bias = None if bias is None else list(bias.shape)
        return _convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again
            return torch.ops.aten.convolution_backward(dy, x, weight, ctx.of_bias, *SAME, ctx.needs_input_grad)
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = _convolve(dy, weight, None, turned=True) if to_x else None
        dw = weight_gradient(x, dy) if to_weight else None
        db = dy.permute(0, 2, 3, 1).flatten(0, 2).sum(0) if to_bias else None
        return dx, dw, db


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool = False) -> Tensor:
    """turned: for the gradient in x."""
    x = x.contiguous(memory_format=torch.channels_last)
    if m := winograd.tile(weight, x):
        return winograd.convolve(x, winograd.transformed(weight, m, turned), bias)
    return torch.ops.aten.convolution(x, weight.flip(2, 3).transpose(0, 1) if turned else weight, bias, *SAME)
