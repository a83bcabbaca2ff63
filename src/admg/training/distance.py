"""The Fréchet distance of samples to the training images, computed while a network is trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from admg.checkpoints.model import Model
from admg.config import check, check_used, setting
from admg.data import ImageDataset
from admg.data.split import subset
from admg.data.spread import spread_indices
from admg.evaluation import features
from admg.evaluation.features import FeatureNetwork
from admg.evaluation.features.base import check_channels
from admg.evaluation.features.extraction import cache_path, extract
from admg.evaluation.metrics.fid import Target
from admg.evaluation.metrics.statistics import Gaussian
from admg.evaluation.opening import source_from_array, source_from_dataset
from admg.generation.sample import sample

MAX_REFERENCE_IMAGES = 10_000
"""Largest number of training images that samples are compared with."""
READ_BATCH_SIZE = 64  # images to read at a time


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation during training.

    evaluate_every: steps between measurements of the Fréchet distance of samples to training images, column fd of the
        log, or fid for the network inception
    evaluate_num: number of samples, drawn with 25 steps of DDIM, always from the same noise
    evaluate_network: feature network: efficientnet-lite0, which needs no download, inception, dinov2_vits14, ..., or
        file.py:name of a torch module
    """

    evaluate_every: int | None = setting(None, min=1, default_text="never")
    evaluate_num: int = setting(1000, min=2)
    evaluate_network: str = setting("efficientnet-lite0", metavar="NAME")

    def __post_init__(self) -> None:
        check(self)
        check_used(self, "evaluate_every", "evaluate_num", "evaluate_network")


@dataclass(eq=False)
class FrechetDistance:
    """Measures the distance of samples to at most 10,000 training images, spread over all.

    Samples have the labels of training images, in proportion to their number, and an upsampler enlarges small copies of
    training images. Their noise is always the same, which makes distances comparable from step to step; with few
    samples, distances are too high.

    every: number of steps between measurements
    images: training images
    num: number of samples
    network: the network that computes the features

    Raises ValueError if the network does not take images with this number of channels.
    """

    every: int
    images: ImageDataset
    num: int
    network: FeatureNetwork

    def __post_init__(self) -> None:
        check_channels(self.network, self.images.channels, "the training images")

    def __call__(self, task: Any, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Return the distance, "fid" if the features are those of Inception and "fd" otherwise."""
        model: Model = task.as_model(network, {"label_dropout": 1.0})  # images without a label were also trained on
        self.network.to(model.device)
        found = extract(source_from_array(self.draw(task, model), "the samples"), self.network)
        name = "fid" if self.network.is_inception else "fd"
        return {name: self.target.distance(Gaussian.of(found.features))}

    def draw(self, task: Any, model: Model) -> UInt8[np.ndarray, "n h w c"]:
        """Return samples with the labels of training images that are spread over all."""
        count = len(self.images)
        at = spread_indices(count, self.num) if self.num < count else [i * count // self.num for i in range(self.num)]
        labels, low_res = getattr(self.images, "labels", None), None
        if model.upsamples or not isinstance(labels, np.ndarray):
            parts = [self.images.batch(at[i : i + READ_BATCH_SIZE]) for i in range(0, len(at), READ_BATCH_SIZE)]
            y = torch.cat([y for _, y in parts]).tolist()
            low_res = torch.cat([task.shrink(x) for x, _ in parts]) if model.upsamples else None
        else:
            y = labels[at].tolist()
        numbers = [number if model.conditional and number >= 0 else None for number in y]
        steps = min(25, len(model.diffusion))
        return sample(model, numbers, low_res=low_res, steps=steps, precision="auto", progress=False).images

    @cached_property
    def target(self) -> Target:
        """The Gaussian of the features of training images; features are kept for the next run."""
        chosen = subset(self.images, list(spread_indices(len(self.images), MAX_REFERENCE_IMAGES)))
        found = extract(source_from_dataset(chosen, "the training images"), self.network, cache_path(True))
        return Target(Gaussian.of(found.features))


def frechet_distances(config: EvaluationConfig, images: ImageDataset) -> list[FrechetDistance]:
    """Return the measures that the configuration enables: one or none. Raises ValueError if it cannot be measured."""
    if config.evaluate_every is None:
        return []
    network = features.load(config.evaluate_network)
    return [FrechetDistance(config.evaluate_every, images, config.evaluate_num, network)]
