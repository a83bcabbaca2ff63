"""Gradients of functions of x_t or of the predicted x_0, for LossGuidance, inverse problems and classifier options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images, working_dtype

from .state import State

At = Literal["x", "x0"]


def gradient(
    function: Callable[[Images], Float[Tensor, " n"]], state: State, at: At = "x", name: str = "the function"
) -> Float[Tensor, "n c h w"]:
    """Return ∇_x of function(x_t), or of function(x0-hat(x_t)) through the network; float32 (float64 for float64 x).

    function: function from images (N, C, H, W) to values (N,), each of which depends only on its own image
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
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must return a tensor computed by torch, got {type(value).__name__}")
        if value.shape != (len(x),):
            raise ValueError(f"{name} must return one value per image, ({len(x)},), got {tuple(value.shape)}")
        return differentiate(value, x, name).to(working_dtype(x))


def differentiate(value: Tensor, x: Images, name: str) -> Tensor:
    """Return the gradient of the sum of the values in x. Raises ValueError if they do not depend on x."""
    found = torch.autograd.grad(value.sum(), x, allow_unused=True)[0] if value.requires_grad else None
    if found is None:
        raise ValueError(f"{name} must depend on the image and be differentiable: without no_grad, detach or numpy")
    return found


def check_at(at: str) -> None:
    """Raise ValueError if `at` is neither "x" nor "x0"."""
    if at not in get_args(At):
        raise ValueError(f"at must be 'x' or 'x0', got {at!r}")
