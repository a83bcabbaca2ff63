"""What is judged, and against what: images of an .npz, a folder or a data set, read in slices; stored statistics."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image

from admg.data import DataError
from admg.data import open as open_dataset
from admg.data.folder import label_names_of, number_labels, open_folder, read_image
from admg.data.transforms import GREY_MODES, center_crop, pad
from admg.generation.images import to_uint8
from admg.generation.run_record import read_record
from admg.generation.shards import BROKEN, NpzImages, Shards

from .metrics.statistics import Gaussian, statistics_of

Fit = Literal["resize", "pad"]
Array = UInt8[np.ndarray, "n h w c"]
MERGED = re.compile(r"samples_\d+x\d+x\d+x\d+\.npz")  # of Shards.target


@dataclass(frozen=True)
class Stored:
    """Published statistics of Inception's features: of pool_3, for FID, and of mixed_6/conv, for sFID (or None)."""

    features: Gaussian
    spatial: Gaussian | None = None


@dataclass(eq=False)
class Source:
    """Images, read in slices: source[a:b] is uint8 (n, H, W, C); numbers of them are chosen from those on disk.

    name: for messages
    images: on disk or in memory; None: there are only statistics
    size: (H, W), after `fit`; None: they differ
    channels: 1 or 3
    labels: (N,), those of the chosen images; None: there are none
    statistics: stored beside the images, or instead of them
    fit: what makes images of another size fit: "resize" (scale, middle square) or "pad" (on black); None: nothing
    """

    name: str
    images: NpzImages | Array | Sequence[Path] | None
    size: tuple[int, int] | None
    channels: int
    labels: Int64[np.ndarray, " n"] | None = None
    label_names: tuple[str, ...] = ()
    statistics: Stored | None = None
    numbers: Sequence[int] = field(default=())
    fit: Fit | None = None

    def __post_init__(self):
        if not self.numbers and self.images is not None:
            self.numbers = range(len(self.images))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, chosen: slice) -> Array:
        numbers = self.numbers[chosen]
        if self.size is None:
            raise ValueError(f"{self.name} has images of different sizes: a fit to one size is needed")
        if isinstance(self.images, NpzImages | np.ndarray):
            raw = _rows(self.images, numbers)
            return raw if raw.shape[1:3] == self.size else np.stack([self._fitted(to_image(image)) for image in raw])
        with ThreadPoolExecutor(4) as pool:  # Pillow decodes without Python's lock
            return np.stack(list(pool.map(self._decoded, numbers)))

    def digest(self, chosen: slice) -> bytes:
        """SHA-256 of the slice: of pixels, or of the files that they are decoded from; and of how they are fitted."""
        digest = hashlib.sha256()
        numbers = self.numbers[chosen]
        if isinstance(self.images, NpzImages | np.ndarray):
            raw = np.ascontiguousarray(_rows(self.images, numbers))
            fit = "" if raw.shape[1:3] == self.size else f"{self.fit} {self.size}"
            digest.update(f"{raw.shape} {fit}".encode())
            digest.update(raw.data)
        else:
            digest.update(f"files {self.channels} {self.fit} {self.size}".encode())
            for number in numbers:
                digest.update(hashlib.sha256(self._path(number).read_bytes()).digest())
        return digest.digest()

    def fitted(self, size: tuple[int, int], fit: Fit | None) -> Source:
        """With all images of this (H, W), by the rule of training. ValueError: they are not, and no rule is chosen."""
        if self.size == size or self.images is None:
            return self
        have = "different sizes" if self.size is None else f"{self.size[1]}x{self.size[0]}"
        want = f"{size[1]}x{size[0]}"
        if fit is None:
            raise ValueError(
                f"{self.name} has images of {have}, the samples are {want}: say --fit resize (scale and crop) or "
                f"--fit pad (a black border)"
            )
        if size[0] != size[1]:
            raise ValueError(f"{self.name} has images of {have}: only to squares are they fitted, not to {want}")
        return replace(self, size=size, fit=fit)

    def spread(self, num: int | None) -> Source:
        """`num` of the images, spread evenly over all there are; None: all. ValueError: fewer than 2."""
        if num is not None and num < 2:
            raise ValueError(f"at least 2 images are needed, not {num}")
        if num is None or self.images is None or num >= len(self):
            return self
        at = [i * len(self) // num for i in range(num)]
        labels = None if self.labels is None else self.labels[at]
        return replace(self, numbers=[self.numbers[i] for i in at], labels=labels)

    def _path(self, number: int) -> Path:
        assert self.images is not None and not isinstance(self.images, NpzImages | np.ndarray)
        return self.images[number]

    def _decoded(self, number: int) -> UInt8[np.ndarray, "h w c"]:
        image = read_image(self._path(number)).convert("L" if self.channels == 1 else "RGB")
        return self._fitted(image) if self.fit else _array(image)

    def _fitted(self, image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
        assert self.size is not None
        if image.size == self.size[::-1]:
            return _array(image)
        fitted = pad(_array(image), self.size[0]) if self.fit == "pad" else center_crop(image, self.size[0])
        return fitted.reshape(*self.size, -1)


def open_source(path: str | Path, *, labels: bool = False, split: Literal["train", "test"] = "test") -> Source:
    """Images and statistics of any of these layouts.

    - An .npz as the published batches have it: arr_0, uint8 (N, H, W[, C]), and maybe arr_1, labels; read in slices.
      It may hold mu, sigma (and mu_s, sigma_s) beside arr_0 or instead of it: statistics of Inception's features.
    - A folder that `admg sample` or `admg demo` wrote: its .npz.
    - A folder of images, with folders in it or not.
    - A folder of IDX files (MNIST family), of which `split` picks a part, or one IDX file.

    labels: read them too: arr_1, of a folder the names of sub-folders or the beginnings of file names
    ValueError: none of these, or fewer than two images.
    """
    path = _merged(Path(path).expanduser())
    if path.suffix.lower() == ".npz":
        source = _open_npz(path, labels)
    elif path.is_dir() and not _is_idx(path):
        source = _open_folder(path, labels)
    else:
        data = open_dataset(path, 1, labels=labels, split=split)  # the size is of no account: arrays are kept as stored
        assert isinstance(data.images, np.ndarray)
        source = of_array(data.images, str(path))
        source = replace(source, labels=data.labels, label_names=data.label_names)
    if source.images is not None and len(source) < 2:
        raise ValueError(f"{path} holds one image: at least 2 are needed")
    return source


def of_array(images: np.ndarray, name: str = "images") -> Source:
    """Images in memory: uint8 (N, H, W, C) or (N, H, W), or float x (N, C, H, W) in [-1, 1], as `sample` gives them.

    ValueError: another type, shape or range, NaN, or fewer than two.
    """
    images = np.asarray(images)
    if np.issubdtype(images.dtype, np.floating) and images.ndim == 4:
        images = _from_float(images, name)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(
            f"{name} are {images.dtype} {images.shape}: allowed are uint8 (N, H, W, 1 or 3), or float (N, 1 or 3, H, W)"
            f" in [-1, 1]"
        )
    if len(images) < 2:
        raise ValueError(f"{name}: at least 2 images are needed, not 1")
    return Source(name, images, (images.shape[1], images.shape[2]), images.shape[3])


def _from_float(x: np.ndarray, name: str) -> Array:
    if not np.isfinite(x).all():
        bad = int(np.flatnonzero(~np.isfinite(x).all((1, 2, 3)))[0])
        raise ValueError(f"{name}: image {bad} has values that are not finite")
    if x.shape[1] not in (1, 3) or np.abs(x).max() > 3:
        raise ValueError(
            f"{name} are float {x.shape} in [{x.min():g}, {x.max():g}]: allowed is (N, C, H, W) in [-1, 1]"
        )
    return to_uint8(torch.from_numpy(x))


def _open_npz(path: Path, labels: bool) -> Source:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            statistics = Stored(*statistics_of(file, path)) if "mu" in names or "sigma" in names else None
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (*BROKEN, KeyError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} cannot be used: {error}".replace("\n", " ")) from None
    if "arr_0" not in names:
        if statistics is None:
            raise ValueError(
                f"{path} has neither images (arr_0) nor statistics (mu, sigma), but {', '.join(names) or 'nothing'}"
            )
        return Source(str(path), None, None, 3, statistics=statistics)
    images = NpzImages(path)
    if images.shape[3] not in (1, 3):
        raise ValueError(f"{path} cannot be used: arr_0 has {images.shape[3]} channels: allowed are 1 and 3")
    found = images.labels if labels else None
    return Source(str(path), images, images.shape[1:3], images.shape[3], found, statistics=statistics)


def _open_folder(path: Path, labels: bool) -> Source:
    files, _ = open_folder(path, verify=False, strict=False)
    sizes = {file.size for file in files}
    size = next(iter(sizes))[::-1] if len(sizes) == 1 else None
    grey = all(file.mode in GREY_MODES for file in files)
    paths = [file.path for file in files]
    source = Source(str(path), paths, size, 1 if grey else 3)
    names = label_names_of(path, paths) if labels else None
    if names is None:
        return source
    numbers, order = number_labels(names, None)
    return replace(source, labels=numbers, label_names=order)


def _merged(path: Path) -> Path:
    """Of the folder of a run, or of `admg demo`, its merged samples; any other path as it is.

    ValueError: the run is not finished; there is no run, but several such files.
    """
    record = read_record(path) if path.is_dir() else None
    if record is None:
        files = [file for file in sorted(path.glob("samples_*.npz")) if MERGED.fullmatch(file.name)]
        if len(files) > 1:
            raise ValueError(f"{path} holds {' and '.join(file.name for file in files)}: name one of them")
        return files[0] if files else path
    merged = Shards(path, record["num"], record["shard_size"], tuple(record["shape"]), record["labelled"]).target
    if not merged.is_file():
        raise ValueError(f"{path} holds a run that is not finished: {merged.name} is not there yet")
    return merged


def _is_idx(path: Path) -> bool:
    return any(path.glob("*idx3*"))


def _rows(images: NpzImages | Array, numbers: Sequence[int]) -> Array:
    """The images of these numbers; runs of them in one go."""
    if isinstance(images, np.ndarray):
        return images[np.asarray(numbers)]
    if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1:
        return images[numbers[0] : numbers[-1] + 1]
    return np.concatenate([images[number : number + 1] for number in numbers])


def _array(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    array = np.asarray(image)
    return array.reshape(*array.shape[:2], -1)


def to_image(array: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


__all__ = ["DataError", "Source", "Stored", "of_array", "open_source", "to_image"]
