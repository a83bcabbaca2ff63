"""Images for evaluation: arrays, .npz files, folders and data sets, read in slices; and stored statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from admg.config import check_integer, printable
from admg.data import DataError
from admg.data import open as open_dataset
from admg.data.arrays import channel_axes, read_arrays
from admg.data.decoding import Decoding, Kind, check_not_binary, choose_decoding, note_frames
from admg.data.errors import listed
from admg.data.folder import read_image
from admg.data.generated import find_samples
from admg.data.labelling import find_labels
from admg.data.listing import Listing
from admg.data.members import ImagePath
from admg.data.scan import open_images
from admg.data.sources import find_source
from admg.data.spread import spread_indices
from admg.data.transforms import Pixels, center_crop, pad
from admg.data.value_range import ValueRange, check_array_8_bits
from admg.generation.label_names import names_of_labels
from admg.generation.run_record import read_record, recorded_shards
from admg.generation.shards import NpzImages

from .metrics.statistics import STORED, StoredStatistics, statistics_of

Fit = Literal["resize", "pad"]
Array = UInt8[np.ndarray, "n h w c"]


@dataclass(eq=False)
class Source:
    """Images that are read in slices: source[a:b] is uint8 (n, H, W, C).

    name: name in messages
    images: images in memory or on disk, or None if there are only statistics
    size: height and width, after `fit`; None if the images have several sizes
    channels: number of channels
    labels: labels (N,) of the chosen images, or None
    label_names: names of the labels, if the source names them
    statistics: statistics stored with the images or instead of them
    numbers: indices of the chosen images in `images`
    fit: fitting of images of another size: "resize" (scale and crop), "pad" (a border), or None
    decoding: how files become pixels
    kinds: the files of a folder, with their headers
    frames: the frame of each file, or None for the first ones
    view: size and fit of the data set whose images these are, which comes before `size` and `fit`
    names_of_numbers: names of the labels 0, 1, ... of the model that made the images, "" for one that is not known
    """

    name: str
    images: NpzImages | Array | Sequence[ImagePath] | None
    size: tuple[int, int] | None
    channels: int
    labels: Int64[np.ndarray, " n"] | None = None
    label_names: tuple[str, ...] = ()
    statistics: StoredStatistics | None = None
    numbers: Sequence[int] = field(default=())
    fit: Fit | None = None
    decoding: Decoding = field(default_factory=Decoding)
    kinds: Sequence[tuple[ImagePath, Kind]] = ()
    frames: Sequence[int] | None = None
    view: tuple[tuple[int, int], Fit] | None = None
    names_of_numbers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.numbers and self.images is not None:
            self.numbers = range(len(self.images))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, chosen: slice) -> Array:
        numbers = self.numbers[chosen]
        if self.size is None:
            raise ValueError(f"{self.name} has images of different sizes: fit them to one size")
        if isinstance(self.images, NpzImages | np.ndarray):
            raw = _rows(self.images, numbers)
            if any(raw.shape[1:3] != size for size, _ in self._fits):
                raw = np.stack([self._fitted(image) for image in raw])
            return raw.repeat(3, axis=3) if raw.shape[3] == 1 and self.channels == 3 else raw
        with ThreadPoolExecutor(4) as pool:  # Pillow decodes without Python's lock
            return np.stack(list(pool.map(self._decoded, numbers)))

    def title(self, at: int) -> str:
        """Return the name of the image at a position: its file within the source, or its number in an array."""
        number = self.numbers[at]
        if self.images is None or isinstance(self.images, NpzImages | np.ndarray):
            return str(number)
        frame = f" frame {self.frames[number]}" if self.frames is not None else ""
        return printable(str(self._path(number)).removeprefix(f"{self.name}/") + frame)

    def digest(self, chosen: slice) -> bytes:
        """Return the SHA-256 of a slice: of its pixels or files, and of their fitting."""
        digest = hashlib.sha256()
        numbers = self.numbers[chosen]
        if isinstance(self.images, NpzImages | np.ndarray):
            raw = np.ascontiguousarray(_rows(self.images, numbers))
            border = f" {self.decoding.canvas}" if self.fit == "pad" and self.decoding.canvas else ""
            fit = "" if raw.shape[1:3] == self.size else f"{self.fit} {self.size}{border}"
            repeated = " in colour" if raw.shape[3] < self.channels else ""
            digest.update(f"{raw.shape} {fit}{self.before}{repeated}".encode())
            digest.update(raw.data)
        else:
            decoding = "" if self.decoding == Decoding() else str(self.decoding)
            digest.update(f"files {self.channels} {self.fit} {self.size}{decoding}{self.before}".encode())
            for number in numbers:
                if self.frames is not None:
                    digest.update(f"frame {self.frames[number]}".encode())
                digest.update(hashlib.sha256(self._path(number).read_bytes()).digest())
        return digest.digest()

    def fitted(self, size: tuple[int, int], fit: Fit | None) -> Source:
        """Return the source with images of this height and width, fitted as in training.

        Raises ValueError if they have another size and no fit is chosen, or if the size is not square.
        """
        if self.size == size or self.images is None:
            return self
        have = "different sizes" if self.size is None else f"{self.size[1]}x{self.size[0]}"
        want = f"{size[1]}x{size[0]}"
        if fit is None:
            raise ValueError(
                f"{self.name} has images of {have}, but the samples are {want}: pass fit='resize' (scale and crop) "
                f"or fit='pad' (a border)"
            )
        if size[0] != size[1]:
            raise ValueError(f"{self.name} has images of {have}, which can only be fitted to squares, not to {want}")
        decoding = self.decoding
        if fit == "pad" and self.kinds:
            decoding = choose_decoding(self.kinds, self.name, **vars(decoding), padded=True)
        return replace(self, size=size, fit=fit, decoding=decoding, statistics=None)  # which are of another size

    def subset(self, num: int | None) -> Source:
        """Return the source with `num` images, spread over all; None keeps all. Stored statistics do not change.

        Raises ValueError if num < 2, or if there are only stored statistics.
        """
        if num is not None:
            check_integer("the number of images", num, 2)
        if num is not None and self.images is None:
            raise ValueError(f"{self.name} holds statistics but no images: {num} images cannot be chosen")
        if num is None or num >= len(self):
            return self
        at = spread_indices(len(self), num)
        labels = None if self.labels is None else self.labels[at]
        return replace(self, numbers=[self.numbers[i] for i in at], labels=labels, statistics=None)

    def _path(self, number: int) -> ImagePath:
        assert self.images is not None and not isinstance(self.images, NpzImages | np.ndarray)
        return self.images[number]

    def _decoded(self, number: int) -> UInt8[np.ndarray, "h w c"]:
        frame = 0 if self.frames is None else self.frames[number]
        image = read_image(self._path(number), self.channels, self.decoding, frame)
        return self._fitted(_array(image)) if self.fit else _array(image)

    @property
    def _fits(self) -> list[tuple[tuple[int, int], Fit | None]]:
        """The sizes to which images are fitted, one after the other, and how."""
        assert self.size is not None
        return [*([] if self.view is None else [self.view]), (self.size, self.fit)]

    @property
    def before(self) -> str:
        """The fitting of a data set that comes before another one, in digests; "" if there is none."""
        return "" if self.view is None or self.view[0] == self.size else f" of {self.view} {self.decoding.canvas}"

    def _fitted(self, array: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
        for size, fit in self._fits:
            if array.shape[:2] == size:
                continue
            if fit == "pad":
                array = pad(array, size[0], canvas=self.decoding.canvas)
            else:
                array = center_crop(_pixels(array), size[0]).reshape(*size, -1)
        return array


def open_source(
    path: str | Path,
    *,
    labels: bool = False,
    split: Literal["train", "test"] = "test",
    value_range: ValueRange | None = None,
    wide_range: ValueRange | None = None,
    background: int | None = None,
) -> Source:
    """Open images and statistics from a file or folder.

    - An .npz like the published batches: arr_0, uint8 (N, H, W[, C]), and optionally labels, arr_1. It may have
      statistics of Inception (mu and sigma, and mu_s and sigma_s for sFID) with arr_0 or instead of it.
    - A folder that `admg sample` or `admg demo` wrote: its .npz is read.
    - A folder of images, with or without sub-folders, or any other source of image files that `admg.data.open` reads.
    - A folder of IDX files (the MNIST family), whose part `split` chooses, or one IDX file.

    labels: whether to read labels: arr_1, or for a folder the names of sub-folders or the beginnings of file names
    value_range, wide_range, background: how files become pixels, see `admg.data.open`
    Raises ValueError for anything else, fewer than two images, or a `value_range` for an .npz.
    """
    path = _merged(Path(path).expanduser())
    if path.suffix.lower() == ".npz":
        if value_range not in (None, (0, 255)):
            raise ValueError(f"value_range applies only to image files, and {path} holds 8-bit images")
        source = replace(_open_npz(path, labels), decoding=Decoding(background=background))
        source.names_of_numbers = names_of_labels(path) if labels else ()
    elif isinstance(listing := find_source(path, split, classes=labels), Listing):
        source = _open_listing(listing, labels, value_range, wide_range, background)
    else:
        data = open_dataset(  # any size: kept as stored
            path, 1, labels=labels, split=split, value_range=value_range, wide_range=wide_range
        )
        assert isinstance(data.images, np.ndarray)
        height, width, channels = data.images.shape[1:]
        names = () if data.numbered else data.label_names
        source = Source(str(path), data.images, (height, width), channels, data.labels, names)
        source.decoding = Decoding(background=background)
    if source.images is not None and len(source) < 2:
        raise ValueError(f"at least 2 images are needed, but {path} holds one")
    return source


def _open_npz(path: Path, labels: bool) -> Source:
    try:
        names, stored = read_arrays(path, STORED)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    has_statistics = "mu" in stored or "sigma" in stored
    statistics = StoredStatistics(*statistics_of(path, names, stored)) if has_statistics else None
    if "arr_0" not in names:
        if statistics is None:
            raise ValueError(
                f"{path} has neither images (arr_0) nor statistics (mu, sigma): it has {listed(names) or 'nothing'}"
            )
        return Source(str(path), None, None, 3, statistics=statistics)
    images = NpzImages(path).verify()
    if not channel_axes(images.shape)[1]:
        raise ValueError(f"{path} cannot be used: arr_0 must be (N, H, W, C), channels last, got {images.shape}")
    check_array_8_bits(images, f"the images in {path}", "multiply them by 255")
    stored_labels = images.labels if labels else None
    return Source(str(path), images, images.shape[1:3], images.shape[3], stored_labels, statistics=statistics)


def _open_listing(
    listing: Listing,
    labels: bool,
    value_range: ValueRange | None,
    wide_range: ValueRange | None,
    background: int | None,
) -> Source:
    files, _ = open_images(listing)
    path = listing.root
    kinds = [(file.path, file.kind) for file in files]
    note_frames(kinds, path)
    decoding = choose_decoding(kinds, path, value_range=value_range, wide_range=wide_range, background=background)
    if value_range is None and all(kind.has_8_bits for _, kind in kinds):
        check_not_binary([file for file, _ in kinds], path)
    sizes = {file.size for file in files}
    size = next(iter(sizes))[::-1] if len(sizes) == 1 else None
    paths = [file.path for file in files]
    source = Source(str(path), paths, size, max(file.kind.channels for file in files), decoding=decoding, kinds=kinds)
    labelling = find_labels(listing, paths) if labels else None
    if labelling is None:
        return source
    return replace(source, labels=labelling.numbers, label_names=() if labelling.numbered else labelling.names)


def _merged(path: Path) -> Path:
    """Return the merged samples in the folder of a run or of `admg demo`, and any other path unchanged.

    Raises ValueError if the run is not finished, or if the folder holds several such files.
    """
    record = read_record(path) if path.is_dir() else None
    if record is None:
        return find_samples(path) or path
    merged = recorded_shards(path, record).target
    if not merged.is_file():
        raise ValueError(f"{path} holds an unfinished run: {merged.name} does not exist yet")
    return merged


def _rows(images: NpzImages | Array, numbers: Sequence[int]) -> Array:
    """Return the images at these positions; consecutive ones are read at once."""
    if isinstance(images, np.ndarray):
        return np.take(images, np.asarray(numbers), axis=0)
    if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1:
        return images[numbers[0] : numbers[-1] + 1]
    return np.concatenate([images[number : number + 1] for number in numbers])


def _pixels(image: UInt8[np.ndarray, "h w c"]) -> Pixels:
    """Return grey and colour images as Pillow images, which are resampled as files are."""
    if image.shape[2] not in (1, 3):
        return image
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _array(image: Pixels) -> UInt8[np.ndarray, "h w c"]:
    array = np.asarray(image)
    return array.reshape(*array.shape[:2], -1)


__all__ = ["DataError", "Source", "open_source"]
