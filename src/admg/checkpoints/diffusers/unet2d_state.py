"""The weights of a UNet2DModel under the names of admg's U-Net: the inverse of unet2d.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from admg.checkpoints.weights import compare, shapes_in
from admg.models import UNet
from admg.models.blocks import AttentionBlock, ResBlock, timestep_embedding

from .unet2d import RES_BLOCK, blocks

OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers in files of diffusers before 0.15, and their names now."""


def our_state(network: UNet, theirs: dict[str, Tensor], *, cosines_first: bool, source: str) -> dict[str, Tensor]:
    """Return the state dict of our network, which may be on the meta device.

    theirs: state dict of the UNet2DModel
    cosines_first: whether its sinusoids are in our order (flip_sin_to_cos)
    source: name of the file, for errors

    Raises CheckpointError if the weights do not fit the architecture.
    """
    theirs = {newer(name): value for name, value in theirs.items()}
    names = {id(module): name for name, module in network.named_modules()}
    parts: dict[str, list[str]] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for there, module in blocks(network):
        for key, sources in _counterparts(module):
            name = f"{names[id(module)]}.{key}"
            rows, *columns = network.get_parameter(name).shape
            tail = columns[:1] if isinstance(module, AttentionBlock) else columns  # without that of a 1x1 convolution
            parts[name] = [f"{there}.{source}" for source in sources]
            expected |= dict.fromkeys(parts[name], (rows // len(sources), *tail))
    compare(source, expected, shapes_in(theirs))
    state = {
        name: torch.cat([theirs[part] for part in of]).reshape(network.get_parameter(name).shape)
        for name, of in parts.items()
    }
    if not cosines_first:
        sines, cosines = state["time_embed.0.weight"].chunk(2, dim=1)
        state["time_embed.0.weight"] = torch.cat([cosines, sines], dim=1)
    return state


def newer(name: str) -> str:
    """Return the present name of a tensor."""
    return re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{OLDER[m[2]]}.", name)


def _counterparts(module: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each tensor of a block of ours, and those of the tensors of UNet2DModel it consists of."""
    if isinstance(module, ResBlock):
        for ours, theirs in RES_BLOCK.items():
            for key in module.get_submodule(ours).state_dict():
                yield f"{ours}.{key}", [f"{theirs}.{key}"]
    elif isinstance(module, AttentionBlock):
        for kind in ("weight", "bias"):
            yield f"norm.{kind}", [f"group_norm.{kind}"]
            yield f"qkv.{kind}", [f"{name}.{kind}" for name in ("to_q", "to_k", "to_v")]  # the new order
            yield f"proj_out.{kind}", [f"to_out.0.{kind}"]
    else:
        for key in module.state_dict():
            yield key, [key]


@dataclass(frozen=True)
class TableFit:
    """Weights of sinusoids in place of a table, and the largest difference that they make."""

    weight: Tensor
    error: float


def from_table(table: Tensor, weight: Tensor, timesteps: Tensor, channels: int, endpoint: bool) -> TableFit:
    """Return the weight (4C, C) for which sinusoids of the timesteps give most nearly what a table of T steps gives.

    table: learned time embedding (T, W) of a UNet2DModel
    weight: (4C, W) weight of the linear layer after it
    timesteps: (T,) timesteps that our network is given
    channels: number of sinusoids, C
    endpoint: see timestep_embedding
    """
    table, weight = table.double(), weight.double()
    sinusoids = timestep_embedding(timesteps.double(), channels, dtype=torch.float64, endpoint=endpoint)
    # sinusoids of low frequencies are nearly dependent, so that many weights fit: a small one, which float32 holds
    solution: Tensor = torch.linalg.lstsq(sinusoids, table @ weight.T, rcond=1e-6, driver="gelsd").solution
    rounded = solution.float()
    return TableFit(rounded.T.contiguous(), (sinusoids @ rounded.double() - table @ weight.T).abs().max().item())
