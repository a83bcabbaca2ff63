"""Checks of numbers, guidance scales that follow the noise level, and norms of images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images

Scale = float | Callable[[float], float]
"""A number, or a function of the noise level State.sigma that returns one."""


def finite(number: float, name: str) -> float:
    """Return the number. Raises ValueError with the name if it is infinite, NaN or no number."""
    try:
        if math.isfinite(number):
            return number
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be a finite number, got {number!r}") from None
    raise ValueError(f"{name} must be a finite number, got {number}")


def check_scale(scale: Scale) -> None:
    """Raise ValueError if the scale is a number that is not finite. A function is checked when it is called."""
    if not callable(scale):
        finite(scale, "the guidance scale")


def scale_at(scale: Scale, sigma: float) -> float:
    """Return the scale at a noise level. Raises ValueError if it is not finite."""
    return finite(scale(sigma) if callable(scale) else scale, f"the guidance scale at noise level {sigma:.3g}")


def per_image_norm(g: Images) -> Float[Tensor, "n 1 1 1"]:
    """Return the Euclidean norm of each image."""
    norm: Tensor = torch.linalg.vector_norm(g.flatten(1), dim=1)
    return norm.view(-1, 1, 1, 1)


def clip_norm(g: Images, max_norm: float) -> Images:
    """Return the images with the Euclidean norm of each limited to max_norm, which may be inf."""
    return g if max_norm == math.inf else g * (max_norm / per_image_norm(g).clamp(min=1e-12)).clamp(max=1)


def projection(a: Images, b: Images) -> Float[Tensor, "n 1 1 1"]:
    """Return <a, b>/<b, b> of each image: the s that minimises ||a - s b||."""
    dot, square = ((u * v).flatten(1).sum(1).view(-1, 1, 1, 1) for u, v in ((a, b), (b, b)))
    return dot / square.clamp(min=1e-12)
