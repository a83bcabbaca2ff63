"""Compatibility of a model with a classifier, another model, a run, or the weights from which training starts.

Every pair is compared by `check_pair`. Facts that are unknown for one of the two are not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from admg.data.listing import nfc
from admg.diffusion.config import DiffusionConfig
from admg.diffusion.gaussian import Diffusion
from admg.diffusion.schedule import NoiseSchedule
from admg.models.unet import EncoderConfig
from admg.warn import warn

from . import native
from .labels import Labels
from .model import Classifier, Model
from .networks import Kind, unwrapped

MAX_DIFFERENCE = 0.02
"""Maximum difference of ᾱ at the same timestep between equal processes: T = 1000 and 4000 rescaled count as equal."""


@dataclass(frozen=True)
class Facts:
    """Facts that may have to agree. None stands for unknown.

    title: name for messages, such as "the classifier"
    labels: labels, possibly none
    conditional: whether the network has weights for each label: a classifier, or a network conditioned on labels
    channels, size: channels of the images, and their side in pixels
    schedule: noise schedule at all its steps, with the timesteps that the network is given
    process: the noise schedule in words
    predict, variance: meaning of the network's outputs; None for a classifier
    widths: channels of each level with attention
    attention: how attention splits them into heads: number of heads, order of the rows of qkv
    """

    title: str
    labels: Labels | None = None
    conditional: bool | None = None
    channels: int | None = None
    size: int | None = None
    schedule: NoiseSchedule | None = None
    process: str = ""
    predict: str | None = None
    variance: str | None = None
    widths: tuple[int, ...] = ()
    attention: str | None = None


FIXED = ("fixed_small", "fixed_large")
Check = Callable[[Facts, Facts], str | None]
"""(first, second) -> how they differ, in one sentence; None if they agree or if it is not known."""


def facts_of(part: Model | Classifier, title: str) -> Facts:
    """Return the known facts about a model or classifier, whose network may be any module."""
    network_config, of_model = getattr(unwrapped(part.network), "config", None), isinstance(part, Model)
    config = network_config if isinstance(network_config, EncoderConfig) else None
    channels, size = (None, None) if config is None else (config.image_channels, config.image_size)
    if isinstance(part, Model):
        channels, size, _ = part.shape
    return Facts(
        title=title,
        labels=part.labels,
        conditional=part.conditional if isinstance(part, Model) else True,
        channels=channels,
        size=size,
        **_process(part.diffusion, part.config, of_model),
        **_attention(config),
    )


def facts_in(folder: Path | str, title: str) -> Facts:
    """Return the facts in the config.json of a native checkpoint. Raises CheckpointError if it cannot be used."""
    about = native.read_about(folder)
    return replace(facts_from(about.network, about.diffusion, about.kind, title), labels=about.labels)


def facts_from(network: EncoderConfig, diffusion: DiffusionConfig, kind: Kind, title: str) -> Facts:
    """Return the facts about an architecture and a diffusion process."""
    return Facts(
        title=title,
        conditional=getattr(network, "num_classes", 0) > 0,
        channels=network.image_channels,
        size=network.image_size,
        **_process(diffusion.build(), diffusion, kind != "classifier"),
        **_attention(network),
    )


def _process(diffusion: Diffusion, config: DiffusionConfig | None, of_model: bool) -> dict[str, Any]:
    schedule = diffusion.schedule.origin or diffusion.schedule
    named = config is not None and _same_curve(config.build().schedule, schedule)
    name = config.schedule_name if config is not None and named else "custom"
    meaning = {"predict": diffusion.predicts, "variance": diffusion.variance} if of_model else {}
    return {"schedule": schedule, "process": f"{name} schedule, {len(schedule)} steps", **meaning}


def _same_curve(a: NoiseSchedule, b: NoiseSchedule) -> bool:
    return len(a) == len(b) and bool((a.alpha_bar - b.alpha_bar).abs().max() < 1e-9)


def _attention(config: EncoderConfig | None) -> dict[str, Any]:
    if config is None:
        return {}
    order = "new" if config.new_attention_order else "old"
    widths = tuple(config.width(level) for level in config.attention_levels)
    try:
        encoder = [config.heads(width) for width in widths]
        decoder = [config.heads(width, getattr(config, "num_heads_upsample", 0)) for width in widths]
    except ValueError:  # the network cannot be built
        return {}
    heads = ",".join(map(str, encoder)) + ("" if decoder == encoder else f" and {','.join(map(str, decoder))}")
    return {"widths": widths, "attention": f"{heads} attention heads in {order} order"}


# -- facts that may have to agree ------------------------------------------------------------------------------------


def compare_labels(a: Facts, b: Facts) -> str | None:
    """Compare the number of labels, and their names in order."""
    if not (a.labels and b.labels):
        return None
    if a.labels.count != b.labels.count:
        return f"{b.title} has {b.labels.count} labels, {a.title} {a.labels.count}"
    ours, theirs = (_names(facts.labels) for facts in (a, b))
    differ = [k for k, (own, other) in enumerate(zip(ours, theirs)) if own != other]
    if not differ:
        return None
    k, order = differ[0], " (the same names in another order)" if sorted(ours) == sorted(theirs) else ""
    return f"label {k} is {ours[k]!r} for {a.title} and {theirs[k]!r} for {b.title}{order}"


def compare_trained_labels(a: Facts, b: Facts) -> str | None:
    """Compare the labels if both networks have weights for each of them."""
    return compare_labels(a, b) if a.conditional and b.conditional else None


def compare_label_names(a: Facts, b: Facts) -> str | None:
    """Report that the labels of one of the two are only numbers."""
    if not (a.labels and b.labels) or bool(a.labels.names) == bool(b.labels.names):
        return None
    nameless, named = (b, a) if a.labels.names else (a, b)
    return f"the labels of {nameless.title} have no names: assuming those of {named.title}, in the same order"


def compare_channels(a: Facts, b: Facts) -> str | None:
    """Compare the channels of the images."""
    if None in (a.channels, b.channels) or a.channels == b.channels:
        return None
    return f"{b.title} expects images of {b.channels} channels, {a.title} of {a.channels}"


def compare_size(a: Facts, b: Facts) -> str | None:
    """Compare the size of the images."""
    if None in (a.size, b.size) or a.size == b.size:
        return None
    return f"{b.title} expects images of {b.size} pixels, {a.title} of {a.size}"


def compare_timesteps(a: Facts, b: Facts) -> str | None:
    """Compare the range of the timesteps that the networks are given, to the length of a step."""
    if a.schedule is None or b.schedule is None:
        return None
    (last, step), (other, other_step) = (_range(facts.schedule) for facts in (a, b))
    if abs(last - other) <= max(step, other_step):
        return None
    return f"{a.title} was trained on timesteps 0 to {last:g} ({a.process}), {b.title} on 0 to {other:g} ({b.process})"


def compare_noise(a: Facts, b: Facts) -> str | None:
    """Compare the noise at the same timestep."""
    if a.schedule is None or b.schedule is None or compare_timesteps(a, b):
        return None
    t = a.schedule.timesteps.numpy()
    ours = a.schedule.alpha_bar.numpy()
    theirs = np.interp(t, b.schedule.timesteps.numpy(), b.schedule.alpha_bar.numpy())
    k = int(np.abs(ours - theirs).argmax())
    if abs(ours[k] - theirs[k]) <= MAX_DIFFERENCE:
        return None
    shown, other = (f"{100 * (1 - alpha_bar):.0f} %" for alpha_bar in (ours[k], theirs[k]))
    return (
        f"at timestep {t[k]:g}, {shown} of the variance is noise for {a.title} ({a.process}) and {other} for "
        f"{b.title} ({b.process})"
    )


def compare_terminal_snr(a: Facts, b: Facts) -> str | None:
    """Compare whether the schedules end in pure noise, the only noticeable effect of a zero terminal SNR."""
    if a.schedule is None or b.schedule is None or a.schedule.is_pure_noise(-1) == b.schedule.is_pure_noise(-1):
        return None
    ends, other = (a, b) if a.schedule.is_pure_noise(-1) else (b, a)
    return f"{ends.title} was trained up to pure noise ({ends.process}), {other.title} not ({other.process})"


def compare_predictions(a: Facts, b: Facts) -> str | None:
    """Compare what the networks predict."""
    return _meaning("predicts", a.predict, b.predict, a, b)


def compare_variance(a: Facts, b: Facts) -> str | None:
    """Compare the variances of the reverse process, if the network predicts them."""
    if a.variance in FIXED and b.variance in FIXED:
        return None
    return _meaning("has the variance", a.variance, b.variance, a, b)


def compare_attention(a: Facts, b: Facts) -> str | None:
    """Compare how attention splits the same channels into heads, which the shapes do not reveal."""
    return _meaning("has", a.attention, b.attention, a, b) if a.widths == b.widths else None


def _meaning(verb: str, own: str | None, other: str | None, a: Facts, b: Facts) -> str | None:
    return None if None in (own, other) or own == other else f"{a.title} {verb} {own}, {b.title} {other}"


def _names(known: Labels | None) -> tuple[str, ...]:
    """Return the names of labels for comparison, in one form of Unicode."""
    return tuple(map(nfc, known.names)) if known else ()


def _range(schedule: NoiseSchedule | None) -> tuple[float, float]:
    """Return the last timestep, and the distance of two timesteps."""
    assert schedule is not None
    t = schedule.timesteps.tolist()
    return t[-1], t[1] - t[0] if len(t) > 1 else 1.0


# -- pairs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """The facts that must agree in a pair.

    refused: properties whose difference makes results wrong and raises an error
    noted: properties whose difference may be intended and gives a warning that states the consequence
    """

    refused: tuple[Check, ...]
    noted: Mapping[Check, str] = field(default_factory=dict)


PairName = Literal["classifier", "bad model", "upsampler", "init", "resume"]
PAIRS: dict[PairName, Pair] = {
    # OpenAI's pair for 64 pixels has a cosine model and a classifier whose flags mean the linear schedule
    "classifier": Pair(
        (compare_labels, compare_channels, compare_size, compare_timesteps),
        {compare_noise: ", so guidance is approximate", compare_label_names: ""},
    ),
    "bad model": Pair(
        (compare_trained_labels, compare_channels, compare_size, compare_timesteps, compare_noise),
        {compare_label_names: ""},
    ),
    "upsampler": Pair((compare_trained_labels, compare_channels), {compare_label_names: ""}),
    # weights are a starting point for other labels, images and noise, but not if outputs have another meaning
    "init": Pair(
        (compare_predictions, compare_variance, compare_attention),
        dict.fromkeys(
            (compare_timesteps, compare_noise, compare_terminal_snr), ", so its weights are only a starting point"
        ),
    ),
    "resume": Pair(
        (
            compare_trained_labels,
            compare_channels,
            compare_size,
            compare_timesteps,
            compare_noise,
            compare_terminal_snr,
            compare_predictions,
            compare_variance,
            compare_attention,
        )
    ),
}
"""The facts that must agree, by pair."""


def check_pair(pair: PairName, a: Facts, b: Facts) -> None:
    """Check that two parts are compatible, and warn of differences that can be intended.

    Raises ValueError with both values of the first fact that must agree but differs.
    """
    rules = PAIRS[pair]
    for check in rules.refused:
        if difference := check(a, b):
            raise ValueError(f"{a.title} and {b.title} do not belong together: {difference}")
    for check, consequence in rules.noted.items():
        if difference := check(a, b):
            warn(difference + consequence)
