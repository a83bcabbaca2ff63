"""Load state dicts of guided-diffusion as models, with or without their flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.networks import NETWORK_KINDS, Kind
from admg.checkpoints.weights import CheckpointError, DamagedError, Shapes, build_network, shapes_in, shapes_of
from admg.diffusion.config import DiffusionConfig
from admg.models import UNetConfig
from admg.warn import warn

from . import families, pt
from . import flags as flag
from . import shapes as shape
from .enclosed import enclosed
from .flags import OpenAIConfig, default_channel_mult
from .pasted import GivenFlags
from .table import Flags
from .wrappers import Weights

Source = str | Path | Mapping[str, Tensor]


def load(source: Source, flags: GivenFlags | None = None) -> Model | Classifier:
    """Load a diffusion model, upsampler or classifier, whichever the checkpoint is, in float32 and eval mode.

    source: file of torch.save or safetensors with the weights of a network of guided-diffusion or improved-diffusion,
        under any prefix and in nested dictionaries, or its state dict; averaged weights (EMA) are preferred
    flags: flags of OpenAI's scripts, as text or as a mapping, see `parse`; None takes those that admg enclosed in the
        file when it exported the model, or those of a known model of the same architecture (the labels may differ), or
        else infers them from the shapes (see `infer`); the last two with a warning that lists the assumptions

    Warnings also say which weights were taken if there are averaged ones, and recommend the EMA next to a `model*.pt`.

    Raises CheckpointError if the checkpoint is unusable or does not fit the flags, and ValueError for invalid flags.
    """
    return _load(source, flags, None)


def load_diffusion(source: Source, flags: GivenFlags | None = None) -> Model:
    """Load a diffusion model, as `load` does. Raises CheckpointError if it is another kind of model."""
    return cast(Model, _load(source, flags, "diffusion"))


def load_upsampler(source: Source, flags: GivenFlags | None = None) -> Model:
    """Load an upsampler, as `load` does. Raises CheckpointError if it is another kind of model."""
    return cast(Model, _load(source, flags, "upsampler"))


def load_classifier(source: Source, flags: GivenFlags | None = None) -> Classifier:
    """Load a noisy classifier, as `load` does. Raises CheckpointError if it is another kind of model."""
    return cast(Classifier, _load(source, flags, "classifier"))


def _load(source: Source, flags: GivenFlags | None, kind: Kind | None) -> Model | Classifier:
    name, weights = read(source, kind)
    shapes = shapes_in(weights.state)
    names: Sequence[str] = ()
    if flags is None and not isinstance(source, Mapping) and (own := enclosed(Path(source).expanduser())):
        flags, names = own.flags, own.label_names
    kind = _kind(name, shapes, kind, flags)
    config = (
        _inferred(name, shapes, kind, weights.betas) if flags is None else _parsed(name, flags, kind, weights.betas)
    )
    try:
        network = build_network(NETWORK_KINDS[kind].network, config.network, weights.state, name)
    except CheckpointError as error:
        if shapes_of(NETWORK_KINDS[kind].network, config.network) == shapes:  # the values are wrong, not the flags
            raise
        raise CheckpointError(_contradiction(name, str(error), config, shapes)) from None
    n = config.network
    parts: dict[str, Any] = {
        "network": network,
        "diffusion": config.diffusion.build(),
        "labels": _labels(name, n.num_classes, names),
        "config": config.diffusion,
        "training": {"source": name, **provenance(weights), "flags": flag.flags_of(config)},
    }
    if kind == "classifier":
        return Classifier(**parts)
    return Model(shape=(n.image_channels, n.image_size, n.image_size), **parts)


def _labels(name: str, count: int, names: Sequence[str]) -> Labels:
    if count == 1000 and not names:
        return Labels.imagenet()
    try:
        return Labels.stated(count, names)
    except ValueError:
        raise DamagedError(f"{name} is damaged: it names {len(names)} labels, but its network has {count}") from None


def read(source: Source, kind: Kind | None = None) -> tuple[str, Weights]:
    """Return the name of the source for messages, and its weights in float32.

    A warning says which weights were taken if there are averaged ones, and recommends the EMA beside a `model*.pt`.

    Raises CheckpointError if the checkpoint is unusable.
    """

    def fits(shapes: Shapes) -> bool:
        with suppress(CheckpointError):
            kinds = shape.kinds_of(shapes)
            return kind in kinds if kind else "classifier" not in kinds
        return False

    if isinstance(source, Mapping):
        name = "state dict"
        try:
            weights = pt.as_weights(dict(source), fits, copy=True)
        except CheckpointError as error:
            raise CheckpointError(f"the mapping {error}") from None
    else:
        name = str(source)
        ema = pt.ema_beside(source) if Path(source).name.startswith("model") else None
        weights = pt.read(source, fits)
        if ema and not weights.average:
            warn(f"{source}: {ema.name} next to it holds the averaged weights (EMA), which give much better samples")
    if weights.instead_of:
        others = ", ".join(repr(where) if where else "the top level" for where in weights.instead_of)
        warn(f"{name}: took the averaged weights (EMA), {weights.where!r}, and not those under {others}")
    if weights.unread:
        warn(f"{name}: its average (EMA) under {weights.unread!r} cannot be read: took the weights without averaging")
    return name, weights


def provenance(weights: Weights) -> dict[str, str]:
    """Return a description of the chosen weights, if there is a choice or a wrapper."""
    if not weights.where:
        return {}
    return {"weights": f"{weights.where} (average)" if weights.average else weights.where}


def _kind(name: str, shapes: Shapes, expected: Kind | None, flags: GivenFlags | None = None) -> Kind:
    """Return the kind of model with these shapes. Raises CheckpointError if it cannot be the expected one.

    An upsampler of other than grey or colour images must be expected, or have flags: a network from 4 to 2 channels may
    as well segment an image of 3 channels, given with its noisy mask.
    """
    try:
        kinds = shape.kinds_of(shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    if expected and expected not in kinds:
        article = {"diffusion": "a diffusion model", "upsampler": "an upsampler", "classifier": "a classifier"}
        raise CheckpointError(f"{name} is {article[kinds[0]]}, not {article[expected]}: use load_{kinds[0]}")
    channels = shapes["input_blocks.0.0.weight"][1]
    if kinds == ("upsampler",) and not expected and "large_size" not in (flags or "") and channels not in (2, 6):
        out = shapes["out.2.weight"][0]
        raise CheckpointError(
            f"{name} is a network from {channels} to {out} channels, which may segment images and is not a diffusion "
            f"model; if it is an upsampler of {channels // 2} channels, load it with the flags --large_size and "
            f"--small_size"
        )
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
    if config.network.head_channels and "num_heads" in names:
        names[names.index("num_heads")] = "num_head_channels"
    if getattr(config.network, "pool", "") == "attention":
        names.remove("image_size")
    if isinstance(config.network, UNetConfig):
        names += ["predict_xstart"] if config.network.learn_variance else ["predict_xstart", "sigma_small"]
    return flag.write(flag.values_of(config), *names)


def _inferred(name: str, shapes: Shapes, kind: Kind, betas: Tensor | None) -> OpenAIConfig:
    try:
        config = shape.infer(shapes, kind=kind)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    about = "the shapes do not determine all flags"
    if family := families.family_of(config):
        config = family.config
        about = f"its shapes{' except for the labels' if family.relabelled else ''} are those of {family.name}"
    if betas is not None:
        config = dataclasses.replace(config, diffusion=_with_schedule(name, betas, config.diffusion))
    labels = "; its 1,000 labels are taken to be ImageNet's" if config.network.num_classes == 1000 else ""
    diagnose = "" if kind == "classifier" else "; `admg diagnose CHECKPOINT --images FOLDER` checks them"
    warn(f"{name}: {about}; assumed {assumed(config)}{labels}{diagnose}")
    return config


def _with_schedule(name: str, betas: Tensor, process: DiffusionConfig) -> DiffusionConfig:
    """Return the process with the schedule of a checkpoint's own betas. Raises CheckpointError if it has no name."""
    recognised = families.schedule_of(betas)
    if recognised is None:
        raise CheckpointError(
            f"{name} holds betas ({_betas_text(betas)}) that are those of neither the linear nor the cosine schedule: "
            "to load it with another schedule, pass the flags"
        )
    return dataclasses.replace(
        process, noise_schedule=recognised.noise_schedule, diffusion_steps=recognised.diffusion_steps
    )


