"""Evidence in the weights for the order of the rows of qkv: rows of queries, keys and values differ statistically.

Training never changes the bias of the keys, on which softmax does not depend, and scales the three kinds of rows
differently. Under the right order, rows of the same kind are therefore alike. This needs no images, and is stronger
evidence than the denoising error where the attention has little effect. It does not determine the number of heads of
the new order, in which each kind is a third of the rows for any number of heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from admg.models import UNet

from .candidates import Attention, blocks, heads_by_block

PARAMETERS_PER_BLOCK = 10
"""Fitted parameters per block: means and variances by kind, minus those of all rows."""


def log_likelihood(network: UNet, attention: Attention) -> float:
    """Return the log-likelihood of the rows' biases and norms, in nats up to a constant.

    Each kind of row in each block has a normal distribution of its own.
    """
    total = 0.0
    for (block, _), heads in zip(blocks(network), heads_by_block(network, attention), strict=True):
        weight, bias = (p.detach().double() for p in block.qkv.parameters())
        kinds = rows_by_kind(len(bias), heads, attention.new_order)
        for values in (bias, weight.flatten(1).norm(dim=1).clamp(min=1e-12).log()):
            variance = values[kinds].var(dim=1, correction=0).clamp(min=1e-12)
            total -= float(0.5 * kinds.shape[1] * variance.log().sum())
    return total


def rows_by_kind(rows: int, heads: int, new_order: bool) -> Tensor:
    """Return the indices of the rows of queries, keys and values, (3, rows / 3)."""
    numbers = torch.arange(rows)
    by_head = numbers.view(3, heads, -1) if new_order else numbers.view(heads, 3, -1).transpose(0, 1)
    return by_head.flatten(1)


def decisive(network: UNet) -> float:
    """Return the significant difference in nats: three standard deviations under the hypothesis of equal rows."""
    return max(20.0, 3 * math.sqrt(PARAMETERS_PER_BLOCK * len(blocks(network))))
