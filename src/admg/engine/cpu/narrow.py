"""3x3 convolutions to a few channels, for images and gradients with respect to images; see narrow.c."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from . import available, call, channels_last


def pays(weight: Float[Tensor, "k c height width"]) -> bool:
    """Whether the kernel takes less time than torch's in float32 on a CPU."""
    k, c, *kernel = weight.shape
    return available() and weight.dtype == torch.float32 and kernel == [3, 3] and k <= 6 and c % 32 == 0


def reorder_weight(weight: Float[Tensor, "k c 3 3"]) -> Float[Tensor, "k 3 3 c"]:
    """Return the weight in the order of the kernel."""
    return weight.permute(0, 2, 3, 1).contiguous()


def convolve(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "k 3 3 c"], bias: Float[Tensor, " k"] | None
) -> Float[Tensor, "n k h w"]:
    """Return the convolution of images padded by one pixel of zeros; channels last."""
    (n, c, height, width), k = x.shape, len(weight)
    x = x.permute(0, 2, 3, 1).contiguous()
    y = channels_last(n, k, height, width)
    bias = None if bias is None else bias.contiguous()
    call("narrow_convolve", x, weight, bias, y, x.new_zeros(c), n, height, width, c, k)
    return y
