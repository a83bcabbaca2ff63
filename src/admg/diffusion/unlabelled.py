"""Images without a label, -1, for networks that take only labels or none."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rows = Tensor | slice


def called_apart(y: Tensor | None, call: Callable[[Rows, Tensor | None], Tensor]) -> Tensor:
    """Return call(rows, y) for the images with a label and call(rows, None) for those without, in their order.

    y: (N,) labels, -1 for an image without one; None if no image has one
    """
    if y is None or not bool((y < 0).any()):
        return call(slice(None), y)
    if bool((y < 0).all()):
        return call(slice(None), None)
    labelled, unlabelled = ((y >= 0).nonzero().flatten(), (y < 0).nonzero().flatten())
    outputs = torch.cat([call(labelled, y[labelled]), call(unlabelled, None)])
    return outputs[torch.cat([labelled, unlabelled]).argsort()]
