"""`train_diffusion`, `train_classifier` and `train_upsampler`: start a run, or resume it, from data and options."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from admg.checkpoints import native
from admg.checkpoints.compatibility import check_pair, facts_in, facts_of
from admg.checkpoints.initial import load_initial
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.networks import Kind
from admg.checkpoints.provenance import label_dropout
from admg.data import DataConfig, Dataset, ImageDataset, from_dataset
from admg.data import open as open_dataset
from admg.data.classes import empty_classes, with_classes
from admg.data.errors import listed
from admg.diffusion.config import DiffusionConfig
from admg.files import check_output_folder
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig

from . import checkpointing
from .augmentation import AugmentConfig
from .config import ObjectiveConfig, TrainConfig
from .tasks import ClassifierTask, DiffusionTask
from .trainer import TrainingRun
from .upsampler import UpsamplerTask

N = TypeVar("N", bound=nn.Module)
C = TypeVar("C", UNetConfig, SuperResConfig, ClassifierConfig)

Data = str | Path | DataConfig | torch.utils.data.Dataset[Any]
"""A path, a DataConfig, a data set of `admg.data`, or any other map-style data set of (image, label)."""


def train_diffusion(
    data: Data,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    network: UNetConfig | Mapping[str, Any] | None = None,
    diffusion: DiffusionConfig | None = None,
    objective: ObjectiveConfig | None = None,
    init: Path | str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> TrainingRun[Model]:
    """Train a diffusion model, or resume its training. Iterate over the run to train; `run.model` is the result.

    data: a data set of `admg.data`, any map-style `torch.utils.data.Dataset` of (image, label), or a path
    out: run directory; one that holds a checkpoint is resumed
    config: steps, batch size, learning rate, ...; see TrainConfig
    network: architecture, or only those of its fields that differ from the defaults of UNetConfig. The image size,
        the channels of the images and the number of labels follow from the data.
    diffusion: diffusion process; see DiffusionConfig
    objective: loss and share of labels that are dropped; see ObjectiveConfig
    init: model whose weights to start from: a name, folder or file of weights. It must have the same architecture.
    provenance: further entries for the "training" section of the model's config.json

    Raises ValueError if the options or the data do not fit together, OSError if `out` cannot be written.

    Example::

        >>> import numpy as np
        >>> import admg
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
        >>> dataset = admg.data.from_arrays(images, ["cat", "dog"] * 10)
        >>> small = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}
        >>> config = admg.TrainConfig(steps=3, batch_size=4, lr=1e-3, warmup=2)
        >>> run = admg.train_diffusion(dataset, "runs/mine", config, network=small)
        >>> for step in run:
        ...     print(step["step"], step["lr"], step["loss"] > 0)
        1 0.0005 True
        2 0.001 True
        3 0.001 True
        >>> admg.sample(run.model, ["cat", "dog"], steps=2, progress=False).x.shape
        torch.Size([2, 1, 8, 8])
        >>> admg.load("runs/mine").label_names
        ('cat', 'dog')
    """
    objective = objective or ObjectiveConfig()
    dataset = open_data(data, objective.unlabelled)
    config, diffusion = config or TrainConfig(), diffusion or DiffusionConfig()
    architecture = fit_to_data(UNetConfig, network, **unet_fields(dataset, diffusion, objective))
    unet = initialised(UNet, architecture, config.seed)
    model = as_model(unet, diffusion, dataset)
    task = DiffusionTask(model, **objective.task_options())
    record = {**describe(data, dataset), **(provenance or {}), **load_init(model, init, "diffusion")}
    record |= {"objective": dataclasses.asdict(objective)}
    record |= dropout_record(model, dataset, objective, check_resumed(model, out))
    config.class_sampling.order_of(dataset, config.seed)  # raises before anything is written
    return TrainingRun(task, dataset, check_output_folder(out), config, record)


def train_classifier(
    data: Data,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    network: ClassifierConfig | Mapping[str, Any] | None = None,
    diffusion: DiffusionConfig | None = None,
    validation: Data | None = None,
    val_images: int = 1000,
    init: Path | str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> TrainingRun[Classifier]:
    """Train a noisy classifier for guidance, or resume its training. `run.model` is the classifier.

    data, out, config, init, provenance: see `train_diffusion`; the data must have labels
    network: architecture, or only those of its fields that differ from the defaults of ClassifierConfig
    diffusion: process that noises the images, which should be that of the model to be guided
    validation: images that the accuracy is measured on; their classes are matched by name, and may be fewer
    val_images: number of those images, spread evenly over all

    Raises ValueError and OSError as `train_diffusion` does.

    Example::

        >>> import numpy as np
        >>> import admg
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
        >>> dataset = admg.data.from_arrays(images, ["cat", "dog"] * 10)
        >>> small = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}
        >>> config = admg.TrainConfig(steps=2, batch_size=4)
        >>> run = admg.train_classifier(dataset, "runs/classifier", config, network=small, validation=dataset)
        >>> for step in run:
        ...     print(step["step"], 0 <= step["accuracy"] <= 1)
        1 True
        2 True
        >>> guide = admg.guidance.ClassifierGuidance(run.model, scale=2.0)
    """
    dataset = open_data(data)
    if not dataset.label_names:
        raise ValueError(f"{name_of(data)} has no labels: use class sub-folders, or file names such as label_name.png")
    held_out = None if validation is None else open_validation(validation, dataset.label_names, name_of(data))
    if held_out is not None and image_fields(held_out) != image_fields(dataset):
        raise ValueError(f"the validation images are {size_of(held_out)}, and the training images {size_of(dataset)}")
    config, diffusion = config or TrainConfig(), diffusion or DiffusionConfig()
    labels = Labels(len(dataset.label_names), dataset.label_names)
    architecture = fit_to_data(ClassifierConfig, network, **image_fields(dataset), num_classes=labels.count)
    module = initialised(NoisyClassifier, architecture, config.seed)
    classifier = Classifier(module, diffusion.build(), labels, diffusion)
    task = ClassifierTask(classifier, held_out, val_images)
    record = {**describe(data, dataset), **(provenance or {}), **load_init(classifier, init, "classifier")}
    check_resumed(classifier, out)
    config.class_sampling.order_of(dataset, config.seed)  # raises before anything is written
    return TrainingRun(task, dataset, check_output_folder(out), config, record)


def train_upsampler(
    data: Data,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    small_size: int | None = None,
    augment: AugmentConfig | None = None,
    network: SuperResConfig | Mapping[str, Any] | None = None,
    diffusion: DiffusionConfig | None = None,
    objective: ObjectiveConfig | None = None,
    init: Path | str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> TrainingRun[Model]:
    """Train a super-resolution model, or resume its training. `run.model` takes `low_res` images.

    The small images are made from the large ones as in guided-diffusion, by averaging areas of pixels.

    data, out, config, diffusion, objective, init, provenance: see `train_diffusion`
    small_size: side of the images to enlarge in pixels (default: a quarter of the data's)
    augment: noise and blur of the small images; see AugmentConfig. `augment_noise` becomes a field of the network
    network: architecture, or only those of its fields that differ from the defaults of SuperResConfig

    Raises ValueError and OSError as `train_diffusion` does.

    Example::

        >>> import numpy as np
        >>> import admg
        >>> images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
        >>> dataset = admg.data.from_arrays(images)
        >>> small = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}
        >>> config = admg.TrainConfig(steps=2, batch_size=4)
        >>> run = admg.train_upsampler(dataset, "runs/upsampler", config, small_size=4, network=small)
        >>> for step in run:
        ...     print(step["step"], step["loss"] > 0)
        1 True
        2 True
        >>> x, _ = dataset.batch([0])
        >>> low_res = torch.nn.functional.interpolate(x, 4, mode="area")
        >>> admg.sample(run.model, [None], low_res=low_res, steps=2, progress=False).x.shape
        torch.Size([1, 1, 8, 8])
    """
    objective, augment = objective or ObjectiveConfig(), augment or AugmentConfig()
    dataset = open_data(data, objective.unlabelled)
    config, diffusion = config or TrainConfig(), diffusion or DiffusionConfig()
    small = dataset.image_size // 4 if small_size is None else small_size
    if not 0 < small < dataset.image_size:
        raise ValueError(f"small_size must be from 1 to {dataset.image_size - 1}, got {small}")
    fields: dict[str, Any] = {**unet_fields(dataset, diffusion, objective), "small_size": small}
    if augment.augment_noise is not None:
        fields["augment_noise"] = augment.augment_noise
    architecture = fit_to_data(SuperResConfig, network, **fields)
    unet = initialised(SuperResUNet, architecture, config.seed)
    model = as_model(unet, diffusion, dataset)
    task = UpsamplerTask(model, small, **objective.task_options(), augment_blur=augment.augment_blur, examples=dataset)
    record = {**describe(data, dataset), **(provenance or {}), **load_init(model, init, "upsampler")}
    record |= {"augment_blur": augment.augment_blur} if augment.augment_blur else {}
    record |= {"objective": dataclasses.asdict(objective)}
    record |= dropout_record(model, dataset, objective, check_resumed(model, out))
    config.class_sampling.order_of(dataset, config.seed)  # raises before anything is written
    return TrainingRun(task, dataset, check_output_folder(out), config, record)


def open_data(data: Data, unlabelled: bool = False) -> ImageDataset:
    """Open a path or a DataConfig, or wrap a data set. Raises DataError, which is a ValueError.

    unlabelled: do not look for labels in files; a data set keeps those that it has
    """
    if isinstance(data, str | Path):
        return open_dataset(data, labels="none" if unlabelled else "auto")
    if not isinstance(data, DataConfig):
        return from_dataset(data)
    if unlabelled and data.labels not in ("auto", "none"):
        raise ValueError(
            f"unlabelled (--unlabelled) leaves labels out, and labels (--labels) is {data.labels}: choose one"
        )
    return (dataclasses.replace(data, labels="none") if unlabelled else data).open()


def open_validation(data: Data, names: Sequence[str], training: str) -> ImageDataset:
    """Open validation images, with labels numbered as these names. Classes without an image are named in a warning.

    training: name of the training images, for messages

    Raises ValueError if an image is of another class.
    """
    held_out = with_classes(open_data(data), names, "validation images", training)
    if empty := empty_classes(held_out):
        warnings.warn(
            f"no validation image is of the class{'es' if len(empty) > 1 else ''} {listed(empty)}", stacklevel=2
        )
    return held_out


def name_of(data: Data) -> str:
    """Return a name of the data for messages."""
    if isinstance(data, DataConfig):
        return data.data
    return str(data) if isinstance(data, str | Path) else f"the {type(data).__name__}"


def describe(data: Data, dataset: ImageDataset) -> dict[str, Any]:
    """Return the name of the data, how the images were fitted to the size, and the date, for the provenance."""
    named = isinstance(data, str | Path | DataConfig)
    reading: dict[str, Any] = {}
    if isinstance(dataset, Dataset):
        decoding = dataset.decoding
        known = {"value_range": decoding.value_range or decoding.wide_range, "background": decoding.background}
        reading = {"fit": dataset.fit} | {name: value for name, value in known.items() if value is not None}
    name = Path(name_of(data)).name if named else type(data).__name__
    return {"data": name, **reading, "date": time.strftime("%Y-%m-%d")}


def image_fields(dataset: ImageDataset) -> dict[str, int]:
    return {"image_size": dataset.image_size, "image_channels": dataset.channels}


def size_of(dataset: ImageDataset) -> str:
    """Return '64x64 pixels with 3 channels'."""
    channels = f"{dataset.channels} channel{'s' if dataset.channels > 1 else ''}"
    return f"{dataset.image_size}x{dataset.image_size} pixels with {channels}"


def unet_fields(dataset: ImageDataset, diffusion: DiffusionConfig, objective: ObjectiveConfig) -> dict[str, int]:
    """Return the fields of a UNetConfig that follow from the data and the diffusion process."""
    return {
        **image_fields(dataset),
        "num_classes": 0 if objective.unlabelled else len(dataset.label_names),
        "learn_variance": diffusion.build().learns_variance,
    }


def fit_to_data(kind: type[C], network: C | Mapping[str, Any] | None, **derived: Any) -> C:
    """Return the architecture with the fields that follow from the data.

    Raises ValueError if the given network has other values for these fields.
    """
    given = {} if network is None else network if isinstance(network, Mapping) else dataclasses.asdict(network)
    for name, value in derived.items():
        if given.get(name, value) != value:
            raise ValueError(f"network: {name} is {given[name]}, but the data and the other options need {value}")
    return kind(**{**given, **derived})


def initialised(kind: type[N], architecture: Any, seed: int) -> N:
    """Return a network with random weights of this seed, and leave torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(architecture)


