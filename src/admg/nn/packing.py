"""Convolutions whose weights are laid out once as a CPU's kernels want them, instead of at each call.

For one large image or a few small ones, laying them out takes a fifth of the time of a network. Wide layers compute by
Winograd's algorithm, which takes a third less time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import winograd
from .norm import is_watched

LOCK = threading.Lock()
"""Held while a convolution's forward is exchanged: several threads may sample with one network."""


@contextmanager
def packed(*networks: nn.Module) -> Iterator[None]:
    """Within it, the float32 convolutions of these networks run on a CPU with weights laid out once, channels last.

    Results differ from the plain ones by rounding. They are differentiable in the images, to any order, and not in the
    weights, which must not change meanwhile. It takes the memory of these weights once or twice more, and the same
    again for those that a gradient goes through.
    """
    mine: list[Packed] = []
    try:
        for module in dict.fromkeys(module for network in networks for module in network.modules()):
            with LOCK:
                if isinstance(module, nn.Conv2d) and _packable(module):
                    mine.append(Packed(module))
                    module.forward = mine[-1]  # type: ignore[method-assign, assignment]
        yield
    finally:
        for packed_one in mine:
            with LOCK:
                if vars(packed_one.conv).get("forward") is packed_one:
                    del packed_one.conv.forward


def _packable(conv: nn.Conv2d) -> bool:
    """Whether it is a plain one whose gradient is another: an odd kernel, zeros around, as many pixels out as in."""
    kind = type(conv)
    plain = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
    if not plain or "weight" not in conv._parameters or conv._forward_pre_hooks or conv.weight.is_inference():
        return False  # one with another forward, or whose weight is made anew at each call
    height, width = conv.kernel_size
    same = conv.stride == conv.dilation == (1, 1) and conv.padding == (height // 2, width // 2) and conv.groups == 1
    same = same and conv.padding_mode == "zeros"
    here = conv.weight.is_cpu and conv.weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return here and same and height % 2 == width % 2 == 1 and "forward" not in vars(conv)


class Packed:
    """What takes the place of a convolution's forward."""

    def __init__(self, conv: nn.Conv2d):
        self.conv = conv
        self.plain: Callable[[Tensor], Tensor] = plain_forward(conv)
        self.made_of = self._weights()
        self.bias = None if conv.bias is None else conv.bias.detach()
        turned = conv.weight.detach().flip(2, 3).transpose(0, 1)
        self.there, self.back = Layouts(conv.weight.detach()), Layouts(turned)

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or is_watched():
            return self.plain(x)
        if self._weights() != self.made_of:  # exchanged or changed, against what packed() asks for
            return self.plain(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Convolution.apply(x, self.there, self.back, self.bias)
        return self.there.convolve(x, self.bias)

    def _weights(self) -> list[tuple[int, int]]:
        """Tells these weights from others, and from themselves after a change."""
        return [(id(p), p._version) for p in (self.conv.weight, self.conv.bias) if p is not None]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[nn.Conv2d]]:
        return plain_forward, (self.conv,)  # a copy of the network, or a saved one, is not packed


def plain_forward(conv: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    return type(conv).forward.__get__(conv)


class Layouts:
    """A weight (K, C, h, w) as the kernels want it, laid out at the first call."""

    def __init__(self, weight: Tensor):
        self.weight = weight
        self.transformed: Tensor | None = None
        self.ordered: Tensor | None = None

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if winograd.pays(self.weight, x):
            if self.transformed is None:
                self.transformed = winograd.transformed(self.weight)
            return winograd.convolve(x, self.transformed, bias)
        same = [size // 2 for size in self.weight.shape[2:]], [1, 1], [1, 1], 1  # padding, stride, dilation, groups
        if self.ordered is None:
            weight = self.weight.contiguous()
            self.ordered = torch.ops.mkldnn._reorder_convolution_weight(weight, *same, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, self.ordered, bias, *same, "none", [], "")


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
