"""Features of many images: block by block, each kept on disk under the hash of its images, shared by processes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from admg.checkpoints import download
from admg.engine.memory import keep_freed_memory
from admg.evaluation.sources import Source
from admg.files import atomic
from admg.generation.shards import BROKEN

from . import Activations, FeatureNetwork

BLOCK = 500  # images to a file; also what one process does at a time


def cache_folder() -> Path:
    """Where features are kept: `features` in the cache folder of downloads (ADMG_HOME)."""
    return download.cache_folder() / "features"


@dataclass(eq=False)
class Extraction:
    """The features of all images of a source, in blocks of 500. Equal images and network: found in the cache.

    A block is the same whoever computes it, so that the number of processes changes nothing. Process r of R computes
    the blocks r, r + R, ...; the others' come through the cache.

    cache: folder of the features; None: keep none, with one process only
    batch_size: images at a time
    """

    source: Source
    network: FeatureNetwork
    cache: Path | None = None
    batch_size: int = 50
    rank: int = 0
    processes: int = 1
    _made: dict[int, Activations] = field(default_factory=dict, init=False)

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"at least one image is computed at a time, not {self.batch_size}")
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"process {self.rank} is not one of {self.processes}")
        if self.processes > 1 and self.cache is None:
            raise ValueError("several processes share features through the cache: they need one")
        if self.source.images is None:
            raise ValueError(f"{self.source.name} holds statistics and no images")

    def __len__(self) -> int:
        return -(-len(self.source) // BLOCK)

    def span(self, block: int) -> slice:
        return slice(block * BLOCK, min((block + 1) * BLOCK, len(self.source)))

    def work(self) -> Iterator[int]:
        """Compute this process's blocks, yielding the number of images after each batch. The next block is read ahead.

        ValueError: the network gives no features, or some that are not finite.
        """
        keep_freed_memory(self.network.device.type)
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
        """All features, in the order of the images; waits until the other processes' blocks are there."""
        blocks = range(len(self))
        return Activations.join([self._made.pop(b) if b in self._made else self._await(b) for b in blocks])

    def _read(self, block: int) -> tuple[Path | None, Activations | np.ndarray]:
        """What is in the cache, else the images; and where the block is kept."""
        path = self._path(block)
        return path, (read(path) if path else None) or self.source[self.span(block)]

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

    def _await(self, block: int, seconds: float = 0.2) -> Activations:
        path = self._path(block)
        assert path is not None
        while (found := read(path)) is None:
            time.sleep(seconds)
        return found


def extract(source: Source, network: FeatureNetwork, cache: Path | None = None, batch_size: int = 50) -> Activations:
    """All features of the source, by this process alone."""
    extraction = Extraction(source, network, cache, batch_size)
    for _ in extraction.work():
        pass
    return extraction.gather()


def read(path: Path) -> Activations | None:
    """A block in the cache; None: it is not there, or damaged, so that it is computed anew."""
    with suppress(KeyError, *BROKEN), np.load(path, allow_pickle=False) as file:
        return Activations(file["features"], file["spatial"] if "spatial" in file.files else None)
    return None


def write(path: Path, block: Activations) -> None:
    arrays = {"features": block.features} | ({} if block.spatial is None else {"spatial": block.spatial})
    with atomic(path) as temporary:
        np.savez(temporary, allow_pickle=False, **arrays)
