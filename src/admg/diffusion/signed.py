"""Whether tensors are images in [-1, 1], as models make and take them, or the noise that sampling begins with."""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from .gaussian import Images

FAR = 3.0
"""Magnitude of values that generated images, which may leave [-1, 1] a little, do not reach."""
LOUD = 5.0
"""Root mean square that x_T does not reach: its values have unit variance."""


def check_signed(images: Images, what: str = "images") -> None:
    """Check that images that a user gives are in about [-1, 1], as models make and take them.

    Raises ValueError for integers, for values that are not finite, and for values that a model's are far from, such as
    0 to 255. Warns of images that are probably in [0, 1], since black is -1.
    """
    if not images.is_floating_point():
        raise ValueError(f"{what} are of type {images.dtype}: expected are floats in [-1, 1], such as x / 127.5 - 1")
    if images.is_meta or not images.numel():
        return
    low, high = (float(value) for value in images.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{what} have values that are not finite")
    if low < -FAR or high > FAR:
        raise ValueError(f"{what} have values from {low:.4g} to {high:.4g}: expected are floats in [-1, 1]")
    if low >= 0 and 0.5 < high <= 1:
        warnings.warn(
            f"{what} have values from {low:.4g} to {high:.4g}, none below 0: expected is [-1, 1], where -1 is black",
            stacklevel=3,
        )


def check_noise(x_T: Images) -> None:
    """Raise ValueError unless x_T (N, C, H, W) are finite floats, of about the scale that sampling begins with.

    That is unit variance, which k-diffusion and EDM multiply by sigma_max. Weaker noise passes.
    """
    if not isinstance(x_T, Tensor) or not x_T.is_floating_point() or x_T.ndim != 4:
        raise ValueError("x_T must be a tensor of floats (N, C, H, W)")
    if x_T.is_meta or not x_T.numel():
        return
    found = x_T.float().square().flatten(1).mean(1).sqrt().max().item()
    if not math.isfinite(found):
        raise ValueError("x_T has values that are not finite")
    if found > LOUD:
        raise ValueError(
            f"x_T has a root mean square of {found:.4g}: sampling begins with noise of unit variance, which is not "
            "multiplied by sigma_max"
        )
