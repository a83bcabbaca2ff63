"""3x3 convolutions of a network that is trained on a CPU, by Winograd's algorithm in both directions.

In bf16, images are in that format, and products and the gradients of weights in float32.

Unlike those of prepack.py, their weights change from call to call, and have gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from admg.engine.layers import PreparedLayer, can_be_prepared, keeps_size
from admg.engine.observers import is_traced, is_transformed

from . import reads, winograd
from .weight_gradient import bias_gradient, pays, weight_gradient

SAME = [1, 1], [1, 1], [1, 1], False, [0, 0], 1
"""Stride, padding, dilation, transposed, output padding and groups of a convolution that keeps the size."""


def trainable(layer: nn.Module) -> nn.Module:
    """Return the layer computed by our kernels for training, or the layer itself if it is not a 3x3 convolution.

    Results differ from those of the layer by rounding. They are differentiable in images, weights and biases, to any
    order.
    """
    if not isinstance(layer, nn.Conv2d) or not layer.weight.is_cpu or not can_be_prepared(layer):
        return layer
    return WinogradConv(layer) if layer.kernel_size == (3, 3) and keeps_size(layer) else layer


class WinogradConv(PreparedLayer):
    """A 3x3 convolution whose weights have gradients."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        differentiated = torch.is_grad_enabled() and weight.requires_grad
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        if not differentiated or x.ndim != 4 or x.dtype not in (torch.float32, dtype) or not winograd.pays(dtype):
            return self.layer.forward(x)
        if is_traced() or not reads(x, weight, bias) or not pays(weight, x):
            return self.layer.forward(x)
        if weight.dtype != torch.float32 or (bias is not None and bias.dtype != torch.float32):
            return self.layer.forward(x)
        return _Convolution.apply(x.to(dtype), weight, bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_shape = None if bias is None else list(bias.shape)
        return _convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        if torch.is_grad_enabled() or is_transformed(dy):  # for second derivatives and batches of gradients
            weight = weight.to(x.dtype)
            dx, *rest = torch.ops.aten.convolution_backward(dy, x, weight, ctx.bias_shape, *SAME, ctx.needs_input_grad)
            return dx, *(None if gradient is None else gradient.float() for gradient in rest)
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = _convolve(dy, weight, None, turned=True) if to_x else None
        dw = weight_gradient(x, dy) if to_weight else None
        db = bias_gradient(dy) if to_bias else None
        return dx, dw, db


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool = False) -> Tensor:
    """turned: for the gradient in x."""
    x = x.contiguous(memory_format=torch.channels_last)
    if m := winograd.tile(weight, x):
        if not winograd.is_kept(weight):
            return winograd.convolve_unpacked(x, weight, bias, m, turned)
        return winograd.convolve(x, winograd.transform_weight(weight, m, turned), bias)
    weight = (weight.flip(2, 3).transpose(0, 1) if turned else weight).to(x.dtype)
    return torch.ops.aten.convolution(x, weight, None if bias is None else bias.to(x.dtype), *SAME)
