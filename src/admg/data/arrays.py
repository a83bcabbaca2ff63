"""Files that hold a whole data set: IDX (the MNIST family), NumPy's .npz and .npy -> (N, H, W, C) and labels (N,)."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from admg.warn import warn

from .errors import DataError, listed

Split = Literal["train", "test"]
Arrays = tuple[Shaped[np.ndarray, "n h w c"], Int64[np.ndarray, " n"] | None]

BOMB = 1 << 30
"""Number of decompressed bytes that is always allowed."""
IDX_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> UInt8[np.ndarray, " ..."]:
    """Return the content of an IDX file of unsigned bytes, gzip'ed or not. Raises DataError if it is not one."""
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            start = file.read(4)
            ndim = start[3] if len(start) > 3 else 0
            if start[:3] != b"\0\0\x08" or ndim not in (1, 3):
                raise DataError(
                    f"{path} is not an IDX file, which begins with bytes 00000803 (images) or 00000801 (labels): got "
                    f"{start.hex() or 'none'}; NumPy's files need the suffix .npz"
                )
            shape = [int.from_bytes(file.read(4), "big") for _ in range(ndim)]
            size, stored = prod(shape), path.stat().st_size
            announced = f"its header announces {'x'.join(map(str, shape))} values"
            if zipped:
                check_bomb(path, size, stored)
            elif stored != 4 + 4 * ndim + size:
                raise DataError(f"{path} has {stored} bytes, but {announced}, which need {4 + 4 * ndim + size} bytes")
            values = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}, which may be a corrupt or truncated gzip file: {error}") from error
    if len(values) != size:
        raise DataError(f"{path} has {'more' if len(values) > size else 'fewer'} values, but {announced}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def check_bomb(path: Path, size: int, compressed: int) -> None:
    """Raise DataError if a file of this compressed size would fill the memory: over 1 GiB and 100 times as much."""
    if size > max(BOMB, 100 * compressed):
        raise DataError(
            f"{path} of {compressed:,} bytes would decompress to {size:,} bytes, more than 100 times its size"
        )


def find_idx(folder: Path, split: Split) -> Path | None:
    """Return the images file of a split in a folder of IDX files, or None if the folder has neither split.

    Raises DataError if only the other split is there.
    """
    paths = {name: _first(folder, f"{prefix}-images-idx3-ubyte") for name, prefix in IDX_PREFIX.items()}
    if any(paths.values()) and not paths[split]:
        raise DataError(f'{folder} has no {IDX_PREFIX[split]}-images-idx3-ubyte[.gz], needed for split="{split}"')
    return paths[split]


def open_idx(path: Path, labels: bool) -> Arrays:
    """Read one IDX file of images and, unless `labels` is False, the labels file beside it."""
    images = read_idx(path)
    if images.ndim != 3 or not images.size:
        raise DataError(f"{path} must hold images of shape (N, H, W) with N, H, W > 0, got shape {images.shape}")
    if not labels:
        return images[..., None], None
    name = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    labels_path = _first(path.parent, name)
    if labels_path is None or labels_path == path:
        raise DataError(f"{path} has no labels file {name}[.gz] beside it: add it, or pass labels='none'")
    values = read_idx(labels_path)
    if values.shape != images.shape[:1]:
        raise DataError(
            f"{labels_path} must hold one label per image: it has labels of shape {values.shape}, and {path.name} has "
            f"{len(images)} images"
        )
    return images[..., None], values.astype(np.int64)


def open_arrays_file(path: Path, labels: bool) -> Arrays:
    """Read an .npz with arr_0, (N, H, W) or (N, H, W, C), and optionally arr_1, integers (N,); or arr_0 as an .npy."""
    names, arrays = read_arrays(path, ("arr_0", "arr_1") if labels else ("arr_0",))
    if "arr_0" not in arrays:
        raise DataError(f"{path} has no arr_0, which must hold the images (it has {listed(names) or 'nothing'})")
    images, values = arrays["arr_0"], arrays.get("arr_1")
    unused = [name for name in names if "label" in name.lower() or name in ("y", "targets", "classes")]
    if labels and values is None and unused:
        warn(f"{path} has no arr_1, from which labels are read; ignoring {listed(unused)}")
    check_not_one_image(images.shape, f"the images in {path}")
    if images.ndim == 3:
        images = images[..., None]
    numeric = np.issubdtype(images.dtype, np.integer) or np.issubdtype(images.dtype, np.floating)
    if not numeric or images.ndim != 4 or not images.size or not channel_axes(images.shape)[1]:
        raise DataError(
            f"{path}: arr_0 must hold numbers, preferably uint8, of shape (N, H, W) or (N, H, W, C) with N, H, W > 0 "
            f"and fewer channels than pixels per side, got {images.dtype} of shape {images.shape}"
        )
    if values is None:
        return images, None
    if not np.issubdtype(values.dtype, np.integer) or values.shape != images.shape[:1]:
        raise DataError(
            f"{path}: arr_1 must hold one integer label per image, shape ({len(images)},), got {values.dtype} of shape "
            f"{values.shape}"
        )
    if len(negative := np.flatnonzero(values < 0)):
        raise DataError(
            f"{path}: labels in arr_1 must not be negative, got {values.min()}: {len(negative)} of {len(values)} "
            f"images have no label ({listed([f'image {i}' for i in negative], 3)}); label all images, or pass "
            f"labels='none' (--unlabelled)"
        )
    return images, values.astype(np.int64)


def read_arrays(path: Path, names: Collection[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the names of all arrays in an .npz or .npy file, and those of the given names that are there.

    The array of an .npy has the name arr_0. Raises DataError if the file cannot be read without running code, or would
    fill the memory.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    if member.filename.removesuffix(".npy") in names:
                        check_bomb(path, member.file_size, member.compress_size)
        file = np.load(path, allow_pickle=False)  # an object array could run code: NumPy refuses it here
        if isinstance(file, np.ndarray):
            return ["arr_0"], {"arr_0": file}
        with file:
            arrays = {name: file[name] for name in names if name in file.files}
            if other := next((name for name, value in arrays.items() if not isinstance(value, np.ndarray)), None):
                raise ValueError(f"{other} is not an array")
            return file.files, arrays
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds: encryption, methods, sizes beyond memory
        reason = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
        raise DataError(f"{path} is not an {path.suffix} file of plain arrays: {reason}") from error


def channel_axes(shape: tuple[int, ...]) -> tuple[bool, bool]:
    """Return whether axis 1, and whether axis 3, of (N, C, H, W) or (N, H, W, C) can be the channel axis.

    An axis of length 1 or 3 can be. If neither has such a length, an axis that is shorter than the other two can be.
    """
    if len(shape) != 4:
        return False, False
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first or last:
        return first, last
    return shape[1] < min(shape[2:]), shape[3] < min(shape[1:3])


def check_not_one_image(shape: tuple[int, ...], what: str = "the images") -> None:
    """Raise DataError for (H, W, C) of at most 4 channels, one image, which would be taken for H images of W x C."""
    if len(shape) == 3 and shape[2] <= 4 < min(shape[:2]):
        raise DataError(f"{what} have shape {tuple(shape)}, which looks like one image (H, W, C): use images[None]")


def _first(folder: Path, name: str) -> Path | None:
    """Return the file of that name in any spelling of the MNIST family: dash or dot before idx, with or without .gz."""
    spellings = [name.replace(".idx", "-idx"), name.replace("-idx", ".idx")]
    paths = [folder / (spelling + end) for spelling in spellings for end in ("", ".gz")]
    return next((path for path in paths if path.is_file()), None)
