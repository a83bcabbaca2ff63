"""Bounds for tests that compare two ways of computing the same network: unit roundoff times measured amplification.

A network amplifies rounding errors by a factor that depends on its weights and its input. These helpers measure that
factor by making errors of a known size, so that a bound need not be read off one machine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

DRAWS = 4


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to the nearest number of this format."""
    return torch.finfo(dtype).eps / 2


def outputs_with_rounding(
    network: nn.Module, modules: list[nn.Module], dtype: torch.dtype, call: Callable[[nn.Module], Tensor]
) -> list[Tensor]:
    """call(network) for several draws of rounding errors: each output of these modules changes by at most u of itself.

    u is the unit roundoff of `dtype`. This is what happens if these modules store their results in this format.
    """
    u, found = unit_roundoff(dtype), []
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)

        def rounded(module: nn.Module, args: object, output: Tensor, generator=generator) -> Tensor:
            return output * (1 + u * (2 * torch.rand(output.shape, generator=generator) - 1))

        handles = [module.register_forward_hook(rounded) for module in modules]
        try:
            found.append(call(network))
        finally:
            for handle in handles:
                handle.remove()
    return found


def with_rounded_weights(network: nn.Module, terms: int, seed: int) -> nn.Module:
    """A copy of the network whose weights differ by relative errors up to sqrt(terms) u, u of the weights' own format.

    A sum of products computed in floating point is the exact sum for weights that differ by at most about that much
    (Higham and Mary 2019: sqrt(n) u for n terms). Two ways to compute a layer differ by as much as two such copies.
    """
    generator = torch.Generator().manual_seed(seed)
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for p in changed.parameters():
            size = unit_roundoff(p.dtype) * terms**0.5
            p.mul_(1 + size * (2 * torch.rand(p.shape, generator=generator).to(p) - 1))
    return changed
