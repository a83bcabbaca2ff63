"""Operations on many tensors at once, in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lerp_(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Replace each tensor by tensor + weight (end - tensor).

    The operator is private to torch, whose optimisers also use it; tested with torch 2.13.
    """
    torch._foreach_lerp_(list(tensors), list(ends), weight)
