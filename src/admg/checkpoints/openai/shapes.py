"""What the names and shapes of a state dict tell of its network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

from admg.checkpoints.model import KINDS, DiffusionConfig
from admg.checkpoints.weights import CheckpointError, Shapes, difference, shapes_of
from admg.models import ClassifierConfig, SuperResConfig, UNetConfig
from admg.models.unet import CHANNEL_MULT

from .flags import OpenAIConfig, default_channel_mult
from .known import Kind


def infer(shapes: Shapes, known: Iterable[OpenAIConfig] = (), kind: Kind | None = None) -> OpenAIConfig:
    """The configuration whose network has exactly these names and shapes.

    shapes: name -> shape of each parameter
    known: configurations of which the first with this architecture is returned as it is
    kind: what is wanted, where the shapes leave it open

    Shapes tell the kind, image channels, widths, residual blocks, attention levels, scale-shift norm, the kind of
    resampling, classes, learned variance, the classifier's pool and, by an attention pool, the image size. They do not
    tell what follows; unless one of `known` has this architecture, it is the reference's default:
    - the number of heads (4; in a classifier 64 channels each), also on the way up, and the order of qkv's rows (old)
    - the image size: that whose channel_mult this is in the reference, else 8 pixels at the lowest level;
      and an upsampler's small size (0: any). Attention stands at the right levels whatever the size
    - the diffusion: linear schedule, 1000 steps, eps, timesteps not rescaled, a fixed variance large
    - dropout and checkpointing: none
    Some networks have the same names and shapes: a classifier whose levels all have one width and the same attention,
    with resblock_updown, and one with fewer levels of more blocks (the reference's channel_mult, else more levels, is
    taken); upsamplers of C channels and diffusion models of 2C, both with 2C outputs (an upsampler for C = 1 or 3).
    CheckpointError: no network of guided-diffusion has them; says how the nearest differs.
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
    """Whether these are the parameters of a diffusion model, an upsampler or a classifier."""
    return kinds_of(shapes)[0]


def kinds_of(shapes: Shapes) -> tuple[Kind, ...]:
    """All kinds of model that could have these parameters, the likeliest first. CheckpointError: none."""
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
    """Whether both are of one kind, and all that shapes can tell of their networks is the same."""
    return a.kind == b.kind and told(a.network) == told(b.network)


def told(network: UNetConfig | ClassifierConfig) -> UNetConfig | ClassifierConfig:
    """The configuration with all that shapes cannot tell set to one value."""
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
    """The reference's default diffusion, with a learned variance if the network has one."""
    learned = isinstance(network, UNetConfig) and network.learn_variance
    return DiffusionConfig(variance="learned_range" if learned else "fixed_large")


def resolutions(network: UNetConfig | ClassifierConfig, size: int) -> tuple[int, ...]:
    """The levels with attention, as pixels of images of this size."""
    return tuple(size // 2**level for level in range(len(network.channel_mult)) if network.attends(level))


# -- candidates ------------------------------------------------------------------------------------------------------


def _candidates(shapes: Shapes, kind: Kind) -> Iterator[UNetConfig | ClassifierConfig]:
    """The networks with this number of input blocks, L levels x (1 + residual blocks), read off as far as they go."""
    indices = [name.split(".")[1] for name in shapes if name.startswith("input_blocks.")]
    count = 1 + max(int(index) for index in indices if index.isdecimal())
    for levels in range(1, count // 2 + 1):
        if count % levels == 0 and count // levels > 1:
            try:
                yield _read(shapes, kind, levels, count // levels)
            except CheckpointError:
                raise
            except (KeyError, IndexError, ValueError):  # no residual block where one would be, no such configuration
                continue


def _read(shapes: Shapes, kind: Kind, levels: int, stride: int) -> UNetConfig | ClassifierConfig:
    """The network with this many levels, and `stride` - 1 residual blocks in each. LookupError: it is not so."""
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
    """Whether each level's residual blocks have its width and its attention: spares building those that cannot fit."""
    stride = network.num_res_blocks + 1
    return all(
        shapes.get(f"input_blocks.{i}.0.in_layers.2.weight", (0,))[0] == network.width(i // stride)
        and (f"input_blocks.{i}.1.qkv.weight" in shapes) == network.attends(i // stride)
        for i in range(stride * len(network.channel_mult))
        if i % stride
    )


def _head(shapes: Shapes) -> dict[str, Any]:
    """A classifier's pool and number of classes."""
    if "out.2.positional_embedding" in shapes:
        return {"pool": "attention", "num_classes": _size(shapes, "out.2.c_proj.weight", 0)}
    if len(shapes.get("out.0.weight", ())) == 1:
        return {"pool": "adaptive", "num_classes": _size(shapes, "out.3.weight", 0)}
    if "out.1.weight" in shapes:
        return {"pool": "spatial_v2", "num_classes": _size(shapes, "out.3.weight", 0)}
    return {"pool": "spatial", "num_classes": _size(shapes, "out.2.weight", 0)}


def _image_size(shapes: Shapes, kind: Kind, channel_mult: tuple[float, ...]) -> int:
    lowest = 2 ** (len(channel_mult) - 1)
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
    """CheckpointError: there is no such parameter."""
    shape = shapes.get(name, ())
    if len(shape) <= dim:
        has = f"{name} is {shape}" if name in shapes else f"{name} is missing"
        raise CheckpointError(f"no network of guided-diffusion has these parameters: {has}")
    return shape[dim]


# -- choosing --------------------------------------------------------------------------------------------------------


def _expected(kind: Kind, network: UNetConfig | ClassifierConfig) -> Shapes:
    """The shapes of this network; none if it cannot be built."""
    try:
        return shapes_of(KINDS[kind][0], network)
    except ValueError:
        return {}


def _preference(network: UNetConfig | ClassifierConfig) -> tuple[bool, int]:
    return network.channel_mult in CHANNEL_MULT.values(), len(network.channel_mult)


def _nearest(shapes: Shapes, kind: Kind, networks: list[UNetConfig | ClassifierConfig]) -> str:
    """How the nearest of these networks differs."""
    expected = [shapes_ for network in networks if (shapes_ := _expected(kind, network))]
    if not expected:
        return ": their input blocks make no levels of residual blocks"
    nearest = min(expected, key=lambda e: len(e.items() ^ shapes.items()))
    return f"; from the nearest {kind} network {difference(nearest, shapes)}"
