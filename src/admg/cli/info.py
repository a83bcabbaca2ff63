"""`admg info`: describe a model."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admg.checkpoints.describe import ModelDescription, describe
from admg.checkpoints.published import INTENDED_USE, LICENSE, MODEL_CARD, PUBLISHED, PublishedModel, SamplingSettings
from admg.config import setting
from admg.models.unet import EncoderConfig

from .tables import size_text, table

EXAMPLES = """  admg info fashion-mnist
  admg info openai/imagenet-256            # nothing is downloaded
  admg info openai/imagenet-256 --table    # layers, parameters, GFLOPs, memory
  admg info run"""
SHOWN_LABELS = 20
BATCHES = 1, 8, 32, 128


@dataclass(frozen=True, kw_only=True)
class Options:
    """Describe a model: architecture, parameters, labels and provenance.

    model: model name, checkpoint folder, run directory or file of weights
    table: list the layers with their parameters and operations, and the memory of training by batch size
    """

    model: str = setting(positional=True)
    table: bool = False


def run(options: Options) -> None:
    descriptions = describe(options.model)
    texts = ["\n".join(lines(part)) for part in descriptions]
    if options.table:
        texts = [f"{text}\n{layer_table(part.architecture)}" for text, part in zip(texts, descriptions)]
    print("\n\n".join(texts))


def layer_table(architecture: EncoderConfig) -> str:
    """Return the layers of a network, for one image, and the memory that it needs by batch size."""
    from admg.training.recipes.layers import layers  # slow import, needed only here
    from admg.training.recipes.measure import measure

    parts, cost = layers(architecture), measure(architecture)
    rows = [
        (layer.name, layer.kind, "x".join(map(str, layer.shape)), f"{layer.parameters:,}", f"{layer.gflops:.4g}")
        for layer in parts
    ]
    rows.append(("total", "", "", f"{cost.parameters:,}", f"{cost.gflops:.4g}"))
    memory = [
        (str(batch), *(size_text(round(cost.memory(batch, precision))) for precision in ("fp32", "bf16")))
        for batch in BATCHES
    ]
    return "\n".join(
        [
            "layers (operations of a forward pass for one image, two for each multiplication with addition)",
            table(("layer", "kind", "output", "parameters", "GFLOPs"), rows, left=("layer", "kind", "output")),
            "memory of training, without that of the allocator (weights, gradients, AdamW, average, activations)",
            table(("batch", "fp32", "bf16"), memory),
        ]
    )


def lines(found: ModelDescription) -> Iterator[str]:
    """Yield the lines of a description."""
    published = found.published
    origin = "published by OpenAI" if published else found.network
    yield f"{found.name}: {found.kind}, {origin}, {found.parameters:,} parameters"
    if published:
        yield from about(published)
    yield "architecture"
    for part in (found.architecture, found.diffusion):
        for key, value in dataclasses.asdict(part).items() if part is not None else ():
            yield f"  {key:24} {format_value(value)}"
    if published:
        yield from entry("flags", published.flags, indent=0)
        yield f"labels ({published.classes}): {'those of ImageNet, by name or number' if published.classes else 'none'}"
        yield from recommendation_lines(published)
        return
    names = found.labels.names
    yield f"labels ({found.labels.count})"
    yield from (f"  {i:3}  {label}" for i, label in enumerate(names[:SHOWN_LABELS]))
    if len(names) > SHOWN_LABELS:
        yield f"  ... and {len(names) - SHOWN_LABELS} more"
    yield "training"
    yield from (f"  {k:24} {format_value(value)}" for k, value in found.training.items() if not isinstance(value, dict))


def about(model: PublishedModel) -> Iterator[str]:
    """Yield the source, license and caveats of a published model."""
    where = f"on disk: {model.path}" if model.on_disk else f"not on disk; downloaded at first use to {model.path}"
    yield from entry("source", model.url)
    yield from entry("file", f"about {size_text(model.size)}, {where}")
    yield from entry("license", LICENSE)
    yield from entry("intended use", INTENDED_USE)
    for caveat in model.caveats:
        yield from entry("caveat", caveat)
    yield from entry("model card", MODEL_CARD)


def recommendation_lines(model: PublishedModel) -> Iterator[str]:
    """Yield the related models of a published model, and its recommended settings."""
    if model.kind == "classifier":
        yield "guides"
        yield from (f"  {name}" for name, other in PUBLISHED.items() if other.classifier == model.name)
        return
    yield "sampling"
    if model.classifier:
        yield from entry("classifier", model.classifier)
    if model.base:
        yield from entry("enlarges samples of", model.base)
    for name, settings in (("best", model.best), ("guided (README)", model.guided), ("fast (README)", model.fast)):
        if settings:
            yield from entry(name, settings_text(settings))


def settings_text(settings: SamplingSettings) -> str:
    """Return the settings as options of `admg sample`, and their FID."""
    fid = f"; FID {settings.fid:.2f}" if settings.fid else ""
    note = f", {settings.note}" if settings.note else ""
    return f"--sampler {settings.sampler} --steps {settings.steps} --scale {settings.scale:g}{fid}{note}"


def entry(key: str, text: str, indent: int = 2) -> list[str]:
    """Return `key  text`, wrapped between words at 110 characters."""
    head = " " * indent + key.ljust(26 - indent) + " "
    wrapper = textwrap.TextWrapper(110, head, " " * len(head), break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text)


def format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
