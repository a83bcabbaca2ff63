"""`spread_indices`: a part of a data set in which all its classes and types of files can be expected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread_indices(total: int, num: int) -> Sequence[int]:
    """Return `num` indices, one at random from each of as many equal parts of 0 .. total-1, or all if there are fewer.

    They are always the same ones. The first images of a folder would all be of its first class, and evenly spaced
    images of samples, whose labels recur in a cycle, could all be of one class, too.
    """
    if num >= total:
        return range(total)
    bounds = np.arange(num + 1) * total // num
    offsets = np.random.default_rng(0).random(num) * np.diff(bounds)
    return [int(index) for index in bounds[:-1] + offsets.astype(np.int64)]
