"""Layers whose weights are cast and laid out once as a CPU's kernels want them, instead of at each call.

For one large image or a few small ones, laying them out takes a fifth of the time of a network. In float32, 3x3
convolutions compute by Winograd's algorithm, in less than half of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from admg.engine.exchange import Exchanged, exchanged, is_watched
from admg.models.blocks import exchangeable, keeps_size

from . import narrow, reads, winograd


@contextmanager
def packed(*networks: nn.Module) -> Iterator[None]:
    """Within it, the float32 convolutions of these networks run on a CPU with weights laid out once, channels last.

    Entered within autocast to bf16: those that it computes in bf16 too, and linear layers have their weights cast once.
    Results differ from the plain ones by rounding. They are differentiable in the images, to any order, and not in the
    weights, which must not change meanwhile. It takes the memory of these weights up to four times more, and the same
    again for those that a gradient goes through.
    """
    mkldnn = torch.backends.mkldnn.is_available()
    in_bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    in_bf16 = in_bf16 and mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    layers: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
    for layer in dict.fromkeys(layer for network in networks for layer in network.modules()):
        if not exchangeable(layer) or not reads(*layer._parameters.values()):
            continue
        if isinstance(layer, nn.Conv2d):
            if mkldnn and keeps_size(layer) and (layer.bias is None or layer.bias.dtype == torch.float32):
                layers[layer] = PackedConvolution(layer, in_bf16)
        elif in_bf16:
            layers[layer] = PackedLinear(layer)
    with exchanged(layers):
        yield


class Packed(Exchanged):
    """A layer with weights made ready.

    dtypes: that it computes in
    """

    dtypes: tuple[torch.dtype, ...] = ()

    def __init__(self, layer: Any):
        super().__init__(layer)
        self.weight: Tensor = layer.weight.detach()
        self.bias: Tensor | None = None if layer.bias is None else layer.bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        if dtype not in self.dtypes or x.dtype not in (torch.float32, dtype) or is_watched() or not reads(x):
            return self.plain(x)
        if not self.is_current():  # exchanged or changed, against what packed() asks for
            return self.plain(x)
        return self.compute(x.to(dtype))

    def compute(self, x: Tensor) -> Tensor:
        """In the dtype of x."""
        raise NotImplementedError


class PackedLinear(Packed):
    """With weights cast once, where autocast casts them at each call."""

    dtypes = (torch.bfloat16,)
    cast: tuple[Tensor, Tensor | None] | None = None

    def compute(self, x: Tensor) -> Tensor:
        if self.cast is None:
            weight = self.weight.flatten(1)  # (K, C, 1) of a Conv1x1
            self.cast = weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, *self.cast)


class PackedConvolution(Packed):
    """With weights laid out for each dtype that it computes in, there and back."""

    def __init__(self, conv: nn.Conv2d, in_bf16: bool):
        super().__init__(conv)
        self.dtypes = (torch.float32, torch.bfloat16) if in_bf16 else (torch.float32,)
        self.layouts = {
            dtype: (Layouts(self.weight, dtype), Layouts(self.weight, dtype, turned=True)) for dtype in self.dtypes
        }

    def compute(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            return self.compute(x[None])[0]
        if x.ndim != 4 or x.shape[1] != self.weight.shape[1]:
            return self.plain(x)  # which says what is wrong
        there, back = self.layouts[x.dtype]
        if torch.is_grad_enabled() and x.requires_grad:
            return _Convolution.apply(x, there, back, self.bias)
        return there.convolve(x, self.bias)


class Layouts:
    """A weight (K, C, h, w) as the kernels of a dtype want it; `turned`: (C, K, h, w).

    Laid out at the first call, and anew where images of another size want it otherwise: no two layouts take memory.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype, turned: bool = False):
        self.weight, self.dtype, self.turned = weight, dtype, turned
        self.to_few = narrow.pays(weight.transpose(0, 1) if turned else weight)
        self.kept: tuple[Hashable, Tensor] | None = None
        """For what it is laid out, and how; in one, as several threads may come with images of different sizes."""

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if self.dtype == torch.float32 and (m := winograd.tile(self.weight, x)):
            transformed = self._laid_out(m, lambda: winograd.transformed(self.weight, m, self.turned))
            return winograd.convolve(x, transformed, bias)
        if self.dtype == torch.float32 and self.to_few:
            return narrow.convolve(x, self._laid_out("few", lambda: narrow.laid_out(self._oriented())), bias)
        same = [size // 2 for size in self.weight.shape[2:]], [1, 1], [1, 1], 1  # padding, stride, dilation, groups

        def ordered() -> Tensor:
            weight = self._oriented().to(self.dtype).contiguous()
            return torch.ops.mkldnn._reorder_convolution_weight(weight, *same, list(x.shape))

        weight = self._laid_out(x.shape, ordered)  # oneDNN's order depends on the shape
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *same, "none", [], "")

    def _laid_out(self, what: Hashable, make: Callable[[], Tensor]) -> Tensor:
        kept = self.kept
        if kept is None or kept[0] != what:
            kept = self.kept = what, make()
        return kept[1]

    def _oriented(self) -> Tensor:
        return self.weight.flip(2, 3).transpose(0, 1) if self.turned else self.weight


class _Convolution(torch.autograd.Function):
    """there.convolve(x, bias), whose gradient `back` convolves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Layouts, back: Layouts, bias: Tensor | None) -> Tensor:
        ctx.there, ctx.back = there, back
        return there.convolve(x, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return _Convolution.apply(dy, ctx.back, ctx.there, None), None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: None) -> Tensor:
        return ctx.there.convolve(dx, None)
