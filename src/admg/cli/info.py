"""`admg info`: what a model is."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from pathlib import Path
from typing import Any

from admg.checkpoints import native, openai, presets
from admg.checkpoints.model import KIND_NAMES, Classifier, Model
from admg.checkpoints.published import CARD, INTENDED_USE, LICENSE, PUBLISHED, Published, Settings

from .models import size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name, a checkpoint folder, the folder of a training run, or an OpenAI .pt file",
    )


def run(args: argparse.Namespace) -> None:
    if args.model in PUBLISHED:
        print(describe_published(PUBLISHED[args.model]))
        return
    if args.model in presets.names():
        print(describe(presets.load(args.model), args.model))
        if presets.default_classifier(args.model):
            print()
            print(describe(presets.load_classifier(args.model), args.model))
        return
    print(describe(load_any(args.model), args.model))


def load_any(name: str) -> Model | Classifier:
    """The model of a folder or file, of whichever kind."""
    if presets.is_pickle(name):
        return openai.load(Path(name).expanduser())
    folder = presets.find(name, "diffusion")
    kind = Classifier if native.read_config(folder)["kind"] == "classifier" else Model
    return kind.load(folder)


def describe(model: Model | Classifier, name: str) -> str:
    """Architecture, parameters, labels and provenance, as text."""
    count = sum(p.numel() for p in model.network.parameters())
    lines = [f"{name}: {model.kind_name}, {type(model.network).__name__}, {count:,} parameters"]
    lines += architecture(model.network.config, model.config)
    lines += [f"labels ({model.labels.count})"]
    lines += [f"  {i:3}  {label}" for i, label in enumerate(model.labels.names[:20])]
    lines += [f"  ... and {len(model.labels.names) - 20} more"] if len(model.labels.names) > 20 else []
    lines += ["training"]
    for key, value in model.training.items():
        if not isinstance(value, dict):
            lines.append(f"  {key:24} {shown(value)}")
    return "\n".join(lines)


def describe_published(model: Published) -> str:
    """All that is known of a published model without its file, as text."""
    config = openai.parse(model.flags, model.kind)
    kind = KIND_NAMES[model.kind]
    where = f"on disk: {model.path}" if model.on_disk else f"not on disk; downloaded at first use to {model.path}"
    lines = [
        f"{model.name}: {kind}, published by OpenAI, {model.parameters:,} parameters",
        *entry("source", model.url),
        *entry("file", f"about {size_text(model.size)}, {where}"),
        *entry("license", LICENSE),
        *entry("intended use", INTENDED_USE),
        *(line for caveat in model.caveats for line in entry("caveat", caveat)),
        *entry("model card", CARD),
    ]
    lines += architecture(config.network, config.diffusion)
    lines += entry("flags", model.flags, indent=0)
    labels = "ImageNet's, by name or number" if model.classes else "none"
    lines += [f"labels ({model.classes}): {labels}", *sampling(model)]
    return "\n".join(lines)


def sampling(model: Published) -> list[str]:
    """Classifier, base model and recommended settings."""
    if model.kind == "classifier":
        return ["guides", *(f"  {name}" for name, other in PUBLISHED.items() if other.classifier == model.name)]
    lines = ["sampling"]
    lines += entry("classifier", model.classifier) if model.classifier else []
    lines += entry("enlarges samples of", model.base) if model.base else []
    for name, settings in (("best", model.best), ("guided (README)", model.guided), ("fast (README)", model.fast)):
        lines += entry(name, settings_text(settings)) if settings else []
    return lines


def settings_text(settings: Settings) -> str:
    scale = f" --scale {settings.scale:g}"
    fid = f"; FID {settings.fid:.2f}" if settings.fid else ""
    note = f", {settings.note}" if settings.note else ""
    return f"--sampler {settings.sampler} --steps {settings.steps}{scale}{fid}{note}"


def architecture(*parts: Any) -> list[str]:
    """The fields of the configurations."""
    fields = [
        dataclasses.asdict(part) for part in parts if dataclasses.is_dataclass(part) and not isinstance(part, type)
    ]
    return ["architecture", *(f"  {key:24} {shown(value)}" for values in fields for key, value in values.items())]


def entry(key: str, text: str, indent: int = 2) -> list[str]:
    """`key  text`, broken between words into lines of 110 characters."""
    head = " " * indent + key.ljust(26 - indent) + " "
    wrapper = textwrap.TextWrapper(110, head, " " * len(head), break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text)


def shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
