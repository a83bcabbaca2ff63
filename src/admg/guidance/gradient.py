"""Gradients of functions of x_t or of the predicted x_0, for LossGuidance, inverse problems and classifier options."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images

from .state import State

At = Literal["x", "x0"]


def gradient(
    function: Callable[[Images], Float[Tensor, " n"]], state: State, at: At = "x", name: str = "the function"
) -> Float[Tensor, "n c h w"]:
    """Return ∇_x of function(x_t), or of function(x0-hat(x_t)) through the network; float32 (float64 for float64 x).

    function: function from images (N, C, H, W) to values (N,), each of which depends on its own image alone
    at: "x" differentiates at x_t; "x0" at the network's own prediction of x_0, neither clipped nor modified by guides
    name: name of the function in error messages

    Raises ValueError if the function returns another shape, or values that do not depend on the images.
    """
    with torch.enable_grad():
        if at == "x":
            x = state.x.detach().requires_grad_(True)
            value = function(x)
        else:
            x, prediction = state.differentiable()
            value = function(prediction.x0)
        if value.shape != (len(x),):
            raise ValueError(f"{name} must return one value for each of {len(x)} images, not {tuple(value.shape)}")
        if not value.requires_grad:
            raise ValueError(f"{name} does not depend on the image, or is not differentiable")
        return torch.autograd.grad(value.sum(), x)[0].to(dtype_of(x))


def bounded(score: Images, state: State) -> Images:
    """Return the gradient of a function of x_0 with each entry limited to ±2 sqrt(ᾱ)/(1 - ᾱ), if x0 is clipped.

    No exact score exceeds that bound. By Tweedie's formula ∇_x log E[f(x_0) | x_t] = sqrt(ᾱ)/(1 - ᾱ) (E_f[x_0 | x_t] -
    E[x_0 | x_t]) for any f >= 0, where E_f is weighted by f, and two means of images in [-1, 1] differ by at most 2.
    Near pure noise a gradient through the network's x0-hat is far larger, since errors of eps count 1/sqrt(ᾱ) times.
    """
    if not state.clip:  # then the range of x_0 is not known
        return score
    alpha_bar = state.diffusion.schedule.alpha_bar[state.index].item()
    limit = 2 * math.sqrt(alpha_bar) / (1 - alpha_bar)
    return score.clamp(-limit, limit)


def check_at(at: str) -> None:
    """Raise ValueError if `at` is neither "x" nor "x0"."""
    if at not in get_args(At):
        raise ValueError(f"the gradient is taken at 'x' or 'x0', not at {at!r}")


def dtype_of(x: Tensor) -> torch.dtype:
    """Return float64 for a float64 tensor and float32 for any other."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
