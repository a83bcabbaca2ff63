"""The one place where the networks of a model and of its guide are made fast, and where the batch size is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from admg.checkpoints.model import Model
from admg.engine.compiling import Compile, fast
from admg.engine.memory import batch_size
from admg.engine.precision import Precision
from admg.guidance import Guide


@contextmanager
def accelerated(
    model: Model, guide: Guide | None, *, precision: Precision = "fp32", compile: Compile = "auto"
) -> Iterator[tuple[Model, Guide | None]]:
    """Context manager that returns the model and the guide with accelerated networks.

    Entered once per call or job, not per batch. Raises ValueError for a precision that the device does not have.
    """
    with fast(networks_of(model, guide), model.device, precision=precision, compile=compile):
        yield model, guide


def batch_that_fits(model: Model, guide: Guide | None, shape: Sequence[int] | None = None) -> int:
    """Return the number of images per batch that fits in the free memory of the model's device, at most 64.

    shape: (C, H, W) of an image, by default that of the model
    """
    channels, height, width = model.shape if shape is None else shape
    return batch_size(networks_of(model, guide), (channels, height, width), model.device)


def networks_of(model: Model, guide: Guide | None) -> list[nn.Module]:
    """Return the modules that run at each step: the model's, and those that the guide and its parts hold."""
    found: list[nn.Module] = []
    seen, waiting = set[int](), [model.network, guide]
    for part in waiting:
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, nn.Module):
            found.append(part)
        elif isinstance(part, list | tuple):
            waiting.extend(part)
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            fields: list[Any] = [getattr(part, field.name, None) for field in dataclasses.fields(part)]
            waiting.extend(fields)
    return found
