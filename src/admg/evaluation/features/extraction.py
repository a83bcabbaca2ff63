"""Features of many images, computed in blocks that are cached on disk and shared by processes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from admg.checkpoints import download
from admg.config import check_integer
from admg.data.arrays import read_arrays
from admg.engine.device import Processes
from admg.evaluation.progress import Show, track
from admg.evaluation.sources import Source
from admg.files import atomic

from . import Activations, FeatureNetwork

BLOCK = 500  # images per file of the cache, and per task of a process


def cache_folder() -> Path:
    """Return the default folder of cached features, `features` in the cache folder of downloads (ADMG_HOME)."""
    return download.cache_folder() / "features"


@dataclass(eq=False)
class Extraction:
    """The features of all images of a source, in blocks of 500.

    Process r of R computes the blocks r, r + R, ..., and reads the others from the cache. A block does not depend on
    the process that computes it. Features of the same images and network are read from the cache.

    source: the images
    network: the network that computes the features
    cache: folder of the features; None for no cache, which is possible only with one process
    batch_size: number of images per batch
    rank, processes: index of this process, and number of processes
    """

    source: Source
    network: FeatureNetwork
    cache: Path | None = None
    batch_size: int = 50
    rank: int = 0
    processes: int = 1
    _made: dict[int, Activations] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size)
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"rank must be from 0 to {self.processes - 1}, got {self.rank}")
        if self.processes > 1 and self.cache is None:
            raise ValueError("cache is required with several processes, which share features through it")
        if self.source.images is None:
            raise ValueError(f"{self.source.name} holds statistics and no images")

    def __len__(self) -> int:
        return -(-len(self.source) // BLOCK)

    def span(self, block: int) -> slice:
        """Return the positions of the images of a block."""
        return slice(block * BLOCK, min((block + 1) * BLOCK, len(self.source)))

    @property
    def share(self) -> int:
        """The number of images that this process computes."""
        blocks = range(self.rank, len(self), self.processes)
        return sum(len(self.source.numbers[self.span(block)]) for block in blocks)

    def compute(self) -> Iterator[int]:
        """Compute the blocks of this process, and yield the number of images of each batch. Reads one block ahead.

        Raises ValueError if the network does not return features, or if they are not finite.
        """
        blocks = range(self.rank, len(self), self.processes)
        with ThreadPoolExecutor(1) as reader:
            ahead = {block: reader.submit(self._read, block) for block in blocks[:1]}
            for at, block in enumerate(blocks):
                for following in blocks[at + 1 : at + 2]:
                    ahead[following] = reader.submit(self._read, following)
                path, found = ahead.pop(block).result()
                if isinstance(found, Activations):
                    self._made[block] = found
                    yield len(found)
                else:
                    yield from self._compute(block, path, found)

    def gather(self) -> Activations:
        """Return all features in the order of the images, once the other processes have finished their blocks."""
        blocks = range(len(self))
        return Activations.join([self._made.pop(b) if b in self._made else self._await(b) for b in blocks])

    def _read(self, block: int) -> tuple[Path | None, Activations | np.ndarray]:
        """Return the file of a block in the cache, and its features if they are there, else its images."""
        path = self._path(block)
        return path, (self._kept(block, path) if path else None) or self.source[self.span(block)]

    def _compute(self, block: int, path: Path | None, images: np.ndarray) -> Iterator[int]:
        parts = []
        for start in range(0, len(images), self.batch_size):
            parts.append(self.network(images[start : start + self.batch_size]))
            yield len(parts[-1])
        self._made[block] = Activations.join(parts)
        if path:
            write(path, self._made[block])

    def _path(self, block: int) -> Path | None:
        if self.cache is None:
            return None
        key = hashlib.sha256(self.source.digest(self.span(block)) + self.network.identity.encode())
        name = key.hexdigest()
        return self.cache / name[:2] / f"{name[2:34]}.npz"

    def _kept(self, block: int, path: Path) -> Activations | None:
        """Return a block of the cache, or None if it is absent, damaged, or of other images."""
        found = read(path)
        return found if found is not None and len(found) == len(self.source.numbers[self.span(block)]) else None

    def _await(self, block: int, seconds: float = 0.2) -> Activations:
        path = self._path(block)
        assert path is not None
        while (found := self._kept(block, path)) is None:
            time.sleep(seconds)
        return found


@dataclass(frozen=True)
class Extractor:
    """Extracts features with one network and the same settings for several sources.

    network: the network that computes the features
    cache: folder of the features, or None
    batch_size: number of images per batch
    processes: rank of this process and number of processes that share the work
    show: display of progress
    """

    network: FeatureNetwork
    cache: Path | None = None
    batch_size: int = 50
    processes: Processes = field(default_factory=Processes)
    show: Show = False

    def __call__(self, source: Source, name: str) -> Activations | None:
        """Return the features of a source, only in process 0. name: name of the source in the progress bar"""
        rank, count = self.processes.rank, self.processes.count
        job = Extraction(source, self.network, self.cache, self.batch_size, rank, count)
        done = 0
        with track(f"features of {name}", job.share, "image", self.show if rank == 0 else False) as update:
            for images in job.compute():
                done += images
                update(done)
        return job.gather() if rank == 0 else None


def cache_path(cache: Path | str | bool) -> Path | None:
    """Return the folder of the cache: a path, the default folder for True, and None for False."""
    if isinstance(cache, bool):
        return cache_folder() if cache else None
    return Path(cache).expanduser()


def extract(source: Source, network: FeatureNetwork, cache: Path | None = None, batch_size: int = 50) -> Activations:
    """Return all features of a source, computed only by this process."""
    extraction = Extraction(source, network, cache, batch_size)
    for _ in extraction.compute():
        pass
    return extraction.gather()


def read(path: Path) -> Activations | None:
    """Return a block of the cache, or None if it is absent, damaged, or not written here under this name."""
    try:
        _, arrays = read_arrays(path, ("features", "spatial", "name"))
    except (OSError, ValueError):
        return None
    features, spatial = arrays.get("features"), arrays.get("spatial")
    named = "name" in arrays and str(arrays["name"]) == path.stem
    if not named or features is None:
        return None
    parts = [features] if spatial is None else [features, spatial]
    if not all(_usable(part) and len(part) == len(features) for part in parts):
        return None
    return Activations(features, spatial)


def _usable(features: np.ndarray) -> bool:
    return features.ndim == 2 and features.dtype == np.float32 and bool(np.isfinite(features).all())


def write(path: Path, block: Activations) -> None:
    """Write a block to the cache."""
    arrays = {"features": block.features} | ({} if block.spatial is None else {"spatial": block.spatial})
    with atomic(path) as temporary:
        np.savez(temporary, allow_pickle=False, name=np.array(path.stem), **arrays)
