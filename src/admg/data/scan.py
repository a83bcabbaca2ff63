"""`open_images`: the images of a folder or an archive, known by their headers, and the files that cannot be read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Literal

from PIL import Image

from admg.config import printable
from admg.warn import warn

from .errors import DataError, listed
from .folder import ImageFile, check
from .index import SMALLEST, read_index, write_index
from .listing import LABEL_FILES, ListedFile, Listing
from .members import ImagePath
from .spread import spread_indices

Verify = Literal["full", "headers", "none"]
TOGETHER = 32
"""Number of files that a thread reads in one go."""
PROBED = 64
"""Number of headers that are read with verify="none"."""
BAR_AFTER = 2.0
"""Seconds of reading after which a progress bar appears."""

Checked = ImageFile | str
"""An image, or the reason why it is not an image."""


def open_images(
    listing: Listing, *, verify: Verify = "headers", strict: bool = False, progress: bool = True
) -> tuple[list[ImageFile], list[tuple[ImagePath, str]]]:
    """Return all images among the listed files in their order, and the files that are not images, with the reason.

    verify: "full" decodes every image. "headers" reads only headers, and of a large data set only those that are new or
        have changed since it was last opened. "none" takes each file with the ending of an image for an image, and
        reads 64 headers, spread over the files: other images are assumed to be like the last one that was read.
    strict: raise DataError if a file is not an image
    progress: show a progress bar if this takes more than two seconds

    Hidden folders and those of systems (@eaDir, __MACOSX) are left out, with a warning. Raises DataError if there is no
    image.
    """
    root = listing.root
    files = [file for file in listing.files if file.name not in LABEL_FILES]
    if listing.left_out:
        what = f"the hidden and system folders, and training runs, of {root}"
        warn(f"left out {what}: {listed(listing.left_out)}")
    if not files:
        empty = "is an empty folder" if listing.members is None else f"is a {listing.kind} that holds none"
        raise DataError(f"{root} {empty}: expected a folder of images or of IDX files")
    checked = _assumed(listing, files, progress) if verify == "none" else _checked(listing, files, verify, progress)
    images = [entry for entry in checked.values() if isinstance(entry, ImageFile)]
    skipped = [(name, reason) for name, reason in checked.items() if isinstance(reason, str)]
    if skipped and (strict or not images):
        name, reason = skipped[0]
        allowed = "strict=True allows none" if images else "at least one must be readable"
        count = f"{len(skipped)} of {len(files)} files in {root} cannot be read as images ({allowed})"
        raise DataError(f"{count}; the first is {name}: {reason}")
    return images, [(listing.at(name), reason) for name, reason in skipped]


def _checked(listing: Listing, files: Sequence[ListedFile], verify: Verify, progress: bool) -> dict[str, Checked]:
    """Return the image or the error of each file, by name: from the index of the data set, or by reading the file."""
    large = len(files) >= SMALLEST
    known = read_index(listing.root, files, listing.at) if large else {}
    unread = [file.name for file in files if verify == "full" or file.name not in known]
    read = _read(listing, unread, verify == "full", progress)
    checked = {file.name: read[file.name] if file.name in read else known[file.name] for file in files}
    images = {name: entry for name, entry in checked.items() if isinstance(entry, ImageFile)}
    if large and any(images.get(name) != known.get(name) for name in unread):
        write_index(listing.root, files, images)
    return checked


def _assumed(listing: Listing, files: Sequence[ListedFile], progress: bool) -> dict[str, Checked]:
    """Return each file with the ending of an image as an image, with the mode and the size of some that are read."""
    endings = tuple(Image.registered_extensions())
    names = [file.name for file in files]
    chosen = names if listing.typed else [name for name in names if name.lower().endswith(endings)]
    others: dict[str, Checked] = {name: "its name does not have the ending of an image file" for name in names}
    probes = [chosen[i] for i in spread_indices(len(chosen), PROBED)]
    read = _read(listing, probes, False, progress)
    last = next((entry for entry in read.values() if isinstance(entry, ImageFile)), None)
    for name in chosen:
        entry = read.get(name)
        last = entry if isinstance(entry, ImageFile) else last
        if isinstance(entry, str):
            others[name] = entry
        elif last is not None:
            others[name] = replace(last, path=listing.at(name), kind=replace(last.kind, frames=1))
    return others


def _read(listing: Listing, names: Sequence[str], decode: bool, progress: bool) -> dict[str, Checked]:
    """Read headers, or decode images, in several threads; by name."""
    from tqdm.auto import tqdm

    parts = [names[start : start + TOGETHER] for start in range(0, len(names), TOGETHER)]
    results: dict[str, Checked] = {}
    desc = printable(f"reading {listing.root.name}")
    bar = tqdm(total=len(names), desc=desc, unit=" files", delay=BAR_AFTER, disable=not progress)
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            for part, checked in zip(parts, pool.map(partial(_read_part, listing, decode=decode), parts), strict=True):
                results.update(zip(part, checked, strict=True))
                bar.update(len(part))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # otherwise all files would be read first
            raise
    return results


def _read_part(listing: Listing, names: Sequence[str], decode: bool) -> list[Checked]:
    return [check(listing.at(name), decode) for name in names]
