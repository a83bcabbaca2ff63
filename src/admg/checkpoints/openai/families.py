"""Networks that many checkpoints share: OpenAI's 15 models and the best-known models trained with the same code.

Shapes do not determine heads, the order of qkv or the diffusion process. A checkpoint with the shapes of a known model,
or with these shapes but other labels, is most likely a copy or a fine-tune of it and has its settings.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch import Tensor

from admg.diffusion.config import DiffusionConfig

from . import flags as flag
from . import shapes as shape
from .flags import OpenAIConfig
from .published_flags import PUBLISHED_FLAGS

OTHERS = {
    # guided-diffusion as in Disco Diffusion's model_config of 512x512_diffusion_uncond_finetune_008100.pt (K. Crowson)
    "512x512_diffusion_uncond_finetune": "--attention_resolutions 32,16,8 --class_cond False --diffusion_steps 1000 "
    "--rescale_timesteps True --image_size 512 --learn_sigma True --noise_schedule linear --num_channels 256 "
    "--num_head_channels 64 --num_res_blocks 2 --resblock_updown True --use_scale_shift_norm True",
    # ffhq_10m.pt: README of jychoi118/ilvr_adm; used by DPS (configs/model_config.yaml) and DiffPIR. The README of
    # jychoi118/P2-weighting has the same flags for ffhq_p2.pt and its models of other data sets.
    "ffhq_10m (ILVR) and ffhq_p2 (P2 weighting)": "--attention_resolutions 16 --class_cond False "
    "--diffusion_steps 1000 --dropout 0.0 --image_size 256 --learn_sigma True --noise_schedule linear "
    "--num_channels 128 --num_head_channels 64 --num_res_blocks 1 --resblock_updown True --use_scale_shift_norm True "
    "--rescale_timesteps False",
    # README of openai/improved-diffusion, "Models and Hyperparameters"; rescale_timesteps is True there by default
    "improved-diffusion's ImageNet-64": "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True "
    "--diffusion_steps 4000 --noise_schedule cosine --rescale_timesteps True",
    "improved-diffusion's CIFAR-10": "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True "
    "--dropout 0.3 --diffusion_steps 4000 --noise_schedule cosine --rescale_timesteps True",
    "improved-diffusion's LSUN": "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 "
    "--learn_sigma True --use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000 "
    "--noise_schedule linear --rescale_timesteps False",
}
"""Flags of diffusion models that others published, with their source."""


@dataclass(frozen=True)
class Family:
    """A known model that a checkpoint resembles.

    name: name of the known model
    config: its settings, with the labels of the checkpoint
    relabelled: whether its labels differ from those of the checkpoint
    """

    name: str
    config: OpenAIConfig
    relabelled: bool


def known_settings() -> dict[str, OpenAIConfig]:
    """Return the settings of the known models by name, OpenAI's first."""
    published = {name: flag.parse(model.flags, model.kind) for name, model in PUBLISHED_FLAGS.items()}
    return published | {name: flag.parse(flags) for name, flags in OTHERS.items()}


def family_of(inferred: OpenAIConfig) -> Family | None:
    """Return the known model with the shapes of this configuration, or else with these shapes but other labels."""
    classes, models = inferred.network.num_classes, known_settings()
    for name, config in models.items():
        if shape.same_architecture(config, inferred):
            return Family(name, config, relabelled=False)
    for name, config in models.items():
        relabelled = dataclasses.replace(config.network, num_classes=classes)
        config = dataclasses.replace(config, network=relabelled)
        if shape.same_architecture(config, inferred):
            return Family(name, config, relabelled=True)
    return None


def schedule_of(betas: Tensor) -> DiffusionConfig | None:
    """Return the process with the noise schedule that has these β_t, or None if it is neither linear nor cosine."""
    named = (DiffusionConfig(diffusion_steps=len(betas), noise_schedule=name) for name in ("linear", "cosine"))
    return next((process for process in named if has_schedule(betas, process)), None)


def has_schedule(betas: Tensor, process: DiffusionConfig) -> bool:
    """Return whether these are the β_t of the process, up to the rounding of float16."""
    if len(betas) != process.diffusion_steps:
        return False
    try:
        expected = process.build().schedule.betas
    except ValueError:  # there is no such schedule with so few steps
        return False
    return bool(((betas.double().cpu() - expected).abs() <= 2**-11 * expected).all())