def _betas_text(betas: Tensor) -> str:
    return f"{len(betas)} from {betas[0].item():.3g} to {betas[-1].item():.3g}" if len(betas) else "none"


# -- with flags ------------------------------------------------------------------------------------------------------


def _parsed(name: str, flags: GivenFlags, kind: Kind, betas: Tensor | None) -> OpenAIConfig:
    config = flag.parse(flags, kind)
    if kind != "classifier" and flag.unsure_of_rescaling(flags):
        warn(
            f"--rescale_timesteps is not among the flags: assumed {config.diffusion.rescale_timesteps}, but the "
            "default is True in improved-diffusion and False in guided-diffusion; pass it to be sure"
        )
    process = config.diffusion
    if betas is not None and not families.has_schedule(betas, process):
        warn(
            f"{name} holds betas ({_betas_text(betas)}) that differ from those of the flags "
            f"{flag.write(flag.values_of(config), 'noise_schedule', 'diffusion_steps')}, which are used"
        )
    return config


def _contradiction(name: str, error: str, config: OpenAIConfig, shapes: Shapes) -> str:
    """Return the message for flags that contradict a state dict: which flags, where, and what the shapes suggest."""
    differs = error.partition("architecture: ")[2] or error
    try:
        inferred = shape.infer(shapes, kind=config.kind)
    except CheckpointError as other:
        return f"{name} does not fit the flags ({differs}): {other}"
    given, suggested = (flag.values_of(c) for c in _comparable(config, inferred))
    names = [f.name for f in dataclasses.fields(Flags) if getattr(given, f.name) != getattr(suggested, f.name)]
    names = [n for n in names if getattr(suggested, n) != ()]  # channel_mult follows from the image size
    hints = []
    if {"class_cond", "num_classes"} & set(names):
        hints.append(_label_hint(inferred))
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
