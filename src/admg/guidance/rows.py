"""Per-image values of a guide, for samplers that draw the images in batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The images start .. stop - 1 of `total`."""

    start: int
    stop: int
    total: int


_batch: ContextVar[Batch | None] = ContextVar("batch", default=None)


@contextmanager
def batch_context(start: int, stop: int, total: int) -> Iterator[None]:
    """State in this context which images a sampler draws, so that `select_batch_rows` can find what belongs to them."""
    token = _batch.set(Batch(start, stop, total))
    try:
        yield
    finally:
        _batch.reset(token)


def batch_rows(count: int) -> slice:
    """Return the place of the `count` images of a batch among all images of the call."""
    batch = _batch.get()
    return slice(0, count) if batch is None or batch.stop - batch.start != count else slice(batch.start, batch.stop)


def batch_text(count: int) -> str:
    """Return "images 4 to 7 of 8" for the `count` images of a batch, and "" if they are all images of the call."""
    batch, rows = _batch.get(), batch_rows(count)
    return "" if batch is None or batch.total == count else f"images {rows.start} to {rows.stop - 1} of {batch.total}"


def select_batch_rows(values: Tensor, count: int, what: str) -> Tensor:
    """Return the rows of values (N, ...) that belong to the `count` images of a batch; a single row is for all images.

    what: name of the values in messages

    Raises ValueError if there are several batches and N is neither 1 nor the number of all images.
    """
    batch = _batch.get()
    if len(values) == 1 or batch is None or batch.stop - batch.start != count or batch.total == count:
        return values
    if len(values) != batch.total:
        raise ValueError(f"{what} must have one row, or one for each of {batch.total} images, got {len(values)}")
    return values[batch.start : batch.stop]
