"""Layers whose weights are cast and arranged once for the kernels of a CPU, instead of at each call.

For one large image or a few small ones, arranging the weights takes a fifth of the time of a network. 3x3 convolutions
use Winograd's algorithm, which takes less than half of the time in float32, and less time than oneDNN in bf16 where the
processor has no AMX.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from admg.engine.layers import PreparedLayer, can_be_prepared, keeps_size
from admg.engine.observers import is_traced, is_transformed

from . import channels_last, narrow, reads, winograd


def prepacked(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the layer with prepacked weights for autocast to `dtype`, or the layer itself if it cannot be prepacked.

    Convolutions are prepacked for float32 and, if `dtype` is bf16, for that too; linear layers for bf16 only. Results
    differ from those of the layer by rounding. They are differentiable in the images, to any order, and not in the
    weights. Prepacked weights take the memory of the weights, and as much again for gradients; small ones
    (winograd.MAX_CACHED_FILTERS) up to four times as much, in float32.
    """
    mkldnn = torch.backends.mkldnn.is_available()
    in_bf16 = dtype == torch.bfloat16 and mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not can_be_prepared(layer) or not reads(*layer._parameters.values()):
        return layer
    if isinstance(layer, nn.Conv2d):
        fits = mkldnn and keeps_size(layer) and (layer.bias is None or layer.bias.dtype == torch.float32)
        return PrepackedConv(layer, in_bf16) if fits else layer
    return PrepackedLinear(layer) if in_bf16 else layer


class PrepackedLayer(PreparedLayer):
    """A layer with prepacked weights. dtypes: formats that it computes in."""

    dtypes: tuple[torch.dtype, ...] = ()

    def __init__(self, layer: Any):
        super().__init__(layer)
        self.fixed_weight: Tensor = layer.weight.detach()
        self.fixed_bias: Tensor | None = None if layer.bias is None else layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        if dtype not in self.dtypes or x.dtype not in (torch.float32, dtype) or is_traced() or not reads(x):
            return self.layer.forward(x)
        return self.compute(x.to(dtype)) if self.is_current() else self.layer.forward(x)

    def compute(self, x: Tensor) -> Tensor:
        """Return the output, computed in the dtype of x."""
        raise NotImplementedError


class PrepackedLinear(PrepackedLayer):
    """A linear layer with weights cast to bf16 once; autocast casts them at each call."""

    dtypes = (torch.bfloat16,)

    def __init__(self, layer: Any):
        super().__init__(layer)
        self.cast: list[tuple[Tensor, Tensor | None]] = []

    def compute(self, x: Tensor) -> Tensor:
        if not self.cast:
            weight = self.fixed_weight.flatten(1)  # (K, C, 1) of a Conv1x1
            self.cast.append((weight.to(x.dtype), None if self.fixed_bias is None else self.fixed_bias.to(x.dtype)))
        return F.linear(x, *self.cast[0])


class PrepackedConv(PrepackedLayer):
    """A convolution with weights prepacked for each dtype that it computes in, for the output and for gradients."""

    def __init__(self, conv: nn.Conv2d, in_bf16: bool):
        super().__init__(conv)
        self.dtypes = (torch.float32, torch.bfloat16) if in_bf16 else (torch.float32,)
        self.layouts = {
            dtype: (Layouts(self.fixed_weight, dtype), Layouts(self.fixed_weight, dtype, turned=True))
            for dtype in self.dtypes
        }

    def compute(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self.compute(x[None])[0]
        if x.ndim != 4 or x.shape[1] != self.fixed_weight.shape[1]:
            return self.layer.forward(x)  # raises the usual error
        there, back = self.layouts[x.dtype]
        if torch.is_grad_enabled() and x.requires_grad:
            return _Convolution.apply(x, there, back, self.fixed_bias)
        return there.convolve(x, self.fixed_bias)


class Layouts:
    """A weight (K, C, h, w) as the kernels for a dtype need it; `turned`: (C, K, h, w), for the gradient.

    It is arranged at the first call, and again when images of another size need another layout; one is kept.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, turned: bool = False):
        self.weight, self.dtype, self.turned = weight, dtype, turned
        self.to_few = narrow.pays(weight.transpose(0, 1) if turned else weight)
        self.kept: tuple[Hashable, Tensor] | None = None
        """Key of the layout, and the layout; in one tuple, since several threads may call it with different sizes."""

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if winograd.pays(self.dtype) and (m := winograd.tile(self.weight, x)):
            if not winograd.is_kept(self.weight):
                return winograd.convolve_unpacked(x, self.weight, bias, m, self.turned)
            transformed = self._arranged(m, lambda: winograd.transform_weight(self.weight, m, self.turned))
            return winograd.convolve(x, transformed, bias)
        if self.dtype == torch.float32 and self.weight[0, 0].numel() == 1 and not winograd.is_small(self.weight):
            weight = self._oriented().flatten(1)  # as fast as oneDNN's convolution, which needs a copy of it
            y = channels_last(len(x), len(weight), *x.shape[2:])
            rows, out = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (x, y))
            if bias is None:
                torch.mm(rows, weight.t(), out=out)
            else:
                torch.addmm(bias, rows, weight.t(), out=out)
            return y
        if self.dtype == torch.float32 and self.to_few:
            return narrow.convolve(x, self._arranged("few", lambda: narrow.reorder_weight(self._oriented())), bias)
        same = [size // 2 for size in self.weight.shape[2:]], [1, 1], [1, 1], 1  # padding, stride, dilation, groups

        def ordered() -> Tensor:
            weight = self._oriented().to(self.dtype).contiguous()
            return torch.ops.mkldnn._reorder_convolution_weight(weight, *same, list(x.shape))

        # oneDNN's order of the weights depends on the shape. These are private operators, tested with torch 2.13.
        weight = self._arranged(x.shape, ordered)
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *same, "none", [], "")

    def by_torch(self, x: Tensor) -> Tensor:
        """Return convolve(x, None) by an operation that tracing and transforms know."""
        weight = self._oriented().to(x.dtype)
        return F.conv2d(x, weight, padding=[size // 2 for size in self.weight.shape[2:]])

    def _arranged(self, what: Hashable, make: Callable[[], Tensor]) -> Tensor:
        kept = self.kept
        if kept is None or kept[0] != what:
            kept = self.kept = what, make()
        return kept[1]

    def _oriented(self) -> Tensor:
        return self.weight.flip(2, 3).transpose(0, 1) if self.turned else self.weight


class _Convolution(torch.autograd.Function):
    """there.convolve(x, bias); its gradient is a convolution by `back`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Layouts, back: Layouts, bias: Tensor | None) -> Tensor:
        ctx.there, ctx.back = there, back
        ctx.save_for_backward(there.weight)  # `back` is arranged from it later: torch refuses changes until then
        return there.convolve(x, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        _ = ctx.saved_tensors  # raises RuntimeError if the weight has been changed
        if is_transformed(dy):
            return ctx.back.by_torch(dy), None, None, None
        return _Convolution.apply(dy, ctx.back, ctx.there, None), None, None, None
