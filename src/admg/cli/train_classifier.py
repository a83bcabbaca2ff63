"""`admg train-classifier`: a noisy classifier for guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admg.config import group, overrides, setting
from admg.data import DataConfig
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig
from admg.training import ClassifierValidationConfig, TrainConfig, train_classifier

from .training import NEW_NETWORK, NEW_PROCESS, NOT_OPTIONS, provenance, recipe_values, train

EXAMPLES = """\
  admg train-classifier --data photos --image-size 64 --crop random --out runs/classifier
  admg train-classifier --recipe adm-64-classifier --data imagenet/train --out runs/adm-64-classifier
  admg train-classifier --data photos/train --val-data photos/val --image-size 64 --out runs/classifier
  admg sample --model runs/photos --classifier runs/classifier --label cat --out cats"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a classifier of noised images, which guides a diffusion model to labels.

    Its diffusion process should be that of the model. A run directory that holds a checkpoint is resumed.

    out: run directory for the classifier, its checkpoint, log and accuracies; an existing run is resumed
    init: classifier to start from, with its architecture and process: name, folder or file of weights
    init_flags: flags of OpenAI's scripts for a file in their format (default: inferred)
    noised: add noise to the images; without it, the classifier learns only clean images, and guides badly
    overwrite: start over in a run directory that holds a run, whose files are removed
    recipe: name of a recipe, which sets all options that are not given; `admg recipes` lists them
    """

    out: Path = setting(metavar="DIR")
    init: str | None = setting(None, metavar="MODEL", default_text="random weights")
    init_flags: str | None = setting(None, metavar="FLAGS", dashes=True)
    noised: bool = True
    overwrite: bool = False
    recipe: str | None = setting(None, metavar="NAME")
    images: DataConfig = group(DataConfig)
    training: TrainConfig = group(TrainConfig)
    validation: ClassifierValidationConfig = group(ClassifierValidationConfig, title="Validation")
    diffusion: dict[str, Any] = overrides(
        DiffusionConfig, omit=("predict", "variance"), chosen=NEW_PROCESS, title="Diffusion process"
    )
    network: dict[str, Any] = overrides(ClassifierConfig, omit=NOT_OPTIONS, chosen=NEW_NETWORK, title="Network")


def preset(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values of the chosen recipe; the command line and --config take precedence."""
    return recipe_values("train-classifier", given)


def run(options: Options) -> None:
    train(
        train_classifier(
            options.images,
            options.out,
            options.training,
            network=options.network,
            diffusion=options.diffusion,
            validation=options.validation.chosen(options.images),
            val_images=options.validation.val_images,
            noised=options.noised,
            init=options.init,
            init_flags=options.init_flags,
            provenance=provenance(options.recipe),
            overwrite=options.overwrite,
        )
    )
