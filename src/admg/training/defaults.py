"""Defaults that train well on small data sets.

docs/training.md has the comparison that the numbers come from. The settings of papers are recipes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from admg.models.unet import default_channel_mult

from .config import SettledConfig, TrainConfig

BATCH_SIZE = 16
LR, LARGEST_LR = 1e-3, 2e-3
WARMUP = 50
FEW = 20_000
"""Number of images below which networks are small."""
PROCESS: dict[str, Any] = {"predict": "v", "noise_schedule": "cosine"}
CLASSIFIER_PROCESS: dict[str, Any] = {"noise_schedule": "cosine"}
HEAD_CHANNELS = 64


def left_open(config: TrainConfig) -> list[str]:
    """Return the names of the options that SettledConfig has a number for, and this one does not."""
    return [name for name in SettledConfig.__annotations__ if getattr(config, name) is None]


def settle(config: TrainConfig, resumed: Mapping[str, Any] | None = None) -> SettledConfig:
    """Return the same options with a number for each.

    resumed: config.json of the run that is resumed, whose numbers are taken
    """
    if isinstance(config, SettledConfig):
        return config
    recorded = (resumed or {}).get("training", {}).get("train", {})
    batch_size = config.batch_size or recorded.get("batch_size", BATCH_SIZE)
    defaults = {"batch_size": BATCH_SIZE, "lr": learning_rate(batch_size), "warmup": WARMUP}
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return SettledConfig(**values | {name: recorded.get(name, defaults[name]) for name in left_open(config)})


def learning_rate(batch_size: int) -> float:
    """Return the learning rate for a batch size: it grows with the square root, within the range that was compared."""
    return min(max(LR, LR * math.sqrt(batch_size / BATCH_SIZE)), LARGEST_LR)


def network_defaults(given: Mapping[str, Any], image_size: int, images: int) -> dict[str, Any]:
    """Return the architecture for a data set, whose head width fits the channels.

    given: fields that are fixed

    Raises ValueError if the image size cannot be halved and no `channel_mult` is given.
    """
    size = {"channels": 64, "num_res_blocks": 1} if images < FEW else {"channels": 128, "num_res_blocks": 2}
    widths = [
        int(mult * (given.get("channels") or size["channels"]))
        for mult in given.get("channel_mult") or default_channel_mult(image_size)
    ]
    heads = 0 if "num_heads" in given else math.gcd(HEAD_CHANNELS, *widths)
    return size | {"head_channels": heads}
