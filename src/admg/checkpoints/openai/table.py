"""The flags of guided-diffusion's and improved-diffusion's scripts: defaults, and the kinds of model they affect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Every flag that describes a model, with guided-diffusion's default (script_util.py).

    The last group are not flags there: `num_classes` is a constant that people change, and the others are arguments of
    its classes that its scripts leave at these defaults.
    """

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: tuple[int, ...] = (16, 8)
    channel_mult: tuple[float, ...] = ()
    dropout: float = 0.0
    class_cond: bool = False
    use_checkpoint: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False

    large_size: int = 256
    small_size: int = 64

    classifier_width: int = 128
    classifier_depth: int = 2
    classifier_attention_resolutions: tuple[int, ...] = (32, 16, 8)
    classifier_use_scale_shift_norm: bool = True
    classifier_resblock_updown: bool = True
    classifier_pool: Literal["attention", "adaptive", "spatial", "spatial_v2"] = "attention"

    learn_sigma: bool = False
    diffusion_steps: int = 1000
    noise_schedule: Literal["linear", "cosine"] = "linear"
    predict_xstart: bool = False
    rescale_timesteps: bool = False
    sigma_small: bool = False  # only in improved-diffusion

    num_classes: int = 1000
    image_channels: int = 3
    conv_resample: bool = True
    classifier_channel_mult: tuple[float, ...] = ()
    classifier_num_heads: int = 4
    classifier_num_head_channels: int = 64
    classifier_use_new_attention_order: bool = False
    classifier_dropout: float = 0.0
    classifier_use_checkpoint: bool = False


IGNORED = {
    # precision; training loss
    *("use_fp16", "classifier_use_fp16", "use_kl", "rescale_learned_sigmas"),
    # sampling
    *("batch_size", "num_samples", "clip_denoised", "use_ddim", "timestep_respacing", "base_samples", "base_name"),
    *("model_path", "classifier_path", "classifier_scale", "eta", "seed"),
    # training
    *("data_dir", "val_data_dir", "schedule_sampler", "lr", "weight_decay", "lr_anneal_steps", "anneal_lr"),
    *("microbatch", "ema_rate", "log_interval", "save_interval", "eval_interval", "resume_checkpoint"),
    *("fp16_scale_growth", "iterations", "noised", "log_dir"),
}
"""Flags that do not describe a model. They are accepted because people paste whole command lines."""

_PROCESS = ("learn_sigma", "diffusion_steps", "noise_schedule", "predict_xstart", "rescale_timesteps")
_UNET = (
    *("num_channels", "num_res_blocks", "num_heads", "num_heads_upsample", "num_head_channels"),
    *("attention_resolutions", "dropout", "class_cond", "use_checkpoint", "use_scale_shift_norm", "resblock_updown"),
)
_CLASSIFIER = ("width", "depth", "attention_resolutions", "use_scale_shift_norm", "resblock_updown", "pool")
REFERENCE: dict[str, tuple[str, ...]] = {
    "diffusion": ("image_size", *_UNET, "use_new_attention_order", *_PROCESS),
    "upsampler": ("large_size", "small_size", *_UNET, *_PROCESS),
    "classifier": ("image_size", *(f"classifier_{name}" for name in _CLASSIFIER), *_PROCESS),
}
"""Flags of guided-diffusion that `flags_of` always writes, by kind."""

_PATCHES = ("sigma_small", "num_classes", "image_channels", "conv_resample")
EXTRA: dict[str, tuple[str, ...]] = {
    "diffusion": ("channel_mult", *_PATCHES),
    "upsampler": ("channel_mult", "use_new_attention_order", *_PATCHES),
    "classifier": (
        *_PATCHES,
        *(f"classifier_{name}" for name in ("channel_mult", "num_heads", "num_head_channels")),
        *(f"classifier_{name}" for name in ("use_new_attention_order", "dropout", "use_checkpoint")),
    ),
}
"""Flags that it writes only if they differ from their default, by kind."""
