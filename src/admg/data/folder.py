"""Folders of images: their files, the files that cannot be read, and the labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from PIL import Image, UnidentifiedImageError

from .decoding import Decoding, Kind
from .errors import DataError, listed
from .transforms import Pixels


@dataclass(frozen=True)
class ImageFile:
    """A readable image file, with its size (width, height) and what its header says about its pixels."""

    path: Path
    size: tuple[int, int]
    kind: Kind


def open_folder(root: Path, *, verify: bool, strict: bool) -> tuple[list[ImageFile], list[tuple[Path, str]]]:
    """Return all images in a folder and below it, ordered by path, and the files that are not images, with the reason.

    verify: decode every image; False reads only its header
    strict: raise DataError if a file is not an image

    Raises DataError if there is no image.
    """
    paths = list(_files(root))
    if not paths:
        raise DataError(f"{root} is an empty folder: allowed is a folder of images or of IDX files")
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        checked = list(pool.map(partial(_check, verify=verify), paths))
    images = [entry for entry in checked if isinstance(entry, ImageFile)]
    skipped = [(path, reason) for path, reason in zip(paths, checked, strict=True) if isinstance(reason, str)]
    if skipped and (strict or not images):
        path, reason = skipped[0]
        allowed = "with strict=True all must be" if images else "at least one must be"
        count = f"{len(skipped)} of {len(paths)} files in {root} cannot be read as images ({allowed})"
        raise DataError(f"{count}; the first is {path.relative_to(root)}: {reason}")
    return images, skipped


def read_image(path: Path, channels: int | None = None, decoding: Decoding | None = None, frame: int = 0) -> Pixels:
    """Return the decoded image, see `Decoding.pixels`. Raises DataError if it cannot be read or does not fit."""
    try:
        with Image.open(path) as image:
            if frame:
                image.seek(frame)
            return (decoding or Decoding()).pixels(image, channels)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # decoders raise many kinds: SyntaxError, struct.error, IndexError, ...
        raise DataError(f"{path} cannot be read as an image: {_reason(error)}") from error


def read_kind(path: Path) -> tuple[Kind, tuple[int, int]]:
    """Return what the header of an image says about its pixels, and its size. Raises DataError if it is no image."""
    found = _check(path, verify=False)
    if isinstance(found, str):
        raise DataError(f"{path} cannot be read as an image: {found}")
    return found.kind, found.size


def label_names_of(root: Path, paths: Sequence[Path]) -> list[str] | None:
    """Return the name of each image's label, or None if the images have no labels.

    In a folder of folders, the label is the name of the sub-folder. In a flat folder, it is the file name up to the
    first underscore, as in guided-diffusion. Raises DataError if the folder mixes the two.
    """
    relative = [path.relative_to(root) for path in paths]
    loose = [path.name for path in relative if len(path.parts) == 1]
    nested = [path.parts[0] for path in relative if len(path.parts) > 1]
    if loose and nested:
        raise DataError(
            f"{root} mixes class sub-folders (such as {nested[0]}) and loose images (such as {loose[0]}): allowed is "
            f"one or the other, or labels=False"
        )
    if nested:
        return nested
    unlabelled = [name for name in loose if "_" not in name]
    if unlabelled and len(unlabelled) < len(loose):
        raise DataError(
            f"{len(unlabelled)} of {len(loose)} images in {root} have no underscore after a label, such as "
            f"{unlabelled[0]}: allowed are all or none, or labels=False"
        )
    return None if unlabelled else [name.split("_")[0] for name in loose]


def number_labels(names: list[str], order: tuple[str, ...] | None) -> tuple[Int64[np.ndarray, " n"], tuple[str, ...]]:
    """Return the number of each name, and all names in the order of their numbers: `order`, or sorted by default."""
    order = tuple(sorted(set(names))) if order is None else order
    numbers = {name: number for number, name in enumerate(order)}
    unknown = sorted(set(names) - set(order))
    if unknown:
        raise DataError(f"images have labels that are not in label_names: {listed(unknown)}; allowed: {listed(order)}")
    return np.array([numbers[name] for name in names], np.int64), order


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link to a folder that contains this one
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in ("thumbs.db", "desktop.ini"):
            continue
        if entry.is_dir():
            yield from _files(entry, (*above, real))
        elif entry.is_file() or entry.is_symlink():  # a broken link is reported; opening a pipe would block
            yield entry


def _check(path: Path, verify: bool) -> ImageFile | str:
    try:
        with Image.open(path) as image:
            found = ImageFile(path, image.size, Kind.of(image))
            if verify:
                image.load()  # decodes all of it
            return found
    except Exception as error:  # as in read_image
        return _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
