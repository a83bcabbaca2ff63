"""Infer the architecture of a network from the names and shapes of its state dict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

from admg.checkpoints.networks import NETWORK_KINDS, Kind
from admg.checkpoints.weights import CheckpointError, Shapes, difference, shapes_of
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, SuperResConfig, UNetConfig
from admg.models.unet import CHANNEL_MULT

from .flags import OpenAIConfig, default_channel_mult


def infer(shapes: Shapes, known: Iterable[OpenAIConfig] = (), kind: Kind | None = None) -> OpenAIConfig:
    """Return the configuration whose network has exactly these names and shapes.

    shapes: shape of each parameter by name
    known: configurations to prefer; the first with this architecture is returned unchanged
    kind: kind of model to assume if the shapes allow several

    Shapes determine the kind, image channels, widths, residual blocks, attention levels, scale-shift norm, the kind of
    resampling, classes, learned variance, the classifier's pool and, with an attention pool, the image size. They do
    not determine the following settings, which get guided-diffusion's defaults unless one of `known` has this
    architecture:

    - the number of attention heads (4; in a classifier 64 channels each) and the order of the rows of qkv (old)
    - the image size: the one for which guided-diffusion uses this channel_mult, or else 8 pixels at the lowest level;
      and the small size of an upsampler (any). Attention is at the right levels for any size
    - the diffusion process: linear schedule, 1000 steps, eps, timesteps not rescaled, a fixed variance large
    - dropout and activation checkpointing: none

    Some networks have the same names and shapes. A classifier with resblock_updown whose levels all have the same width
    and attention looks like one with fewer levels of more blocks: guided-diffusion's channel_mult is preferred, then
    more levels. An upsampler of C channels with 2C outputs looks like a diffusion model of 2C channels: an upsampler
    is assumed for C = 1 or 3.

    Raises CheckpointError if no network of guided-diffusion has these shapes; the message says how the nearest differs.
    """
    kind = kind or kind_of(shapes)
    networks = list(_candidates(shapes, kind))
    fitting = [n for n in networks if _plausible(shapes, n) and _expected(kind, n) == shapes]
    if not fitting:
        raise CheckpointError(f"no network of guided-diffusion has these parameters{_nearest(shapes, kind, networks)}")
    network = max(fitting, key=_preference)
    inferred = OpenAIConfig(kind, network, default_process(network))
    return next((config for config in known if same_architecture(config, inferred)), inferred)


def kind_of(shapes: Shapes) -> Kind:
    """Return the likeliest kind of model with these parameters. Raises CheckpointError if there is none."""
    return kinds_of(shapes)[0]


def kinds_of(shapes: Shapes) -> tuple[Kind, ...]:
    """Return all kinds of model with these parameters, the likeliest first. Raises CheckpointError if there is none."""
    channels_in = _size(shapes, "input_blocks.0.0.weight", 1)
    if not any(name.startswith("output_blocks.") for name in shapes):
        return ("classifier",)
    channels_out = _size(shapes, "out.2.weight", 0)
    kinds: list[Kind] = []
    if channels_out in (channels_in, 2 * channels_in):
        kinds.append("diffusion")
    if channels_in in (channels_out, 2 * channels_out) and channels_in % 2 == 0:
        kinds.insert(0 if channels_in != channels_out or channels_in in (2, 6) else 1, "upsampler")
    if not kinds:
        raise CheckpointError(
            f"a network from {channels_in} to {channels_out} channels is neither a diffusion model (C to C or 2C) "
            "nor an upsampler (2C to C or 2C)"
        )
    return tuple(kinds)


def same_architecture(a: OpenAIConfig, b: OpenAIConfig) -> bool:
    """Return whether both have the same kind, and networks that shapes cannot distinguish."""
    return a.kind == b.kind and visible_in_shapes(a.network) == visible_in_shapes(b.network)


def visible_in_shapes(network: UNetConfig | ClassifierConfig) -> UNetConfig | ClassifierConfig:
    """Return the configuration with everything that shapes cannot determine set to one value."""
    levels = len(network.channel_mult)
    pooled = isinstance(network, ClassifierConfig) and network.pool == "attention"
    size = network.image_size if pooled else 2 ** (levels - 1)
    one: dict[str, Any] = {"image_size": size, "attention_resolutions": resolutions(network, size)}
    one |= {"num_heads": 1, "head_channels": 0, "new_attention_order": False, "dropout": 0.0, "checkpoint": False}
    if levels == 1 or network.resblock_updown:
        one["conv_resample"] = True
    if levels == 1:
        one["resblock_updown"] = False
    if isinstance(network, UNetConfig):
        one["num_heads_upsample"] = 0
    if isinstance(network, SuperResConfig):
        one["small_size"] = 0
    return dataclasses.replace(network, **one)


def default_process(network: UNetConfig | ClassifierConfig) -> DiffusionConfig:
    """Return guided-diffusion's default process, with a learned variance if the network has one."""
    learned = isinstance(network, UNetConfig) and network.learn_variance
    return DiffusionConfig(variance="learned_range" if learned else "fixed_large")


