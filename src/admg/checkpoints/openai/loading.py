"""Load state dicts of guided-diffusion as models, with or without their flags."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.networks import NETWORK_KINDS, Kind
from admg.checkpoints.weights import CheckpointError, Shapes, build_network, shapes_in
from admg.models import UNetConfig

from . import flags as flag
from . import pt
from . import shapes as shape
from .flags import OpenAIConfig, default_channel_mult
from .published_flags import PUBLISHED_FLAGS
from .table import Flags

Source = str | Path | Mapping[str, Tensor]


def load(source: Source, flags: str | None = None) -> Model | Classifier:
    """Load a diffusion model, upsampler or classifier, whichever the checkpoint is, in float32 and eval mode.

    source: `.pt` file of guided-diffusion or improved-diffusion, or its state dict
    flags: flags of OpenAI's scripts, see `parse`; None takes them from a published model of the same architecture, or
        else infers them from the shapes, with a warning that lists the assumptions (see `infer`)

    A warning also recommends the EMA if there is one next to a `model*.pt`.

    Raises CheckpointError if the checkpoint is unusable or does not fit the flags, and ValueError for invalid flags.
    """
    return _load(source, flags, None)


def load_diffusion(source: Source, flags: str | None = None) -> Model:
    """Load a diffusion model, as `load` does. Raises CheckpointError if it is another kind of model."""
    return cast(Model, _load(source, flags, "diffusion"))


def load_upsampler(source: Source, flags: str | None = None) -> Model:
    """Load an upsampler, as `load` does. Raises CheckpointError if it is another kind of model."""
    return cast(Model, _load(source, flags, "upsampler"))


def load_classifier(source: Source, flags: str | None = None) -> Classifier:
    """Load a noisy classifier, as `load` does. Raises CheckpointError if it is another kind of model."""
    return cast(Classifier, _load(source, flags, "classifier"))


def _load(source: Source, flags: str | None, kind: Kind | None) -> Model | Classifier:
    name, state = _read(source)
    shapes = shapes_in(state)
    kind = _kind(name, shapes, kind)
    config = _inferred(name, shapes, kind) if flags is None else _parsed(flags, kind)
    try:
        network = build_network(NETWORK_KINDS[kind].network, config.network, state, name)
    except CheckpointError as error:
        raise CheckpointError(_contradiction(name, str(error), config, shapes)) from None
    n = config.network
    parts: dict[str, Any] = {
        "network": network,
        "diffusion": config.diffusion.build(),
        "labels": Labels.imagenet() if n.num_classes == 1000 else Labels(n.num_classes),
        "config": config.diffusion,
        "training": {"source": name, "flags": flag.flags_of(config)},
    }
    if kind == "classifier":
        return Classifier(**parts)
    return Model(shape=(n.image_channels, n.image_size, n.image_size), **parts)


def _read(source: Source) -> tuple[str, dict[str, Tensor]]:
    """Return the name of the source for messages, and its state dict."""
    if isinstance(source, Mapping):
        try:
            return "state dict", pt.as_state(dict(source))
        except CheckpointError as error:
            raise CheckpointError(f"the mapping {error}") from None
    ema = pt.ema_beside(source) if Path(source).name.startswith("model") else None
    state = pt.read_state(source)
    if ema:
        _warn(f"{source}: {ema.name} next to it holds the averaged weights (EMA), which give much better samples")
    return str(source), state


def _kind(name: str, shapes: Shapes, expected: Kind | None) -> Kind:
    """Return the kind of model with these shapes. Raises CheckpointError if it cannot be the expected one."""
    try:
        kinds = shape.kinds_of(shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    if expected and expected not in kinds:
        article = {"diffusion": "a diffusion model", "upsampler": "an upsampler", "classifier": "a classifier"}
        raise CheckpointError(f"{name} is {article[kinds[0]]}, not {article[expected]}: use load_{kinds[0]}")
    return expected or kinds[0]


# -- without flags ---------------------------------------------------------------------------------------------------

NOT_IN_SHAPES: dict[str, tuple[str, ...]] = {
    "diffusion": ("image_size", "num_heads", "use_new_attention_order"),
    "upsampler": ("large_size", "num_heads", "use_new_attention_order"),
    "classifier": ("image_size", "classifier_num_head_channels"),
}
"""Flags that affect the result but cannot be inferred from shapes, by kind."""
PROCESS_FLAGS = ("noise_schedule", "diffusion_steps", "rescale_timesteps")


def assumed(config: OpenAIConfig) -> str:
    """Return the flags, with their values, that `infer` could only assume."""
    names = [*NOT_IN_SHAPES[config.kind], *PROCESS_FLAGS]
    if getattr(config.network, "pool", "") == "attention":
        names.remove("image_size")
    if isinstance(config.network, UNetConfig):
        names += ["predict_xstart"] if config.network.learn_variance else ["predict_xstart", "sigma_small"]
    return flag.write(flag.values_of(config), *names)


@cache
def published() -> dict[str, OpenAIConfig]:
    """Return the configurations of the published models."""
    return {name: flag.parse(known.flags, known.kind) for name, known in PUBLISHED_FLAGS.items()}


def _inferred(name: str, shapes: Shapes, kind: Kind) -> OpenAIConfig:
    try:
        config = shape.infer(shapes, published().values(), kind)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    if not any(config is known for known in published().values()):
        diagnose = "" if kind == "classifier" else "; `admg diagnose CHECKPOINT --images FOLDER` checks them"
        _warn(f"{name}: the shapes do not determine all flags; assumed {assumed(config)}{diagnose}")
    return config


# -- with flags ------------------------------------------------------------------------------------------------------


def _parsed(flags: str, kind: Kind) -> OpenAIConfig:
    config = flag.parse(flags, kind)
    if kind != "classifier" and flag.unsure_of_rescaling(flags):
        _warn(
            f"--rescale_timesteps is not among the flags: assumed {config.diffusion.rescale_timesteps}, but the "
            "default is True in improved-diffusion and False in guided-diffusion; pass it to be sure"
        )
    return config


def _contradiction(name: str, error: str, config: OpenAIConfig, shapes: Shapes) -> str:
    """Return the message for flags that contradict a state dict: which flags, where, and what the shapes suggest."""
    differs = error.partition("architecture: ")[2] or error
    try:
        found = shape.infer(shapes, kind=config.kind)
    except CheckpointError as other:
        return f"{name} does not fit the flags ({differs}): {other}"
    given, suggested = (flag.values_of(c) for c in _comparable(config, found))
    names = [f.name for f in dataclasses.fields(Flags) if getattr(given, f.name) != getattr(suggested, f.name)]
    names = [n for n in names if getattr(suggested, n) != ()]  # channel_mult follows from the image size
    hints = []
    if {"class_cond", "num_classes"} & set(names):
        hints.append(_label_hint(found))
    if others := [n for n in names if n not in ("class_cond", "num_classes")]:
        hints.append(f"its shapes suggest {flag.write(suggested, *others)}")
    return f"{name} contradicts the flags {flag.write(given, *names)} ({differs}): {'; '.join(hints)}"


def _label_hint(found: OpenAIConfig) -> str:
    count = found.network.num_classes
    if found.kind == "classifier":
        return f"the checkpoint has {count} classes: --num_classes {count}?"
    if not count:
        return "the checkpoint has no label embeddings: --class_cond False?"
    return f"the checkpoint has {count} label embeddings: --class_cond True" + (
        "?" if count == 1000 else f" --num_classes {count}?"
    )


def _comparable(given: OpenAIConfig, found: OpenAIConfig) -> tuple[OpenAIConfig, OpenAIConfig]:
    """Return both with everything that shapes cannot determine set alike, and with one image size if they allow it."""
    size, mult = given.network.image_size, found.network.channel_mult
    by_size = mult != given.network.channel_mult and mult == default_channel_mult(found.kind, found.network.image_size)
    if _pooled(found) or by_size or size % found.network.downsampling:
        return _canonical(given, size), _canonical(found, found.network.image_size)
    return _canonical(given, size), _canonical(found, size)


def _canonical(config: OpenAIConfig, size: int) -> OpenAIConfig:
    """Return the configuration for this image size, with everything that shapes cannot determine set to one value."""
    at = shape.resolutions(config.network, size)
    network = dataclasses.replace(shape.visible_in_shapes(config.network), image_size=size, attention_resolutions=at)
    return OpenAIConfig(config.kind, network, shape.default_process(network))


def _pooled(config: OpenAIConfig) -> bool:
    return getattr(config.network, "pool", "") == "attention"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)
