"""`admg train-upsampler`: a super-resolution model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admg.config import check, group, overrides, setting
from admg.data import DataConfig
from admg.diffusion.config import DiffusionConfig
from admg.models import SuperResConfig
from admg.training import (
    AugmentConfig,
    EvaluationConfig,
    ObjectiveConfig,
    TrainConfig,
    ValidationConfig,
    train_upsampler,
)

from .training import NEW_NETWORK, NEW_PROCESS, NOT_OPTIONS, provenance, recipe_values, train

EXAMPLES = """\
  admg train-upsampler --data photos --image-size 256 --small-size 64 --out runs/upsampler
  admg train-upsampler --recipe adm-64-256-upsampler --data imagenet/train --out runs/adm-64-256
  admg train-upsampler --data photos --image-size 256 --augment-noise 0.3 --augment-blur 0.5 --out runs/upsampler
  admg upsample --model runs/upsampler --base samples_1000x64x64x3.npz --out large"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a super-resolution model, which enlarges images.

    The small images are made from those of the data by averaging areas of pixels, as in guided-diffusion. A run
    directory that holds a checkpoint is resumed.

    out: run directory for the model, its checkpoint, log and samples; an existing run is resumed
    small_size: side of the images to enlarge in pixels
    init: model to start from, with its architecture and process: name, folder or file of weights
    init_flags: flags of OpenAI's scripts for a file in their format (default: inferred)
    overwrite: start over in a run directory that holds a run, whose files are removed
    recipe: name of a recipe, which sets all options that are not given; `admg recipes` lists them
    """

    out: Path = setting(metavar="DIR")
    small_size: int | None = setting(None, min=1, default_text="a quarter of the image size")
    init: str | None = setting(None, metavar="MODEL", default_text="random weights")
    init_flags: str | None = setting(None, metavar="FLAGS", dashes=True)
    overwrite: bool = False
    recipe: str | None = setting(None, metavar="NAME")
    images: DataConfig = group(DataConfig)
    augment: AugmentConfig = group(AugmentConfig)
    training: TrainConfig = group(TrainConfig)
    objective: ObjectiveConfig = group(ObjectiveConfig)
    validation: ValidationConfig = group(ValidationConfig)
    evaluation: EvaluationConfig = group(EvaluationConfig)
    diffusion: dict[str, Any] = overrides(DiffusionConfig, chosen=NEW_PROCESS, title="Diffusion process")
    network: dict[str, Any] = overrides(
        SuperResConfig, omit=(*NOT_OPTIONS, "augment_noise"), chosen=NEW_NETWORK, title="Network"
    )

    def __post_init__(self) -> None:
        check(self)


def preset(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values of the chosen recipe; the command line and --config take precedence."""
    return recipe_values("train-upsampler", given)


def run(options: Options) -> None:
    train(
        train_upsampler(
            options.images,
            options.out,
            options.training,
            small_size=options.small_size,
            augment=options.augment,
            network=options.network,
            diffusion=options.diffusion,
            objective=options.objective,
            validation=options.validation.chosen(options.images),
            val_images=options.validation.val_images,
            evaluation=options.evaluation,
            init=options.init,
            init_flags=options.init_flags,
            provenance=provenance(options.recipe),
            overwrite=options.overwrite,
        )
    )