def resolutions(network: UNetConfig | ClassifierConfig, size: int) -> tuple[int, ...]:
    """Return the resolutions with attention, for images of this size."""
    return tuple(size // 2**level for level in range(len(network.channel_mult)) if network.attends(level))


# -- candidates ------------------------------------------------------------------------------------------------------


def _candidates(shapes: Shapes, kind: Kind) -> Iterator[UNetConfig | ClassifierConfig]:
    """Yield the networks with this number of input blocks, which is levels x (1 + residual blocks)."""
    indices = [name.split(".")[1] for name in shapes if name.startswith("input_blocks.")]
    count = 1 + max(int(index) for index in indices if index.isdecimal())
    for levels in range(1, count // 2 + 1):
        if count % levels == 0 and count // levels > 1:
            try:
                yield _read(shapes, kind, levels, count // levels)
            except CheckpointError:
                raise
            except (KeyError, IndexError, ValueError):  # a residual block is missing, or the configuration is invalid
                continue


def _read(shapes: Shapes, kind: Kind, levels: int, stride: int) -> UNetConfig | ClassifierConfig:
    """Return the network with this many levels of `stride` - 1 residual blocks. Raises LookupError if there is none."""
    channels = _size(shapes, "time_embed.0.weight", 1)
    first = [stride * level + 1 for level in range(levels)]  # residual block of each level
    widths = [shapes[f"input_blocks.{i}.0.in_layers.2.weight"][0] for i in first]
    channel_mult = tuple(_multiple(width, channels) for width in widths)
    attends = [f"input_blocks.{i}.1.qkv.weight" in shapes for i in first]
    size = _image_size(shapes, kind, channel_mult)
    common: dict[str, Any] = {
        "image_size": size,
        "channels": channels,
        "channel_mult": channel_mult,
        "num_res_blocks": stride - 1,
        "attention_resolutions": tuple(size // 2**level for level in range(levels) if attends[level]),
        "scale_shift_norm": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
        "resblock_updown": levels > 1 and f"input_blocks.{stride}.0.in_layers.2.weight" in shapes,
        "conv_resample": levels == 1
        or any(f"input_blocks.{stride}.0.{layer}.weight" in shapes for layer in ("op", "in_layers.2")),
    }
    channels_in = _size(shapes, "input_blocks.0.0.weight", 1)
    if kind == "classifier":
        attended = [width for width, attended in zip(widths, attends) if attended] + [widths[-1]]
        head = next((size for size in (64, 32) if all(width % size == 0 for width in attended)), 32)
        return ClassifierConfig(**common, **_head(shapes), image_channels=channels_in, head_channels=head)
    image_channels = channels_in // 2 if kind == "upsampler" else channels_in
    return (SuperResConfig if kind == "upsampler" else UNetConfig)(
        **common,
        image_channels=image_channels,
        head_channels=0,
        num_classes=shapes.get("label_emb.weight", (0,))[0],
        learn_variance=_size(shapes, "out.2.weight", 0) == 2 * image_channels,
    )


def _plausible(shapes: Shapes, network: UNetConfig | ClassifierConfig) -> bool:
    """Return whether all residual blocks of a level have its width and attention; this avoids building misfits."""
    stride = network.num_res_blocks + 1
    return all(
        shapes.get(f"input_blocks.{i}.0.in_layers.2.weight", (0,))[0] == network.width(i // stride)
        and (f"input_blocks.{i}.1.qkv.weight" in shapes) == network.attends(i // stride)
        for i in range(stride * len(network.channel_mult))
        if i % stride
    )


def _head(shapes: Shapes) -> dict[str, Any]:
    """Return the pool and the number of classes of a classifier."""
    if "out.2.positional_embedding" in shapes:
        return {"pool": "attention", "num_classes": _size(shapes, "out.2.c_proj.weight", 0)}
    if len(shapes.get("out.0.weight", ())) == 1:
        return {"pool": "adaptive", "num_classes": _size(shapes, "out.3.weight", 0)}
    if "out.1.weight" in shapes:
        return {"pool": "spatial_v2", "num_classes": _size(shapes, "out.3.weight", 0)}
    return {"pool": "spatial", "num_classes": _size(shapes, "out.2.weight", 0)}


def _image_size(shapes: Shapes, kind: Kind, channel_mult: tuple[float, ...]) -> int:
    lowest = 1 << (len(channel_mult) - 1)
    if kind == "classifier" and "out.2.positional_embedding" in shapes:
        return math.isqrt(_size(shapes, "out.2.positional_embedding", 1) - 1) * lowest
    by_table = (size for size in sorted(CHANNEL_MULT) if default_channel_mult(kind, size) == channel_mult)
    return next(by_table, 8 * lowest)


def _multiple(width: int, channels: int) -> float:
    multiple = width / channels
    if width % channels == 0:
        return width // channels
    return multiple if int(multiple * channels) == width else math.nextafter(multiple, math.inf)


def _size(shapes: Shapes, name: str, dim: int) -> int:
    """Return one dimension of a parameter. Raises CheckpointError if it does not exist."""
    shape = shapes.get(name, ())
    if len(shape) <= dim:
        has = f"{name} is {shape}" if name in shapes else f"{name} is missing"
        raise CheckpointError(f"no network of guided-diffusion has these parameters: {has}")
    return shape[dim]


# -- choosing --------------------------------------------------------------------------------------------------------


def _expected(kind: Kind, network: UNetConfig | ClassifierConfig) -> Shapes:
    """Return the shapes of this network, or {} if it cannot be built."""
    try:
        return shapes_of(NETWORK_KINDS[kind].network, network)
    except ValueError:
        return {}


def _preference(network: UNetConfig | ClassifierConfig) -> tuple[bool, int]:
    return network.channel_mult in CHANNEL_MULT.values(), len(network.channel_mult)


def _nearest(shapes: Shapes, kind: Kind, networks: list[UNetConfig | ClassifierConfig]) -> str:
    """Return how the nearest of these networks differs, for the message."""
    expected = [shapes_ for network in networks if (shapes_ := _expected(kind, network))]
    if not expected:
        return ": the input blocks do not form levels of residual blocks"
    nearest = min(expected, key=lambda e: len(e.items() ^ shapes.items()))
    return f"; compared with the nearest {kind} network: {difference(nearest, shapes)}"
