"""The gradients of a 3x3 convolution's weights, by the transpose of Winograd's algorithm, and of its bias on a CPU.

See weight_gradient.c.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from . import available, call, scratch


def pays(weight: Float[Tensor, "k c 3 3"], x: Float[Tensor, "n c h w"]) -> bool:
    """Whether the kernel supports these shapes and is faster than PyTorch: with more than one tile of 4x4 pixels."""
    (n, c, height, width), k = x.shape, len(weight)
    several = n * -(-height // 4) * -(-width // 4) > 1 and min(height, width) > 1
    return several and weight.shape == (k, c, 3, 3) and k % 32 == c % 32 == 0 and available()


def weight_gradient(x: Float[Tensor, "n c h w"], dy: Float[Tensor, "n k h w"]) -> Float[Tensor, "k c 3 3"]:
    """Return the gradient of the weight of a 3x3 convolution with one pixel of zero padding, in float32.

    The result does not depend on the number of threads. c and k must be multiples of 32.

    x, dy: both in float32, or both in bf16
    """
    assert x.dtype == dy.dtype in (torch.float32, torch.bfloat16)
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    (n, c, h, w), k = x.shape, dy.shape[1]
    dg = torch.empty(k, c, 3, 3, dtype=torch.float32, device="cpu")
    bf16 = x.dtype == torch.bfloat16
    call("weight_gradient", x, dy, dg, scratch("weight_gradient", n, h, w, c, k), n, h, w, c, k, bf16)
    return dg


def bias_gradient(dy: Float[Tensor, "n k h w"]) -> Float[Tensor, " k"]:
    """Return the gradient of the bias of a convolution, in float32.

    The result does not depend on the number of threads. k must be a multiple of 16.
    """
    dy = dy.contiguous(memory_format=torch.channels_last)
    n, k, h, w = dy.shape
    db = torch.empty(k, dtype=torch.float32, device="cpu")
    rows = n * h * w
    call("bias_gradient", dy, db, scratch("bias_gradient", rows, k), rows, k, dy.dtype == torch.bfloat16)
    return db
