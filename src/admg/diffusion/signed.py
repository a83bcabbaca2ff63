"""Checks that tensors are images in [-1, 1], the range of models, or noise at which sampling can begin."""

from __future__ import annotations

import math

from torch import Tensor

from admg.warn import warn

from .gaussian import Images

MAX_ABS_VALUE = 3.0
"""Upper limit of the magnitude of generated images, which may slightly exceed [-1, 1]."""
BEYOND, MAX_SHARE_BEYOND = 1.05, 0.01
"""Largest share of values whose magnitude may exceed 1.05. Images normalised by mean and deviation have more."""
MAX_NOISE_RMS = 5.0
"""Upper limit of the root mean square of x_T, whose values have unit variance."""


def check_signed(images: Images, what: str = "images") -> None:
    """Check that a user's images are approximately in [-1, 1], the range of a model's images.

    Raises ValueError for integers, for values that are not finite, and for values far outside this range, such as 0 to
    255, or more than 1 % of values beyond ±1.05. Warns of images that are probably in [0, 1], since black is -1.
    """
    if not images.is_floating_point():
        raise ValueError(f"{what} must be floats in [-1, 1], such as x / 127.5 - 1, got {images.dtype}")
    if images.is_meta or not images.numel():
        return
    low, high = (float(value) for value in images.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{what} have values that are not finite")
    if low < -MAX_ABS_VALUE or high > MAX_ABS_VALUE:
        raise ValueError(f"{what} must be floats in [-1, 1], got values from {low:.4g} to {high:.4g}")
    share = float((images.abs() > BEYOND).float().mean()) if max(-low, high) > BEYOND else 0.0
    if share > MAX_SHARE_BEYOND:
        raise ValueError(
            f"{what} must be floats in [-1, 1], got values from {low:.4g} to {high:.4g}, {share:.0%} of them beyond "
            f"±{BEYOND}: if they were normalised by a mean and a standard deviation, undo this"
        )
    if low >= 0 and 0.5 < high <= 1:
        warn(f"{what} have values from {low:.4g} to {high:.4g}, none below 0: expected [-1, 1], where -1 is black")


def check_noise(x_T: Images) -> None:
    """Raise ValueError unless x_T (N, C, H, W) are finite floats of about the scale at which sampling begins.

    This is unit variance, which k-diffusion and EDM multiply by sigma_max. Weaker noise is accepted.
    """
    if not isinstance(x_T, Tensor) or not x_T.is_floating_point() or x_T.ndim != 4:
        raise ValueError("x_T must be a tensor of floats (N, C, H, W)")
    if x_T.is_meta or not x_T.numel():
        return
    rms = x_T.float().square().flatten(1).mean(1).sqrt().max().item()
    if not math.isfinite(rms):
        raise ValueError("x_T has values that are not finite")
    if rms > MAX_NOISE_RMS:
        raise ValueError(
            f"x_T must have unit variance and must not be multiplied by sigma_max, got a root mean square of {rms:.4g}"
        )
