"""`admg train`: a diffusion model from a folder of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admg.config import group, overrides, setting
from admg.data import DataConfig
from admg.diffusion.config import DiffusionConfig
from admg.models import UNetConfig
from admg.training import EvaluationConfig, ObjectiveConfig, TrainConfig, ValidationConfig, train_diffusion

from .training import NEW_NETWORK, NEW_PROCESS, NOT_OPTIONS, provenance, recipe_values, train

EXAMPLES = """\
  admg train --data photos --image-size 64 --out runs/photos
  admg train --recipe adm-64 --data imagenet/train --out runs/adm-64     the paper's hyperparameters; see admg recipes
  admg train --data photos --image-size 64 --out runs/photos --steps 200000     resume, and train longer
  admg train --data fashion-mnist --image-size 32 --fit pad --channels 64 --channel-mult 1,1,2,2 --out runs/clothes
  admg train --data photos --image-size 64 --val-fraction 0.05 --log wandb --out runs/photos    held-out images, W&B
  admg train --config runs/photos.toml --lr 1e-4 --out runs/slower
  torchrun --nproc-per-node 8 -m admg train --data photos --image-size 64 --batch-size 512 --out runs/photos    8 GPUs
  srun --ntasks 16 admg train --config runs/photos.toml --shard     with SLURM; weights divided among processes"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a diffusion model on a folder of images.

    A run directory that holds a checkpoint is resumed, and gives the same result as a run without interruption. The
    model is conditional if the images have labels, and also unconditional if labels are dropped during training.

    out: run directory for the model, its checkpoint, log and samples; an existing run is resumed
    init: model to start from, with its architecture and process: name, folder or file of weights
    init_flags: flags of OpenAI's scripts for a file in their format (default: inferred)
    overwrite: start over in a run directory that holds a run, whose files are removed
    recipe: name of a recipe, which sets all options that are not given; `admg recipes` lists them
    """

    out: Path = setting(metavar="DIR")
    init: str | None = setting(None, metavar="MODEL", default_text="random weights")
    init_flags: str | None = setting(None, metavar="FLAGS", dashes=True)
    overwrite: bool = False
    recipe: str | None = setting(None, metavar="NAME")
    images: DataConfig = group(DataConfig)
    training: TrainConfig = group(TrainConfig)
    objective: ObjectiveConfig = group(ObjectiveConfig)
    validation: ValidationConfig = group(ValidationConfig)
    evaluation: EvaluationConfig = group(EvaluationConfig)
    diffusion: dict[str, Any] = overrides(DiffusionConfig, chosen=NEW_PROCESS, title="Diffusion process")
    network: dict[str, Any] = overrides(UNetConfig, omit=NOT_OPTIONS, chosen=NEW_NETWORK, title="Network")


def preset(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values of the chosen recipe; the command line and --config take precedence."""
    return recipe_values("train", given)


def run(options: Options) -> None:
    train(
        train_diffusion(
            options.images,
            options.out,
            options.training,
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
