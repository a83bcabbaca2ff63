"""Convert a U-Net to diffusers' UNet2DModel: the arguments of its constructor, and its state dict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from admg.models import UNet, UNetConfig
from admg.models.blocks import AttentionBlock, Downsample, GroupNorm32, ResBlock, Upsample, timestep_embedding, zero
from admg.models.unet import DDPM_EPSILON

RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
TABLE_ERROR = 1e-4  # of a sinusoid; its float32 values are no more exact at t = 1000


def unet2d_config(network: UNet, timesteps: Tensor, mean_only: bool = False) -> dict[str, Any]:
    """Return the arguments of UNet2DModel, as in its config.json.

    timesteps: (T,) timesteps given to the network at each step; diffusers gives 0 to T-1
    mean_only: omit the channels of a learned variance

    Raises ValueError for a feature that UNet2DModel lacks.
    """
    c = network.config
    levels = range(len(c.channel_mult))
    attends = [c.attends(level) for level in levels]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if c.resblock_updown else ("DownBlock2D", "UpBlock2D")
    resample = "resnet" if c.resblock_updown else "conv"
    by_table = needs_table(c, timesteps)
    return {
        "_class_name": "UNet2DModel",
        "sample_size": c.image_size,
        "in_channels": first_conv(network).in_channels,
        "out_channels": c.image_channels * (2 if c.learn_variance and not mean_only else 1),
        "center_input_sample": False,
        "time_embedding_type": "learned" if by_table else "positional",
        "time_embedding_dim": c.emb_dim,
        "num_train_timesteps": len(timesteps) if by_table else None,
        "freq_shift": int(c.ddpm_layers),
        "flip_sin_to_cos": True,  # cosines first
        "down_block_types": ["AttnDownBlock2D" if attends[level] else plain[0] for level in levels],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ["AttnUpBlock2D" if attends[level] else plain[1] for level in reversed(levels)],
        "block_out_channels": [c.width(level) for level in levels],
        "layers_per_block": c.num_res_blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": 0 if c.ddpm_layers else 1,
        "downsample_type": resample,
        "upsample_type": resample,
        "dropout": c.dropout,
        "act_fn": "silu",
        "attention_head_dim": head_dim(c),
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "norm_eps": DDPM_EPSILON if c.ddpm_layers else 1e-5,
        "resnet_time_scale_shift": "scale_shift" if c.scale_shift_norm else "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": c.num_classes or None,
    }


def unet2d_state(network: UNet, timesteps: Tensor, mean_only: bool = False) -> dict[str, Tensor]:
    """Return the state dict for unet2d_config, on the CPU in float32: the same values in another order."""
    state: dict[str, Tensor] = {}
    for name, module in blocks(network):
        state |= {f"{name}.{key}": value for key, value in converted(module)}
    if needs_table(network.config, timesteps):
        weight = state["time_embedding.linear_1.weight"]
        state["time_proj.weight"], state["time_embedding.linear_1.weight"] = time_table(
            timesteps, weight, network.config.width(0), network.config.ddpm_layers
        )
    if mean_only:
        for key in ("conv_out.weight", "conv_out.bias"):
            state[key] = state[key][: network.config.image_channels]
    return {key: value.detach().to("cpu", torch.float32).contiguous() for key, value in state.items()}


def first_conv(network: UNet) -> nn.Conv2d:
    (conv,) = network.input_blocks[0].children()
    return cast(nn.Conv2d, conv)


# -- what UNet2DModel can express --------------------------------------------------------------------------------------


def head_dim(c: UNetConfig) -> int | None:
    """Return the channels per attention head, or None for a single head. UNet2DModel has one number for all levels."""
    if c.head_channels:
        return c.head_channels
    if c.num_heads_upsample not in (0, c.num_heads):
        raise ValueError(
            f"diffusers' UNet2DModel has no num_heads_upsample: {c.num_heads_upsample} heads in the decoder and "
            f"{c.num_heads} in the encoder cannot be exported"
        )
    dims = {c.width(level) // c.num_heads for level in c.attention_levels}
    if len(dims) == 1:
        return dims.pop()
    if c.num_heads == 1:
        return None
    shown = ", ".join(map(str, sorted(dims)))
    raise ValueError(
        f"diffusers' UNet2DModel has one number of channels per attention head: {c.num_heads} heads at every width, "
        f"with {shown} channels each, cannot be exported"
    )


def needs_table(c: UNetConfig, timesteps: Tensor) -> bool:
    """Return whether the time embedding must be a table of the steps, instead of UNet2DModel's own sinusoids.

    Those have as many channels as the first level, and the timesteps 0 to T-1.
    """
    return c.width(0) != c.channels or not torch.equal(timesteps.double(), torch.arange(len(timesteps)).double())


def time_table(timesteps: Tensor, weight: Tensor, width: int, endpoint: bool = False) -> tuple[Tensor, Tensor]:
    """Return a table (T, width) and a matrix (4C, width) whose product equals sinusoids (T, C) @ weight.T.

    weight: (4C, C) weight of the first linear layer of the time embedding
    endpoint: see timestep_embedding

    If width < C, the table holds the leading singular vectors of the sinusoids. The low frequencies of T steps are
    almost linearly dependent, so slightly more than half of the vectors can be enough, as for the 256 sinusoids of
    ImageNet-512's 1000 steps in 128 channels.

    Raises ValueError if they are not enough.
    """
    weight = weight.detach().cpu().float()
    table = timestep_embedding(timesteps.cpu(), weight.shape[1], endpoint=endpoint)
    missing = width - table.shape[1]
    if missing >= 0:
        return nn.functional.pad(table, (0, missing)), nn.functional.pad(weight, (0, missing))
    u, s, vh = torch.linalg.svd(table.double(), full_matrices=False)
    small = u[:, :width] * s[:width]
    error = (small @ vh[:width] - table).abs().max().item()
    if error > TABLE_ERROR:
        raise ValueError(
            f"diffusers' UNet2DModel embeds time in as many channels as the first level has, {width}: this model needs "
            f"{table.shape[1]} (its channel_mult starts below 1), and {len(table)} steps cannot be embedded in fewer"
        )
    return small.float(), (weight.double() @ vh[:width].T).float()


# -- names and tensors -------------------------------------------------------------------------------------------------


def blocks(network: UNet) -> Iterator[tuple[str, nn.Module]]:
    """Yield each block with its name in UNet2DModel, in the order of guided-diffusion."""
    c, levels = network.config, len(network.config.channel_mult)
    yield "time_embedding.linear_1", network.time_embed[0]
    yield "time_embedding.linear_2", network.time_embed[2]
    if c.num_classes:
        yield "class_embedding", network.label_emb
    yield "conv_in", first_conv(network)

    stages = iter(network.input_blocks[1:])
    for level in range(levels):
        for i in range(c.num_res_blocks):
            yield from zip(
                (f"down_blocks.{level}.resnets.{i}", f"down_blocks.{level}.attentions.{i}"), next(stages).children()
            )
        if level < levels - 1:
            (layer,) = next(stages).children()
            yield resampler(f"down_blocks.{level}.downsamplers.0", layer, c, level)

    yield from zip(
        ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"), network.middle_block.children()
    )

    stages = iter(network.output_blocks)
    for k, level in enumerate(reversed(range(levels))):
        for i in range(c.num_res_blocks + 1):
            resnet, *others = next(stages).children()
            yield f"up_blocks.{k}.resnets.{i}", resnet
            for layer in others:
                if isinstance(layer, AttentionBlock):
                    yield f"up_blocks.{k}.attentions.{i}", layer
                else:
                    yield resampler(f"up_blocks.{k}.upsamplers.0", layer, c, level)

    yield "conv_norm_out", network.out[0]
    yield "conv_out", network.out[2]


def resampler(name: str, layer: nn.Module, config: UNetConfig, level: int) -> tuple[str, nn.Module]:
    """Return the resampling layer of a level: a residual block, or a convolution.

    UNet2DModel always has a convolution, so the 2x2 mean and the nearest neighbour are expressed as convolutions.
    """
    if isinstance(layer, ResBlock):
        return name, layer
    assert isinstance(layer, Downsample | Upsample)
    conv = getattr(layer, "op" if isinstance(layer, Downsample) else "conv", None)
    if not isinstance(conv, nn.Conv2d):
        width = config.width(level)
        conv = zero(nn.Conv2d(width, width, 3))
        same = torch.eye(width)[:, :, None, None]
        first = 0 if config.ddpm_layers else 1  # which pads at the bottom and right alone
        with torch.no_grad():
            if isinstance(layer, Downsample):
                conv.weight[:, :, first : first + 2, first : first + 2] = 0.25 * same  # with stride 2: the 2x2 mean
            else:
                conv.weight[:, :, 1:2, 1:2] = same
    return f"{name}.conv", conv


def converted(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a block under the names of UNet2DModel."""
    if isinstance(module, ResBlock):
        for ours, theirs in RES_BLOCK.items():
            for key, value in module.get_submodule(ours).state_dict().items():
                yield f"{theirs}.{key}", value
    elif isinstance(module, AttentionBlock):
        for kind in ("weight", "bias"):
            yield f"group_norm.{kind}", getattr(module.norm, kind)
            for name, rows in zip(("to_q", "to_k", "to_v"), split_rows(module, getattr(module.qkv, kind))):
                yield f"{name}.{kind}", rows
        for key, value in module.proj_out.state_dict().items():
            yield f"to_out.0.{key}", value[:, :, 0] if key == "weight" else value
    elif isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding | GroupNorm32):
        yield from module.state_dict().items()
    else:
        raise TypeError(f"no counterpart of {type(module).__name__}")


def split_rows(attention: AttentionBlock, qkv: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of q, k and v (heads x channels each), without the last dimension of the 1x1 convolution."""
    tail = qkv.shape[1:2]
    if attention.new_order:
        parts = qkv.reshape(3, attention.heads, -1, *tail).unbind(0)
    else:
        parts = qkv.reshape(attention.heads, 3, -1, *tail).unbind(1)
    return tuple(part.reshape(-1, *tail) for part in parts)
