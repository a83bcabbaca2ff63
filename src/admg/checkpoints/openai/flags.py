"""Convert the flags of guided-diffusion's and improved-diffusion's scripts to configurations, and back."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from admg.checkpoints.networks import Kind
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, SuperResConfig, UNetConfig
from admg.models.unet import CHANNEL_MULT, effective_attention_resolutions

from . import pasted
from .pasted import GivenFlags
from .table import EXTRA, IGNORED, REFERENCE, Flags


@dataclass(frozen=True)
class OpenAIConfig:
    """A model as flags describe it: its kind, the architecture of its network, and its diffusion process."""

    kind: Kind
    network: UNetConfig | ClassifierConfig
    diffusion: DiffusionConfig


_GUIDED_ONLY = ("num_head_channels", "channel_mult", "resblock_updown", "use_new_attention_order", "classifier")


# -- text -> configuration -------------------------------------------------------------------------------------------


def parse(flags: GivenFlags, kind: Kind = "diffusion") -> OpenAIConfig:
    """Return the configuration that a line of flags gives in OpenAI's scripts.

    flags: flags as pasted from a shell: `--name value` or `--name=value`, with shell quoting, continued lines,
        assignments such as MODEL_FLAGS="..." and the command itself; or a mapping of their names to values, as
        model_and_diffusion_defaults() returns. Flags of training, sampling and other kinds of model are ignored
    kind: kind of model to build: diffusion, upsampler or classifier

    The default of `rescale_timesteps` is False in guided-diffusion and True in improved-diffusion. The latter is used
    for flags that belong to improved-diffusion; see takes_improved_default.

    Raises ValueError for an unknown flag (a similar one is suggested), an invalid value, or a shell variable whose
    value is not in the text.
    """
    return configure(read(flags), kind)


def read(flags: GivenFlags) -> Flags:
    """Return the values of all flags, with defaults for those that are not given."""
    hints, given = get_type_hints(Flags), given_flags(flags)
    values = {name: _value(name, text, hints[name]) for name, text in given.items() if name in hints}
    if takes_improved_default(flags):
        values["rescale_timesteps"] = True
    return Flags(**values)


def takes_improved_default(flags: GivenFlags) -> bool:
    """Return whether `rescale_timesteps` is not given and is assumed to be True, as in improved-diffusion.

    This holds if there is no flag that only guided-diffusion has, and one sign of improved-diffusion: --sigma_small,
    32 pixels without --channel_mult, or the 4000 steps of its recipes. With 1000 steps it makes no difference.
    """
    given = given_flags(flags)
    improved = "sigma_small" in given or given.get("image_size") == "32" or given.get("diffusion_steps") == "4000"
    return improved and _leaves_rescaling_open(given)


def unsure_of_rescaling(flags: GivenFlags) -> bool:
    """Return whether the result depends on `rescale_timesteps`, which is not given and has no certain default."""
    return _leaves_rescaling_open(given_flags(flags)) and read(flags).diffusion_steps != 1000


def _leaves_rescaling_open(given: dict[str, str]) -> bool:
    return "rescale_timesteps" not in given and not any(name.startswith(_GUIDED_ONLY) for name in given)


def configure(flags: Flags, kind: Kind) -> OpenAIConfig:
    """Return the configuration of a kind of model from the values of all flags."""
    make: dict[str, Callable[[Flags], UNetConfig | ClassifierConfig]]
    make = {"diffusion": _unet, "upsampler": _upsampler, "classifier": _classifier}
    if kind not in make:
        raise ValueError(f"kind must be one of {', '.join(make)}, got {kind!r}")
    return OpenAIConfig(kind, make[kind](flags), _process(flags))


def _process(f: Flags) -> DiffusionConfig:
    return DiffusionConfig(
        noise_schedule=f.noise_schedule,
        diffusion_steps=f.diffusion_steps,
        predict="x0" if f.predict_xstart else "eps",
        variance="learned_range" if f.learn_sigma else "fixed_small" if f.sigma_small else "fixed_large",
        rescale_timesteps=f.rescale_timesteps,
    )


def _unet_fields(f: Flags, size: int, kind: Kind) -> dict[str, Any]:
    return {
        "image_size": size,
        "image_channels": f.image_channels,
        "channels": f.num_channels,
        "channel_mult": (mult := f.channel_mult or known_channel_mult(kind, size)),
        "num_res_blocks": f.num_res_blocks,
        "attention_resolutions": effective_attention_resolutions(f.attention_resolutions, size, len(mult)),
        "num_heads": f.num_heads,
        "num_heads_upsample": max(f.num_heads_upsample, 0),
        "head_channels": max(f.num_head_channels, 0),
        "new_attention_order": f.use_new_attention_order,
        "scale_shift_norm": f.use_scale_shift_norm,
        "resblock_updown": f.resblock_updown,
        "conv_resample": f.conv_resample,
        "dropout": f.dropout,
        "checkpoint": f.use_checkpoint,
        "num_classes": f.num_classes if f.class_cond else 0,
        "learn_variance": f.learn_sigma,
    }


def _unet(f: Flags) -> UNetConfig:
    return UNetConfig(**_unet_fields(f, f.image_size, "diffusion"))


def _upsampler(f: Flags) -> SuperResConfig:
    return SuperResConfig(**_unet_fields(f, f.large_size, "upsampler"), small_size=f.small_size)


def _classifier(f: Flags) -> ClassifierConfig:
    mult = f.classifier_channel_mult or known_channel_mult("classifier", f.image_size)
    return ClassifierConfig(
        image_size=f.image_size,
        image_channels=f.image_channels,
        channels=f.classifier_width,
        channel_mult=mult,
        num_res_blocks=f.classifier_depth,
        attention_resolutions=effective_attention_resolutions(
            f.classifier_attention_resolutions, f.image_size, len(mult)
        ),
        num_heads=f.classifier_num_heads,
        head_channels=max(f.classifier_num_head_channels, 0),
        new_attention_order=f.classifier_use_new_attention_order,
        scale_shift_norm=f.classifier_use_scale_shift_norm,
        resblock_updown=f.classifier_resblock_updown,
        conv_resample=f.conv_resample,
        dropout=f.classifier_dropout,
        checkpoint=f.classifier_use_checkpoint,
        num_classes=f.num_classes,
        pool=f.classifier_pool,
    )


def default_channel_mult(kind: Kind, size: int) -> tuple[float, ...]:
    """Return guided-diffusion's channel_mult for an image size, or () if it has none.

    Its upsampler to 512 pixels uses that of 256 pixels.
    """
    return CHANNEL_MULT.get(256 if kind == "upsampler" and size == 512 else size, ())


def known_channel_mult(kind: Kind, size: int) -> tuple[float, ...]:
    """Return guided-diffusion's channel_mult for an image size. Raises ValueError if it has none."""
    mult = default_channel_mult(kind, size)
    if not mult:
        sizes = ", ".join(map(str, sorted(CHANNEL_MULT)))
        raise ValueError(f"channel_mult is required for image size {size}: it is known only for {sizes}")
    return mult