def as_model(network: nn.Module, diffusion: DiffusionConfig, dataset: ImageDataset) -> Model:
    shape = (dataset.channels, dataset.image_size, dataset.image_size)
    labels = Labels(len(dataset.label_names), dataset.label_names)
    return Model(network, diffusion.build(), shape, labels, diffusion)


def load_init(part: Model | Classifier, init: Path | str | None, kind: Kind) -> dict[str, Any]:
    """Fill the network with the weights of a model, if one is named, and return how that model was trained.

    kind: "diffusion", "classifier" or "upsampler". Raises ValueError if the weights do not fit, or mean something else.
    """
    if not init:
        return {}
    return {"init": load_initial(part.network, init, kind, facts_of(part, "this run"))}


def check_resumed(part: Model | Classifier, out: Path | str) -> Mapping[str, Any]:
    """Compare with the run that the directory holds, and return how that run was trained; {} if there is none.

    Raises ValueError if its weights mean something else.
    """
    folder = Path(out) / "model"
    if not (Path(out) / checkpointing.FILE).is_file() or not (folder / "config.json").is_file():
        return {}
    check_pair("resume", facts_of(part, "this run"), facts_in(folder, f"the run in {out}"))
    training: Mapping[str, Any] = native.read_config(folder).get("training", {})
    return training


def dropout_record(
    model: Model, dataset: ImageDataset, objective: ObjectiveConfig, resumed: Mapping[str, Any]
) -> dict[str, float]:
    """Return the share of images that the network is trained on without their label, for the provenance.

    resumed: how the run was trained that is resumed; the larger share counts. Nothing is known if a data set that is
    not ours may have images without a label.
    """
    if not model.conditional:
        return {}
    share = max(objective.label_dropout, label_dropout(resumed) or 0.0)
    if share == 0 and isinstance(dataset, Dataset) and dataset.labels is not None:
        share = float((np.asarray(dataset.labels) < 0).mean())
    return {"label_dropout": share} if share or isinstance(dataset, Dataset) else {}
