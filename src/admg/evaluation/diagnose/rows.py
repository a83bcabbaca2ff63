"""What the weights themselves say of the order of qkv's rows: rows of queries, keys and values grow unlike each other.

Training never moves the keys' bias (softmax does not see it), and scales the three kinds of rows differently. So under
the right order the rows that it takes for one kind look alike. This needs no images, and tells more than the denoising
error where the attention does little; it cannot tell the number of heads of the new order, whose kinds stand in thirds
whatever the heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from admg.models import UNet

from .candidates import Attention, blocks, heads_by_block

FREEDOM = 10
"""Parameters per block of what is fitted: means and variances, by kind (less those of all rows)."""


def log_likelihood(network: UNet, attention: Attention) -> float:
    """Of all rows' biases and norms, a normal distribution for each kind in each block; in nats, up to a constant."""
    total = 0.0
    for (block, _), heads in zip(blocks(network), heads_by_block(network, attention), strict=True):
        weight, bias = (p.detach().double() for p in block.qkv.parameters())
        kinds = rows_by_kind(len(bias), heads, attention.new_order)
        for values in (bias, weight.flatten(1).norm(dim=1).clamp(min=1e-12).log()):
            variance = values[kinds].var(dim=1, correction=0).clamp(min=1e-12)
            total -= float(0.5 * kinds.shape[1] * variance.log().sum())
    return total


def rows_by_kind(rows: int, heads: int, new_order: bool) -> Tensor:
    """(3, rows / 3): the numbers of the rows of queries, keys and values."""
    numbers = torch.arange(rows)
    by_head = numbers.view(3, heads, -1) if new_order else numbers.view(heads, 3, -1).transpose(0, 1)
    return by_head.flatten(1)


def decisive(network: UNet) -> float:
    """The difference in nats that is more than chance: three standard deviations of fits to rows that are all alike."""
    return max(20.0, 3 * (FREEDOM * len(blocks(network))) ** 0.5)
