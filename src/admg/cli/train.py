"""`admg train`: a diffusion model from a folder of images."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from admg.checkpoints.model import DiffusionConfig, Labels, Model
from admg.diffusion.losses import Objective
from admg.models import UNet, UNetConfig
from admg.training import LearnDiffusion, TrainConfig

from .learning import DataConfig, StartConfig, add_common, learn, open_data, options_of, seed_torch, start_from
from .options import add_fields, build

DERIVED = ("image_channels", "num_classes", "learn_variance", "num_heads_upsample")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is minimised.

    objective: simple (L_simple), hybrid (L_simple + 0.001 L_vlb) or vlb (L_vlb alone)
    label_dropout: share of images trained without their label, so that one model is conditional and unconditional
    unlabelled: ignore the labels, for an unconditional model
    """

    objective: Objective = "hybrid"
    label_dropout: float = 0.1
    unlabelled: bool = False

    def __post_init__(self):
        if not 0 <= self.label_dropout <= 1:
            raise ValueError(f"label_dropout must be between 0 and 1, got {self.label_dropout}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser)
    add_fields(parser, DataConfig, "data")
    add_fields(parser, StartConfig, "start")
    add_fields(parser, TrainConfig, "training")
    add_fields(parser, ObjectiveConfig, "objective")
    add_fields(parser, DiffusionConfig, "diffusion")
    add_fields(parser, UNetConfig, "network", omit=("image_size", *DERIVED))


def run(args: argparse.Namespace) -> None:
    values = options_of(args)
    config, objective = build(TrainConfig, values), build(ObjectiveConfig, values)
    dataset = open_data(build(DataConfig, values))
    diffusion = build(DiffusionConfig, values)
    labelled = dataset.labels is not None and not objective.unlabelled
    count = len(dataset.label_names)
    network = build(
        UNetConfig,
        values,
        image_channels=dataset.channels,
        num_classes=count if labelled else 0,
        learn_variance=diffusion.build().learns_variance,
    )
    seed_torch(config.seed)
    shape = (dataset.channels, dataset.image_size, dataset.image_size)
    model = Model(UNet(network), diffusion.build(), shape, Labels(count, dataset.label_names), diffusion)
    start = start_from(model.network, build(StartConfig, values).init, "diffusion")
    learn(LearnDiffusion(model, objective.objective, objective.label_dropout), dataset, config, values, start)
