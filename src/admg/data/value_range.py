"""The value range of float images: inferred where that is safe, checked always."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

from .errors import DataError

ValueRange = tuple[float, float]
"""The values of black and white."""

ROUNDING = 1e-3
"""Excess over the range, as a share of it, that is taken for rounding and clipped."""


def infer_range(images: Shaped[np.ndarray, ...], what: str = "the images") -> ValueRange:
    """Return (0, 1) or (-1, 1), whichever the float images clearly have.

    Images in [0, 1] have no negative value and reach above 0.5; images in [-1, 1] reach below -0.5. Raises DataError
    for anything else, for example 0 to 255, or a few negative values left by a resampling filter.
    """
    low, high = extremes(images, what)
    if low >= 0 and 0.5 < high <= 1 + ROUNDING:
        return 0.0, 1.0
    if -1 - 2 * ROUNDING <= low < -0.5 and high <= 1 + 2 * ROUNDING:
        return -1.0, 1.0
    raise DataError(
        f"{what} are floats from {low:.4g} to {high:.4g}, which is neither clearly [0, 1] nor clearly [-1, 1]: state "
        f"value_range=(0, 1), (-1, 1) or the values of black and white, or use uint8"
    )


def to_signed(
    images: Shaped[np.ndarray, "*shape"], value_range: ValueRange, what: str = "the images"
) -> Float[np.ndarray, "*shape"]:
    """Map float images from their range to float32 in [-1, 1]. Raises DataError if a value is outside of the range."""
    black, white = value_range
    if not white > black:
        raise DataError(f"value_range is {value_range}: allowed are the values of black and white, such as (0, 1)")
    low, high = extremes(images, what)
    slack = ROUNDING * (white - black)
    if low < black - slack or high > white + slack:
        raise DataError(f"values of {what} range from {low:.4g} to {high:.4g}, outside of [{black:g}, {white:g}]")
    if (black, white) == (-1, 1):
        return images.astype(np.float32).clip(-1, 1)
    return ((images.astype(np.float64) - black) * (2 / (white - black)) - 1).clip(-1, 1).astype(np.float32)


def extremes(images: Shaped[np.ndarray, ...], what: str) -> tuple[float, float]:
    """Return the least and the largest value. Raises DataError if a value is not finite."""
    low, high = float(images.min()), float(images.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"some values of {what} are not finite")
    return low, high
