"""Defaults that train well on small data sets.

docs/training.md has the comparison behind the numbers. The settings of papers are recipes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from admg.models.unet import default_channel_mult

from .config import ResolvedConfig, TrainConfig

BATCH_SIZE = 16
LR, MAX_LR = 1e-3, 2e-3
WARMUP = 50
SMALL_DATASET_SIZE = 20_000
"""Number of images below which networks are small."""
PROCESS: dict[str, Any] = {"predict": "v", "noise_schedule": "cosine"}
CLASSIFIER_PROCESS: dict[str, Any] = {"noise_schedule": "cosine"}
HEAD_CHANNELS = 64


def unset_fields(config: TrainConfig) -> list[str]:
    """Return the names of the options that have a number in ResolvedConfig, but not in this configuration."""
    return [name for name in ResolvedConfig.__annotations__ if getattr(config, name) is None]


def fill_defaults(config: TrainConfig, resumed: Mapping[str, Any] | None = None) -> ResolvedConfig:
    """Return the same options with a number for each.

    resumed: config.json of the resumed run, whose numbers take precedence
    """
    if isinstance(config, ResolvedConfig):
        return config
    recorded = (resumed or {}).get("training", {}).get("train", {})
    batch_size = config.batch_size or recorded.get("batch_size", BATCH_SIZE)
    defaults = {"batch_size": BATCH_SIZE, "lr": default_lr(batch_size), "warmup": WARMUP}
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return ResolvedConfig(**values | {name: recorded.get(name, defaults[name]) for name in unset_fields(config)})


def default_lr(batch_size: int) -> float:
    """Return the learning rate for a batch size: proportional to its square root, within the tested range."""
    return min(max(LR, LR * math.sqrt(batch_size / BATCH_SIZE)), MAX_LR)


def network_defaults(given: Mapping[str, Any], image_size: int, images: int) -> dict[str, Any]:
    """Return the architecture for a data set, whose head width fits the channels.

    given: fields that are fixed

    Raises ValueError if the image size cannot be halved and no `channel_mult` is given.
    """
    small = images < SMALL_DATASET_SIZE
    size = {"channels": 64, "num_res_blocks": 1} if small else {"channels": 128, "num_res_blocks": 2}
    widths = [
        int(mult * (given.get("channels") or size["channels"]))
        for mult in given.get("channel_mult") or default_channel_mult(image_size)
    ]
    heads = 0 if "num_heads" in given else math.gcd(HEAD_CHANNELS, *widths)
    return size | {"head_channels": heads}
