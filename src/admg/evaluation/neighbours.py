"""The nearest images of a training set to each sample: whether a model has learned, or memorised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image

from admg.generation.contact_sheet import sheet

from .sources import Source

ROWS, COLUMNS = 4096, 8192  # of a block of distances


@dataclass(frozen=True)
class Neighbours:
    """Of N samples the k nearest others, the nearest first. numbers: which; distances: Euclidean, in feature space"""

    numbers: Int64[np.ndarray, "n k"]
    distances: Float[np.ndarray, "n k"]


def nearest(features: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"], k: int = 5) -> Neighbours:
    """The k nearest of `others` to each row, in blocks. ValueError: fewer than k others, or another dimension."""
    if not 1 <= k <= len(others):
        raise ValueError(f"{k} nearest of {len(others)} images: allowed are 1 to {len(others)}")
    if features.shape[1] != others.shape[1]:
        raise ValueError(f"features of {features.shape[1]} and {others.shape[1]} dimensions cannot be compared")
    found = [_nearest(features[i : i + ROWS], others, k) for i in range(0, len(features), ROWS)]
    return Neighbours(np.concatenate([n for n, _ in found]), np.concatenate([d for _, d in found]))


def _nearest(features: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    x = torch.from_numpy(np.ascontiguousarray(features)).double()
    best, numbers = torch.full((len(x), 0), 0.0).double(), torch.full((len(x), 0), 0)
    for start in range(0, len(others), COLUMNS):
        block = torch.from_numpy(np.ascontiguousarray(others[start : start + COLUMNS])).double()
        squared = (x.square().sum(1)[:, None] + block.square().sum(1) - 2 * x @ block.T).clamp_min(0)
        best = torch.cat([best, squared], 1)
        numbers = torch.cat([numbers, torch.arange(start, start + len(block)).expand(len(x), -1)], 1)
        best, at = best.topk(min(k, best.shape[1]), dim=1, largest=False)
        numbers = numbers.gather(1, at)
    exact = torch.stack([(x[i] - torch.from_numpy(others[numbers[i]]).double()).norm(dim=1) for i in range(len(x))])
    exact, order = exact.sort(dim=1, stable=True)  # the products above cancel for near images
    return numbers.gather(1, order).numpy(), exact.numpy()


def picture(samples: Source, training: Source, found: Neighbours, title: str = "") -> Image.Image:
    """A row for each sample: itself, then its nearest training images, with the distance of the first beside it."""
    rows = []
    for i, numbers in enumerate(found.numbers):
        row = [samples[i : i + 1][0], *(training[n : n + 1][0] for n in numbers.tolist())]
        rows.append(row)
    titles = [f"{distance:.3g}" for distance in found.distances[:, 0]]
    columns = ["sample", *(str(i + 1) for i in range(found.numbers.shape[1]))]
    return sheet(rows, row_titles=titles, column_titles=columns, title=title)
