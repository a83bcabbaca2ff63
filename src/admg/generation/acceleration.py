"""The networks of a model and of its guide, and the batch size that fits in memory with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from admg.checkpoints.model import Model
from admg.engine.memory import batch_size
from admg.guidance import Guide


def batch_that_fits(model: Model, guide: Guide | None, shape: Sequence[int] | None = None) -> int:
    """Return the number of images per batch that fits in the free memory of the model's device, at most 64.

    shape: (C, H, W) of an image, by default that of the model
    """
    channels, height, width = model.shape if shape is None else shape
    return batch_size(networks_of(model, guide), (channels, height, width), model.device)


def networks_of(model: Model, guide: Guide | None) -> list[nn.Module]:
    """Return the modules that run at each step: those of the model, and those of the guide and its parts."""
    networks: list[nn.Module] = []
    seen, waiting = set[int](), [model.network, guide]
    for part in waiting:
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, nn.Module):
            networks.append(part)
        elif isinstance(part, list | tuple):
            waiting.extend(part)
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            fields: list[Any] = [getattr(part, field.name, None) for field in dataclasses.fields(part)]
            waiting.extend(fields)
    return networks
