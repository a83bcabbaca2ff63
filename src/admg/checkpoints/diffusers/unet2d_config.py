"""The configuration of diffusers' UNet2DModel, and the U-Net of admg that computes the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from admg.checkpoints.weights import CheckpointError
from admg.models import SuperResConfig, UNetConfig
from admg.models.unet import DDPM_EPSILON

KINDS = {
    "DownBlock2D": (False, "conv"), "AttnDownBlock2D": (True, ""), "ResnetDownsampleBlock2D": (False, "resnet"),
    "UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, ""), "ResnetUpsampleBlock2D": (False, "resnet"),
}  # fmt: skip
"""Blocks with a counterpart: whether they have attention, and their resampling if it is not an option."""


class UNet2D(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of UNet2DModel with their defaults, as in its config.json."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    @property
    def side(self) -> int:
        """Height and width of the images. Raises ValueError if they are not known, or differ."""
        size = self.sample_size
        if size is None:
            raise ValueError("sample_size, the side of the images, is missing")
        if isinstance(size, tuple):
            if size[0] != size[1]:
                raise ValueError(f"sample_size {size[0]}x{size[1]}: only square images have a counterpart")
            return size[0]
        return size

    @property
    def channels(self) -> int:
        """The base width of our network: a fourth of the time embedding."""
        return (self.time_embedding_dim or 4 * self.block_out_channels[0]) // 4

    @property
    def ddpm_layers(self) -> bool:
        """Whether the details are those of DDPM's own network. Raises ValueError for a mixture of both."""
        values = (self.freq_shift, self.norm_eps, self.downsample_padding if self.pads else None)
        if values[:2] == (0, 1e-5) and values[2] in (1, None):
            return False
        if values[:2] == (1, DDPM_EPSILON) and values[2] in (0, None):
            return True
        shown = f"freq_shift {self.freq_shift:g}, norm_eps {self.norm_eps:g}"
        raise ValueError(
            f"{shown}, downsample_padding {self.downsample_padding}: only 0, 1e-05, 1 and 1, 1e-06, 0 (DDPM's own "
            "network) have a counterpart"
        )

    @property
    def pads(self) -> bool:
        """Whether downsample_padding has an effect: there is a strided convolution."""
        return len(self.down_block_types) > 1 and not self.resnet_resampling

    @property
    def resnet_resampling(self) -> bool:
        """Whether residual blocks resample. Raises ValueError if only some of the levels do so."""
        down = {KINDS[name][1] or self.downsample_type for name in self.down_block_types[:-1]}
        up = {KINDS[name][1] or self.upsample_type for name in self.up_block_types[:-1]}
        if len(down | up) > 1 or not down | up <= {"conv", "resnet"}:
            raise ValueError(f"resampling must be conv or resnet at all levels, got {' and '.join(sorted(down | up))}")
        return "resnet" in down | up


SHA256, LABEL_NAMES = "_admg_sha256", "_admg_label_names"
"""Entries of the config.json of our exports: the checksum of the weights, and the names of the labels if they have any.
diffusers ignores names that begin with "_"."""


def read_config(path: Path, content: dict[str, Any]) -> UNet2D:
    """Return the configuration in a config.json. Raises CheckpointError, naming the entry, if one is wrong."""
    given = {name: value for name, value in content.items() if not name.startswith("_")}
    try:
        return msgspec.convert(given, UNet2D)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}") from None


