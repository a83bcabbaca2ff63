"""The training images nearest to each sample, which reveal memorisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import nn

from admg.config import check_integer
from admg.data.arrays import Split
from admg.data.value_range import ValueRange
from admg.engine.device import Processes, choose_device
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png

from . import features as networks
from .evaluate import compare_channels, one_size
from .features import FeatureNetwork
from .features.extraction import Extractor, cache_path
from .opening import ImageSource, as_source
from .progress import Show
from .sources import Fit, Source

ROWS, COLUMNS = 4096, 8192  # size of a block of distances


@dataclass(frozen=True)
class Nearest:
    """The k nearest others of N items, the nearest first.

    numbers: (N, k), indices of the nearest items
    distances: (N, k), Euclidean distances of features
    """

    numbers: Int64[np.ndarray, "n k"]
    distances: Float[np.ndarray, "n k"]


@dataclass(frozen=True, repr=False)
class Neighbours:
    """The nearest training images of some samples; `print` lists them, and `picture` shows them.

    samples: the samples
    training: the training images that were searched
    nearest: positions in `training` and distances, (N, k)
    network: name of the feature network
    """

    samples: Source
    training: Source
    nearest: Nearest
    network: str

    def __repr__(self) -> str:
        lines = [f"nearest of {len(self.training):,} training images, distance in the features of {self.network}:"]
        for i, (row, distances) in enumerate(zip(self.nearest.numbers, self.nearest.distances)):
            found = (f"{self.training.title(n)} ({d:.3f})" for n, d in zip(row, distances))
            lines.append(f"  sample {self.samples.title(i)}: " + "  ".join(found))
        return "\n".join(lines)

    def picture(self) -> Image.Image:
        """Return a picture with a row for each sample and its nearest training images."""
        title = f"nearest of {len(self.training):,} in {self.network}"
        return picture(self.samples, self.training, self.nearest, title)

    def save(self, path: Path | str) -> None:
        """Write the picture as a PNG file."""
        save_png(self.picture(), Path(path).expanduser())


def neighbours(
    samples: ImageSource,
    training: ImageSource,
    features: str | nn.Module | FeatureNetwork = "inception",
    *,
    num: int = 10,
    num_training: int | None = None,
    k: int = 5,
    closest: bool = False,
    fit: Fit | None = None,
    value_range: ValueRange | None = None,
    background: int | None = None,
    split: Split = "train",
    weights: str | None = None,
    batch_size: int = 50,
    device: str | torch.device = "auto",
    cache: Path | str | bool = True,
    processes: Processes | None = None,
    progress: Show = True,
) -> Neighbours:
    """Return the training images whose features are nearest to those of samples.

    >>> rng = np.random.default_rng(0)
    >>> training = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    >>> found = neighbours(training[10:14], training, features=network, num=4, progress=False)
    >>> found.nearest.numbers[:, 0].tolist()  # these samples are training images
    [10, 11, 12, 13]

    samples, training, features: see `evaluate`
    num: number of samples, spread over all
    num_training: number of training images to search, spread over all; by default all
    k: number of training images for each sample
    closest: whether to take the `num` samples closest to a training image
    fit, background, split, weights, batch_size, device, cache, progress: see `evaluate`
    value_range: values of black and white in a folder of training images; by default as `admg.data.open` finds them
    processes: rank of this process and number of processes that share the work; only the first one returns rows
    Raises ValueError if k or num are out of range, or if sources, network and options do not fit together.
    """
    processes = processes or Processes()
    for name, value in (("num", num), ("k", k), ("batch_size", batch_size)):
        check_integer(name, value)
    if cache is False and processes.count > 1:
        raise ValueError("cache is required with several processes, which share features through it")
    reading: dict[str, Any] = {"split": split, "background": background}
    ours = one_size(as_source(samples, "the samples", **reading))
    ours = ours if closest else ours.subset(max(2, num))
    reading |= {"value_range": value_range, "real": True}
    theirs = as_source(training, "the training images", **reading).subset(num_training)
    for source in (ours, theirs):
        if source.images is None:
            raise ValueError(f"{source.name} holds statistics and no images")
    if k > len(theirs):
        raise ValueError(f"k must be at most {len(theirs)}, the number of training images, got {k}")
    assert ours.size is not None
    theirs = theirs.fitted(ours.size, fit)
    compare_channels(ours, theirs, features)
    network = networks.load(features, weights).to(choose_device(device, processes.local_rank))
    extract = Extractor(network, cache_path(cache), batch_size, processes, progress)
    searched, chosen = extract(theirs, "the training images"), extract(ours, "the samples")
    if searched is None or chosen is None:
        return Neighbours(ours, theirs, Nearest(np.zeros((0, k), np.int64), np.zeros((0, k))), network.name)
    matches = nearest(chosen.features, searched.features, k)
    order = matches.distances[:, 0].argsort(kind="stable").tolist() if closest else list(range(len(ours)))
    rows = order[:num]
    ours = replace(ours, numbers=[ours.numbers[i] for i in rows], labels=None)
    return Neighbours(ours, theirs, Nearest(matches.numbers[rows], matches.distances[rows]), network.name)


def nearest(features: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"], k: int = 5) -> Nearest:
    """Return the k nearest of `others` to each row of features, computed in blocks.

    Raises ValueError if there are fewer than k others or the dimensions differ.
    """
    if not 1 <= k <= len(others):
        raise ValueError(f"k must be from 1 to {len(others)}, the number of images, got {k}")
    if features.shape[1] != others.shape[1]:
        raise ValueError(f"features must have the same dimension, got {features.shape[1]} and {others.shape[1]}")
    blocks = [_nearest(features[i : i + ROWS], others, k) for i in range(0, len(features), ROWS)]
    return Nearest(np.concatenate([n for n, _ in blocks]), np.concatenate([d for _, d in blocks]))


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
    exact = torch.stack(
        [(x[i] - torch.from_numpy(others[numbers[i].numpy()]).double()).norm(dim=1) for i in range(len(x))]
    )
    exact, order = exact.sort(dim=1, stable=True)  # the products above have cancellation for near images
    return numbers.gather(1, order).numpy(), exact.numpy()


def picture(samples: Source, training: Source, found: Nearest, title: str = "") -> Image.Image:
    """Return a picture with a row per sample: the sample, then its nearest training images.

    The number beside a row is the distance of the nearest image.
    """
    rows = []
    for i, numbers in enumerate(found.numbers):
        rows.append([samples[i : i + 1][0], *(training[n : n + 1][0] for n in numbers.tolist())])
    titles = [f"{distance:.3g}" for distance in found.distances[:, 0]]
    columns = ["sample", *(str(i + 1) for i in range(found.numbers.shape[1]))]
    return sheet(rows, row_titles=titles, column_titles=columns, title=title)
