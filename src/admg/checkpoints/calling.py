"""Calls of a diffusion network: labels and timesteps as it takes them, and clear errors for what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from admg.diffusion.gaussian import Images
from admg.diffusion.unlabelled import Rows, called_apart

from .networks import our_networks, unwrapped

HALF = (torch.float16, torch.bfloat16)


def call_network(
    network: Callable[..., Any], x: Images, timesteps: Tensor, y: Tensor | None, null_label: int | None, **given: Any
) -> Images:
    """Return the output of a network, (N, C or 2C, H, W).

    Networks of ours take one timestep for all images, and the label -1 for an image without one. A network of the
    user's own gets a timestep for each image and no negative label: images without a label have `null_label`, or are
    passed in a call of their own without `y`.

    timesteps: (N,), or (1,) for all images
    y: (N,) labels, -1 for an image without one; None for no labels
    null_label: see Model
    given: further arguments; tensors with a row for each image are divided with the images

    Raises ValueError if the network does not return a tensor, or if its weights have another precision than x.
    """
    if isinstance(network, nn.Module) and our_networks(network):
        return _checked(network, x, timesteps, **given, **({} if y is None else {"y": y}))
    timesteps = timesteps.expand(len(x))
    if null_label is not None:
        y = torch.full((len(x),), null_label, device=x.device) if y is None else torch.where(y < 0, null_label, y)
        return _checked(network, x, timesteps, y=y, **given)

    def call(rows: Rows, y: Tensor | None) -> Tensor:
        own = rows_of(given, rows, len(x)) | ({} if y is None else {"y": y})
        return _checked(network, x[rows], timesteps[rows], **own)

    return called_apart(y, call)


def rows_of(given: Mapping[str, Any], images: Rows | list[int], total: int) -> dict[str, Any]:
    """Return arguments of a network with only the rows of some images, where a tensor has a row for each of `total`."""
    return {
        name: value[images] if isinstance(value, Tensor) and value.ndim and len(value) == total else value
        for name, value in given.items()
    }


def _checked(network: Callable[..., Any], x: Images, timesteps: Tensor, **given: Any) -> Images:
    try:
        output = network(x, timesteps, **given)
    except RuntimeError as error:
        weight = next(iter(unwrapped(network).parameters()), None) if isinstance(network, nn.Module) else None
        if weight is not None and weight.dtype in HALF and x.dtype not in HALF and "type" in str(error):
            raise ValueError(
                f"the weights of the network are {str(weight.dtype).removeprefix('torch.')}, but images are "
                f"{str(x.dtype).removeprefix('torch.')}: convert it with network.float(); precision='bf16' or 'fp16' "
                "then samples in half precision"
            ) from error
        raise
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the network must return a tensor (N, C or 2C, H, W), got a {type(output).__name__}: pass a module that "
            "returns the tensor in it"
        )
    return output
