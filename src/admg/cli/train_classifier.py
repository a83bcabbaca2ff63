"""`admg train-classifier`: a noisy classifier, for guidance."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from admg.checkpoints.model import Classifier, DiffusionConfig, Labels
from admg.data import Dataset
from admg.data.arrays import find_idx
from admg.models import ClassifierConfig, NoisyClassifier
from admg.training import LearnClassifier, TrainConfig

from .learning import DataConfig, StartConfig, add_common, learn, open_data, options_of, seed_torch, start_from
from .options import add_fields, build


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What the classifier is measured on.

    val_data: images of the same layout; none: the test split, where the data has one
    val_images: how many of them, at most
    """

    val_data: str = ""
    val_images: int = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    add_fields(parser, DataConfig, "data")
    add_fields(parser, ValidationConfig, "validation")
    add_fields(parser, StartConfig, "start")
    add_fields(parser, TrainConfig, "training")
    add_fields(parser, DiffusionConfig, "diffusion", omit=("predict", "variance"))
    add_fields(parser, ClassifierConfig, "network", omit=("image_size", "image_channels", "num_classes"))


def run(args: argparse.Namespace) -> None:
    values = options_of(args)
    config, data = build(TrainConfig, values), build(DataConfig, values)
    dataset = open_data(data)
    if dataset.labels is None:
        raise ValueError(f"{data.data} has no labels: use class sub-folders, or file names such as label_name.png")
    val = build(ValidationConfig, values)
    validation = _open_validation(data, val)
    if validation is not None and validation.label_names != dataset.label_names:
        raise ValueError(f"the labels of the validation images differ from those of {data.data}")
    diffusion = build(DiffusionConfig, values)
    count = len(dataset.label_names)
    network = build(ClassifierConfig, values, image_channels=dataset.channels, num_classes=count)
    seed_torch(config.seed)
    classifier = Classifier(NoisyClassifier(network), diffusion.build(), Labels(count, dataset.label_names), diffusion)
    start = start_from(classifier.network, build(StartConfig, values).init, "classifier")
    learn(LearnClassifier(classifier, validation, val.val_images), dataset, config, values, start)


def _open_validation(data: DataConfig, val: ValidationConfig) -> Dataset | None:
    plain = dataclasses.replace(data, crop="center", flip=False)
    if val.val_data:
        return open_data(dataclasses.replace(plain, data=val.val_data))
    if Path(data.data).is_dir() and find_idx(Path(data.data), "test"):
        return open_data(dataclasses.replace(plain, split="test"))
    return None
