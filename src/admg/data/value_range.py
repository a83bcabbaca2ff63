"""The values of black and white: inferred where unambiguous, and always checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from .errors import DataError

ValueRange = tuple[float, float]
"""The values of black and white."""

ROUNDING = 1e-3
"""Excess over the range of floats, as a share of it, that counts as a rounding error and is clipped."""


def infer_range(images: Shaped[np.ndarray, ...], what: str = "the images") -> ValueRange:
    """Return the values of black and white in images of any type, if the type and the values make them unambiguous.

    See `clear_range`. Raises DataError if they are ambiguous.
    """
    return clear_range(images.dtype, *extremes(images, what), what)


def clear_range(dtype: np.dtype, low: float, high: float, what: str) -> ValueRange:
    """Return the values of black and white of images of this type that range from `low` to `high`.

    8 bits always range from 0 to 255. 16 bits without a sign range from 0 to 65535 if some value needs the highest bit:
    cameras and scanners store 10, 12 or 14 bits in 16. Floats in [0, 1] have no negative value and reach above 0.5;
    floats in [-1, 1] reach below -0.5. Raises DataError for anything else, for example floats from 0 to 255, or a few
    negative values left by a resampling filter.
    """
    dtype = dtype.newbyteorder("=")  # ">u2" of a big-endian file is unequal to uint16
    if dtype == np.uint8:
        check_8_bits(low, high, what)
        return 0, 255
    if np.issubdtype(dtype, np.floating):
        if low >= 0 and 0.5 < high <= 1 + ROUNDING:
            return 0.0, 1.0
        if -1 - 2 * ROUNDING <= low < -0.5 and high <= 1 + 2 * ROUNDING:
            return -1.0, 1.0
        raise DataError(
            f"{what} are floats from {low:.4g} to {high:.4g}, which is neither clearly [0, 1] nor clearly [-1, 1]: "
            f"pass the values of black and white, value_range=(LOW, HIGH)"
        )
    if dtype == np.uint16 and high > 32767:
        return 0, 65535
    state = f"pass the values of black and white, value_range=(LOW, HIGH), such as {usual(low, high)}"
    if dtype == np.uint16:
        raise DataError(
            f"{what} are of type uint16 with values from {low:g} to {high:g}, which may be dark or have fewer "
            f"bits than 16: {state} or 0,65535"
        )
    raise DataError(
        f"{what} are of type {dtype}, whose range is ambiguous: use uint8, or floats in [0, 1] or [-1, 1]; or, since "
        f"they range from {low:g} to {high:g}, {state}"
    )


STATE = "pass the values of black and white, value_range=(LOW, HIGH), such as 0,1 or 0,255"
"""Remedy for 8-bit images of 0 and 1, where files are read."""


def check_8_bits(low: float, high: float, what: str, remedy: str = STATE) -> None:
    """Raise DataError for 8-bit images whose only values are 0 and 1, as masks and binary digits have them."""
    if (low, high) == (0, 1):
        raise DataError(f"{what} have only the values 0 and 1 of 0 to 255, all black: {remedy}")


def check_array_8_bits(images: Any, what: str, remedy: str = STATE) -> None:
    """Call `check_8_bits` for images (N, ...), of which usually only the first ones are read."""
    if len(images) and images[0:16].max() <= 1:
        values = images[0 : len(images)]
        check_8_bits(int(values.min()), int(values.max()), what, remedy)


def usual(low: float, high: float) -> str:
    """Return the usual range of integers from `low` to `high`, as text LOW,HIGH."""
    if low >= 0:
        bits = max(8, int(high).bit_length() + int(high).bit_length() % 2)  # sensors have 8, 10, 12 or 14 bits
        return f"0,{2**bits - 1}"
    return f"{low:g},{high:g}"


def check_range(value_range: ValueRange) -> None:
    """Raise DataError unless the range is two finite numbers in increasing order."""
    if len(value_range) != 2 or not np.isfinite(value_range).all() or not value_range[1] > value_range[0]:
        raise DataError(f"value_range must be the values of black and white, such as (0, 1), got {value_range}")


def to_signed(
    images: Shaped[np.ndarray, "*shape"], value_range: ValueRange, what: str = "the images"
) -> Float[np.ndarray, "*shape"]:
    """Map images from their range to float32 in [-1, 1]. Raises DataError if a value is outside of the range."""
    check_inside(images, value_range, what)
    black, white = value_range
    if (black, white) == (-1, 1):
        return images.astype(np.float32).clip(-1, 1)
    return ((images.astype(np.float64) - black) * (2 / (white - black)) - 1).clip(-1, 1).astype(np.float32)


def to_8_bits(
    images: Shaped[np.ndarray, "*shape"], value_range: ValueRange, what: str = "the images"
) -> UInt8[np.ndarray, "*shape"]:
    """Map images from their range to 0..255, rounded. Raises DataError if a value is outside of the range."""
    check_inside(images, value_range, what)
    black, white = value_range
    values = (images.astype(np.float64) - black) * (255 / (white - black))
    return values.clip(0, 255).round().astype(np.uint8)


def check_inside(images: Shaped[np.ndarray, ...], value_range: ValueRange, what: str) -> None:
    """Raise DataError if a value is not finite or outside of the range."""
    check_extremes(images.dtype, *extremes(images, what), value_range, what)


def check_extremes(dtype: np.dtype, low: float, high: float, value_range: ValueRange, what: str) -> None:
    """Raise DataError if values of this type from `low` to `high` are outside of the range."""
    check_range(value_range)
    black, white = value_range
    slack = ROUNDING * (white - black) if np.issubdtype(dtype, np.floating) else 0
    if low < black - slack or high > white + slack:
        raise DataError(f"values of {what} range from {low:.6g} to {high:.6g}, outside [{black:g}, {white:g}]")


def extremes(images: Shaped[np.ndarray, ...], what: str) -> tuple[float, float]:
    """Return the least and the largest value. Raises DataError if a value is not finite."""
    low, high = float(images.min()), float(images.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"some values of {what} are not finite")
    return low, high