# -- values ----------------------------------------------------------------------------------------------------------


def given_flags(flags: GivenFlags) -> dict[str, str]:
    """Return the text of each given flag. Raises ValueError for a flag that OpenAI's scripts do not have."""
    known, given = [*(field.name for field in dataclasses.fields(Flags)), *sorted(IGNORED)], pasted.pairs(flags)
    for name in given.keys() - set(known):
        near = difflib.get_close_matches(name.replace("-", "_").lower(), known, n=1, cutoff=0.5)
        raise ValueError(f"flags: unknown flag --{name}" + (f": did you mean --{near[0]}?" if near else ""))
    return given


def _value(name: str, text: str, hint: Any) -> Any:
    """Return the value of a flag. Raises ValueError if the text is not valid for its type."""
    if hint is bool:
        truth = {"yes": True, "true": True, "t": True, "y": True, "1": True}
        truth |= {"no": False, "false": False, "f": False, "n": False, "0": False}
        if text.lower() not in truth:
            raise ValueError(f"flags: --{name} must be True or False, got {text!r}")
        return truth[text.lower()]
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise ValueError(f"flags: --{name} must be {' or '.join(get_args(hint))}, got {text!r}")
        return text
    try:
        if get_origin(hint) is tuple:
            item = get_args(hint)[0]
            numbers = [item(part) for part in text.split(",")] if text.strip() else []
            return tuple(int(n) if n == int(n) else n for n in numbers)
        return hint(text)
    except (ValueError, OverflowError):
        expected = {int: "a whole number", float: "a number"}.get(hint, "numbers such as 16,8")
        raise ValueError(f"flags: --{name} must be {expected}, got {text!r}") from None


# -- configuration -> text -------------------------------------------------------------------------------------------


