"""Describe models and list those that have a name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from admg.data import imagenet
from admg.diffusion.config import DiffusionConfig
from admg.models.unet import EncoderConfig

from . import loading, native, openai
from .labels import Labels
from .model import Classifier, Model
from .networks import NETWORK_KINDS, Kind, unwrapped
from .published import PUBLISHED, PublishedModel


@dataclass(frozen=True)
class ModelDescription:
    """Facts about a model.

    name: name, folder or file of the model
    kind: diffusion model, upsampler or noisy classifier
    network: class of the network
    parameters: number of parameters
    architecture: configuration of the network
    diffusion: configuration of the diffusion process; None for a custom process
    labels: labels of the training images
    training: provenance: data, command, seed, metrics
    published: facts about a model that OpenAI published, or None
    """

    name: str
    kind: str
    network: str
    parameters: int
    architecture: EncoderConfig
    diffusion: DiffusionConfig | None
    labels: Labels
    training: dict[str, Any] = field(default_factory=dict)
    published: PublishedModel | None = None

    @property
    def summary(self) -> str:
        """One line with the kind, the images, the labels and the number of parameters."""
        size, channels = self.architecture.image_size, self.architecture.image_channels
        colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
        labels = f"{self.labels.count} labels" if self.labels.count else "no labels"
        labels += " (named as ImageNet's)" if self.labels.names == imagenet.names() else ""
        return f"{self.kind}, {colours} images of {size}x{size}, {labels}, {self.parameters:,} parameters"


def describe(name: str | Path) -> list[ModelDescription]:
    """Describe the model of this name, and the classifier that is shipped with it. Published models are not downloaded.

    name: as admg.load takes it; it may also be a classifier

    Raises ValueError as `loading.load_any` does.
    """
    if str(name) in PUBLISHED:
        return [describe_published(PUBLISHED[str(name)])]
    descriptions = [describe_model(loading.load_any(name), name)]
    if str(name) in loading.names() and loading.default_classifier(name):
        descriptions.append(describe_model(loading.load_classifier(name), name))
    return descriptions


def describe_model(model: Model | Classifier, name: str | Path = "model") -> ModelDescription:
    """Describe a model in memory. Raises ValueError if its network is not one of ours."""
    network = unwrapped(model.network)
    architecture = getattr(network, "config", None)
    if not isinstance(architecture, EncoderConfig):
        raise ValueError(f"expected a network of admg, got {type(network).__name__}")
    return ModelDescription(
        name=str(name),
        kind=model.kind_name,
        network=type(network).__name__,
        parameters=sum(p.numel() for p in network.parameters()),
        architecture=architecture,
        diffusion=model.config,
        labels=model.labels,
        training=model.training,
    )


def describe_published(model: PublishedModel) -> ModelDescription:
    """Describe a published model without its file."""
    config, kind = openai.parse(model.flags, model.kind), NETWORK_KINDS[model.kind]
    return ModelDescription(
        name=model.name,
        kind=kind.title,
        network=kind.network.__name__,
        parameters=model.parameters,
        architecture=config.network,
        diffusion=config.diffusion,
        labels=Labels.imagenet() if model.classes else Labels(0),
        published=model,
    )


# -- listing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListedModel:
    """A model that has a name.

    name: name of the model
    kind: diffusion, upsampler or classifier
    image_size: height and width of its images in pixels
    small_size: height and width of the images that an upsampler takes, or 0
    parameters: number of parameters
    size: size of the file in bytes
    classes: number of labels
    on_disk: whether it can be used without a download
    """

    name: str
    kind: Kind
    image_size: int
    small_size: int
    parameters: int
    size: int
    classes: int
    on_disk: bool


def list_models(only_on_disk: bool = False) -> list[ListedModel]:
    """Return the shipped models, each with its classifier, and the published ones."""
    models = [*_shipped(), *map(_published, PUBLISHED.values())]
    return [model for model in models if model.on_disk or not only_on_disk]


def _shipped() -> Iterator[ListedModel]:
    for name, parts in loading.shipped().items():
        for folder in sorted(parts.iterdir(), reverse=True):
            if (folder / "config.json").is_file():
                yield _shipped_part(name, folder)


def _shipped_part(name: str, folder: Path) -> ListedModel:
    config, weights = native.read_config(folder), folder / "model.safetensors"
    labels = config.get("labels", 0)
    return ListedModel(
        name=name,
        kind=config["kind"],
        image_size=config["network"]["image_size"],
        small_size=config["network"].get("small_size", 0),
        parameters=_count_parameters(weights),
        size=weights.stat().st_size,
        classes=labels if isinstance(labels, int) else len(labels),
        on_disk=True,
    )


def _published(model: PublishedModel) -> ListedModel:
    return ListedModel(
        name=model.name,
        kind=model.kind,
        image_size=model.image_size,
        small_size=model.small_size,
        parameters=model.parameters,
        size=model.size,
        classes=model.classes,
        on_disk=model.on_disk,
    )


def _count_parameters(path: Path) -> int:
    """Return the number of parameters in a safetensors file. Only its header is read."""
    with safe_open(str(path), framework="pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
