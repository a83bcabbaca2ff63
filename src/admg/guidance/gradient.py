"""What gradient guides share: of a function of x_t or of the predicted x_0, with a scale that may follow the noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images

from .base import State

At = Literal["x", "x0"]
Scale = float | Callable[[float], float]
"""A number, or a function of the noise level State.sigma that gives one."""


def gradient(
    function: Callable[[Images], Float[Tensor, " n"]], state: State, at: At = "x", what: str = "the function"
) -> Float[Tensor, "n c h w"]:
    """∇_x of function(x_t), or of function(x0-hat(x_t)) through the network; each image's own, in float32.

    function: images (N, C, H, W) -> (N,), of which each value depends on its own image alone
    at: "x0": x0-hat is the network's own, neither clipped nor changed by other guides (State.differentiable)
    ValueError, naming `what`: it returns another shape, or nothing that depends on the image.
    """
    if at == "x":
        return gradient_at(function, state.x, what)
    x, prediction = state.differentiable()
    with torch.enable_grad():
        return _derivative(function(prediction.x0), x, what)


def gradient_at(
    function: Callable[[Images], Float[Tensor, " n"]], x: Images, what: str = "the function"
) -> Float[Tensor, "n c h w"]:
    """∇_x of function(x), as gradient() gives it."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return _derivative(function(x), x, what)


def _derivative(value: Float[Tensor, " n"], x: Images, what: str) -> Float[Tensor, "n c h w"]:
    if value.shape != (len(x),):
        raise ValueError(f"{what} must give one value for each of {len(x)} images, not {tuple(value.shape)}")
    if not value.requires_grad:
        raise ValueError(f"{what} does not depend on the image, or not differentiably")
    return torch.autograd.grad(value.sum(), x)[0].float()


def bounded(score: Images, state: State) -> Images:
    """The score of a function of x_0, each entry kept within ±2 sqrt(ᾱ)/(1 - ᾱ) where x0 is clipped to [-1, 1].

    No exact one is beyond: ∇_x log E[f(x_0) | x_t] = sqrt(ᾱ)/(1 - ᾱ) (E_f[x_0 | x_t] - E[x_0 | x_t]) for any f >= 0, by
    Tweedie's formula, where E_f is weighted by f, and two means of images in [-1, 1] are at most 2 apart. Through a
    network's x0-hat it is far beyond near pure noise, where errors of eps count 1/sqrt(ᾱ) times.
    """
    if not state.clip:  # then x_0 has no known range
        return score
    most = 2 * state.diffusion.at("sqrt_alpha_bar", state.index) / (1 - state.diffusion.at("alpha_bar", state.index))
    return score.clamp(-most, most)


def scale_at(scale: Scale, sigma: float) -> float:
    """The scale at this noise level. ValueError: it is not finite."""
    return finite(scale(sigma) if callable(scale) else scale, f"the guidance scale at noise level {sigma:.3g}")


def check_scale(scale: Scale) -> None:
    """ValueError: a number that is not finite; a function is checked where it is called."""
    if not callable(scale):
        finite(scale, "the guidance scale")


def check_at(at: str) -> None:
    if at not in get_args(At):
        raise ValueError(f"the gradient is taken at 'x' or 'x0', not at {at!r}")


def finite(number: float, what: str) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{what} must be a finite number, got {number}")
    return number


def per_image_norm(g: Images) -> Float[Tensor, "n 1 1 1"]:
    """The Euclidean norm of each image."""
    return torch.linalg.vector_norm(g.flatten(1), dim=1).view(-1, 1, 1, 1)


def per_image_dot(a: Images, b: Images) -> Float[Tensor, "n 1 1 1"]:
    return (a * b).flatten(1).sum(1).view(-1, 1, 1, 1)
