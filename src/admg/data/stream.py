"""Batches: an endless stream for training, exactly resumable, and one ordered pass for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .dataset import Batch, ImageDataset
from .errors import DataError
from .sampling import ClassSampling, UniformOrder, WeightedOrder
from .spread import spread_indices
from .workers import in_workers

AUGMENTATION = 1
"""Stream of random numbers of a seed for the augmentation, separate from that of the order."""


def batches(
    dataset: ImageDataset,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    sampling: ClassSampling | None = None,
) -> Iterator[Batch]:
    """Return an endless stream of x, float32 (N, C, S, S) in [-1, 1], and y, int64 (N,), -1 where there is no label.

    Batch k depends on `seed` and k alone, so that `start=k` resumes a run exactly. Images come in epochs, each in its
    own random order; a batch may extend from one epoch into the next, or hold several epochs of a small data set.

    part: (r, R) takes the r-th of R equal parts of every batch, for rank r of R processes that share them. batch_size
        must be a multiple of R.
    workers: processes that prepare batches in advance. They pay off for image files, and do not change the batches.
    sampling: shares of the classes; by default every image is used once in each epoch. Otherwise an epoch has the same
        number of images, but some occur several times.
    """
    _check_positive("batch_size", batch_size)
    for name, value in (("seed", seed), ("start", start), ("workers", workers)):
        if value < 0:
            raise DataError(f"{name} must be a non-negative integer, got {value}")
    rank, parts = part
    if not 0 <= rank < parts or batch_size % parts:
        raise DataError(f"part must be (r, R) with 0 <= r < R, where R divides batch_size {batch_size}, got {part}")
    order = (sampling or ClassSampling()).order_of(dataset, seed)
    numbered = _Numbered(dataset, batch_size, seed, rank, parts, order)
    return in_workers(numbered, range(start, 2**62), workers)


def evaluation_batches(dataset: ImageDataset, batch_size: int) -> Iterator[Batch]:
    """Return all images once, in order and without augmentation; the last batch may be smaller."""
    _check_positive("batch_size", batch_size)
    starts = range(0, len(dataset), batch_size)
    return (dataset.batch(range(start, min(start + batch_size, len(dataset)))) for start in starts)


def spread_batches(dataset: ImageDataset, num: int, batch_size: int) -> Iterator[Batch]:
    """Return `num` images spread over the data set, or all if there are fewer, without augmentation."""
    chosen = spread_indices(len(dataset), num)
    return (dataset.batch(chosen[start : start + batch_size]) for start in range(0, len(chosen), batch_size))


@dataclass(frozen=True)
class _Numbered:
    """The stream as a function of the batch's index, which workers call."""

    dataset: ImageDataset
    batch_size: int
    seed: int
    part: int
    parts: int
    order: UniformOrder | WeightedOrder

    def __getitem__(self, number: int) -> Batch:
        count = len(self.dataset)
        size = self.batch_size // self.parts
        first = number * self.batch_size + self.part * size
        positions = range(first, first + size)
        indices = [int(self.order(p // count)[p % count]) for p in positions]
        return self.dataset.batch(indices, [(self.seed, AUGMENTATION, p) for p in positions])


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise DataError(f"{name} must be a positive integer, got {value}")