def network_config(c: UNet2D, learns_variance: bool, upsamples: bool) -> UNetConfig:
    """Return the architecture of the U-Net of admg that computes the same.

    learns_variance: whether half of the output channels are those of a variance
    upsamples: whether half of the input channels are those of a low-resolution image, which our exports have

    Raises ValueError for features without a counterpart.
    """
    check_counterparts(c)
    channels, parts = c.out_channels, 2 if learns_variance else 1
    if channels % parts or c.in_channels != channels // parts * (2 if upsamples else 1):
        raise ValueError(
            f"in_channels {c.in_channels} and out_channels {channels} do not fit: the network must predict an image "
            f"of as many channels as it is given{', and a variance' if learns_variance else ''}"
        )
    levels, side = range(len(c.block_out_channels)), c.side
    attends = [KINDS[name][0] for name in c.down_block_types]
    fields: dict[str, Any] = {
        "image_size": side,
        "image_channels": channels // parts,
        "channels": c.channels,
        "channel_mult": tuple(multiple(width, c.channels) for width in c.block_out_channels),
        "num_res_blocks": c.layers_per_block,
        "attention_resolutions": tuple(side >> level for level in levels if attends[level]),
        "num_heads": 1,
        "head_channels": c.attention_head_dim or 0,
        "new_attention_order": True,
        "scale_shift_norm": c.resnet_time_scale_shift == "scale_shift",
        "resblock_updown": c.resnet_resampling,
        "conv_resample": True,
        "dropout": c.dropout,
        "num_classes": c.num_class_embeds or 0,
        "learn_variance": learns_variance,
        "ddpm_layers": c.ddpm_layers,
    }
    return SuperResConfig(**fields) if upsamples else UNetConfig(**fields)


def multiple(width: int, channels: int) -> float:
    """Return the factor whose product with `channels`, cut off to an integer, is `width`."""
    factor = width / channels
    return factor if int(factor * channels) == width else math.nextafter(factor, math.inf)


def check_counterparts(c: UNet2D) -> None:
    """Raise ValueError, naming the entry, for features that our networks do not have."""
    names = [*c.down_block_types, *c.up_block_types]
    if unknown := [name for name in names if name not in KINDS]:
        raise ValueError(f"blocks must be among {', '.join(KINDS)}, got {unknown[0]}")
    if not len(c.down_block_types) == len(c.up_block_types) == len(c.block_out_channels) > 0:
        raise ValueError("down_block_types, up_block_types and block_out_channels must have equal lengths")
    if any(up.startswith(("Down", "AttnDown", "ResnetDown")) for up in c.up_block_types):
        raise ValueError(f"up_block_types {', '.join(c.up_block_types)}: these are not all blocks of a decoder")
    if any(down.startswith(("Up", "AttnUp", "ResnetUp")) for down in c.down_block_types):
        raise ValueError(f"down_block_types {', '.join(c.down_block_types)}: these are not all blocks of an encoder")
    if [KINDS[name][0] for name in c.down_block_types] != [KINDS[name][0] for name in reversed(c.up_block_types)]:
        raise ValueError("attention at other levels of the decoder than of the encoder has no counterpart")
    scale_shift = c.resnet_time_scale_shift == "scale_shift"
    needed: dict[str, tuple[Any, ...]] = {
        "center_input_sample": (False,),
        "time_embedding_type": ("positional", "learned"),
        "mid_block_type": ("UNetMidBlock2D",),
        "mid_block_scale_factor": (1,),
        "act_fn": ("silu", "swish"),
        "norm_num_groups": (32,),
        "attn_norm_num_groups": (32,) if scale_shift else (32, None),  # None: no norm at all in the former case
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "add_attention": (True,),
        "class_embed_type": (None,),
    }
    for name, allowed in needed.items():
        if getattr(c, name) not in allowed:
            raise ValueError(f"{name} must be {' or '.join(map(str, allowed))}, got {getattr(c, name)}")
    if c.channels * 4 != (c.time_embedding_dim or 4 * c.channels):
        raise ValueError(f"time_embedding_dim must be a multiple of 4, got {c.time_embedding_dim}")
    if c.time_embedding_type == "positional" and c.channels != c.block_out_channels[0]:
        raise ValueError(
            f"time_embedding_dim must be {4 * c.block_out_channels[0]}, 4 times the first of block_out_channels, "
            f"got {c.time_embedding_dim}"
        )
    if c.time_embedding_type == "learned" and not c.num_train_timesteps:
        raise ValueError("num_train_timesteps, the size of the learned time embedding, is missing")