def flags_of(config: OpenAIConfig) -> str:
    """Return the flags of a configuration; the inverse of `parse`.

    Every relevant flag of guided-diffusion is written, so that nothing depends on a default. A flag that it does not
    have is written only if it is needed; see extra_flags.

    Raises ValueError for a prediction (v) or variance (learned) that guided-diffusion does not support.
    """
    return write(values_of(config), *REFERENCE[config.kind], *extra_flags(config))


def extra_flags(config: OpenAIConfig) -> tuple[str, ...]:
    """Return the names of the flags that this configuration needs and guided-diffusion's scripts lack.

    `--channel_mult` is included although the script for diffusion models has it, for integers.
    """
    values, defaults = values_of(config), Flags()
    return tuple(name for name in EXTRA[config.kind] if getattr(values, name) != getattr(defaults, name))


def write(values: Flags, *names: str) -> str:
    """Return `--name value` of each of these flags."""
    size = values.image_size
    return " ".join(f"--{name} {_text(name, getattr(values, name), size)}" for name in names)


def _text(name: str, value: Any, size: int) -> str:
    if not isinstance(value, tuple):
        return str(value)
    none = str(2 * size) if name.endswith("attention_resolutions") else '""'  # no attention; default channel_mult
    return ",".join(str(int(n) if n == int(n) else n) for n in value) or none


def values_of(config: OpenAIConfig) -> Flags:
    """Return the values of all flags for a configuration; the inverse of `configure`."""
    n, process = config.network, _process_values(config)
    by_size = n.image_size != 32 and n.channel_mult == default_channel_mult(config.kind, n.image_size)
    channel_mult = () if by_size else n.channel_mult  # only improved-diffusion has a default for 32 pixels
    process |= {"image_channels": n.image_channels, "conv_resample": n.conv_resample}
    if isinstance(n, ClassifierConfig):
        return Flags(
            **process,
            image_size=n.image_size,
            num_classes=n.num_classes,
            classifier_width=n.channels,
            classifier_depth=n.num_res_blocks,
            classifier_attention_resolutions=n.attention_resolutions,
            classifier_use_scale_shift_norm=n.scale_shift_norm,
            classifier_resblock_updown=n.resblock_updown,
            classifier_pool=n.pool,
            classifier_channel_mult=channel_mult,
            classifier_num_heads=n.num_heads,
            classifier_num_head_channels=n.head_channels,
            classifier_use_new_attention_order=n.new_attention_order,
            classifier_dropout=n.dropout,
            classifier_use_checkpoint=n.checkpoint,
        )
    sizes: dict[str, Any] = {"image_size": n.image_size}
    if isinstance(n, SuperResConfig):
        sizes |= {"large_size": n.image_size, "small_size": n.small_size}
    return Flags(
        **process,
        **sizes,
        num_channels=n.channels,
        num_res_blocks=n.num_res_blocks,
        num_heads=n.num_heads,
        num_heads_upsample=n.num_heads_upsample or -1,
        num_head_channels=n.head_channels or -1,
        attention_resolutions=n.attention_resolutions,
        channel_mult=channel_mult,
        dropout=n.dropout,
        class_cond=n.num_classes > 0,
        num_classes=n.num_classes or 1000,
        use_checkpoint=n.checkpoint,
        use_scale_shift_norm=n.scale_shift_norm,
        resblock_updown=n.resblock_updown,
        use_new_attention_order=n.new_attention_order,
    )


def _process_values(config: OpenAIConfig) -> dict[str, Any]:
    d = config.diffusion
    if d.predict not in ("eps", "x0"):
        raise ValueError(f"guided-diffusion has no flag for a network that predicts {d.predict}: eps and x0 only")
    if d.zero_terminal_snr:
        raise ValueError("guided-diffusion has no flag for a noise schedule with zero terminal SNR")
    if d.variance not in ("learned_range", "fixed_large", "fixed_small"):
        raise ValueError(f"guided-diffusion has no flag for the variance {d.variance!r}")
    if isinstance(config.network, UNetConfig) and config.network.learn_variance != (d.variance == "learned_range"):
        raise ValueError(f"the variance {d.variance!r} does not fit the network's number of output channels")
    return {
        "learn_sigma": d.variance == "learned_range",
        "sigma_small": d.variance == "fixed_small",
        "noise_schedule": d.noise_schedule,
        "diffusion_steps": d.diffusion_steps,
        "predict_xstart": d.predict == "x0",
        "rescale_timesteps": d.rescale_timesteps,
    }
