"""Zips of images, such as those of the dataset tools of StyleGAN and EDM."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .arrays import Split, check_bomb
from .errors import DataError
from .generated import without_pictures
from .listing import DESCRIPTION, METADATA, Listing, in_order, is_image, visible
from .members import Container, ZipMember
from .metadata import description_of, nearest
from .parts import top_of_part

READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError)
"""What zipfile raises for damaged files."""
ENCRYPTED = 1  # bit of the flags of a member


def list_zip(path: Path, split: Split = "train", *, classes: bool = True) -> Listing:
    """Return the files in a zip. Raises DataError if it is not a zip, or if its members cannot be read at random.

    split: part to take, if the zip holds folders of classes in train/, test/, val/, ...
    classes: see `find_source`
    """
    container = Container.from_path(path)
    top = description = metadata = None
    try:
        with zipfile.ZipFile(path) as file:
            entries = _by_name([entry for entry in file.infolist() if not entry.is_dir()])
            for entry in entries.values():
                _check(path, entry)
            names, left_out = visible(entries)
            every = without_pictures(names)
            top = top_of_part(every, split, path, classes=classes)
            names = [name for name in every if name.startswith(top or "")]
            images = [name for name in names if is_image(name)]
            if (found := nearest(every, [DESCRIPTION], images)) is not None:
                description = description_of(found, file.read(entries[found]))
            elif (found := nearest(every, METADATA, images)) is not None:
                metadata = description_of(found, file.read(entries[found]))
    except DataError:
        raise
    except (*BROKEN, ValueError) as error:
        raise DataError(f"{path} cannot be read as a zip: {error}") from error
    other = [] if description is None else [f"{description.top}{DESCRIPTION}"]
    other += [] if metadata is None else [f"{metadata.top}{name}" for name in METADATA]
    members = {name: _member(container, name, entries[name]) for name in in_order(names) if name not in other}
    listing = Listing.of_members(path, members, left_out, "zip of images", description)
    return replace(listing, metadata=metadata, top=top)


def _by_name(entries: Sequence[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return members by their names, with "/" also if the zip, like those of old .NET tools, has only "\\"."""
    slashed = any("/" in entry.filename for entry in entries)
    return {entry.filename if slashed else entry.filename.replace("\\", "/"): entry for entry in entries}


def _check(path: Path, entry: zipfile.ZipInfo) -> None:
    """Raise DataError if a member cannot be read at random, or would fill the memory."""
    if entry.compress_type not in READABLE or entry.flag_bits & ENCRYPTED:
        how = "encrypted" if entry.flag_bits & ENCRYPTED else f"compressed by method {entry.compress_type}"
        raise DataError(f"{path}: members must be stored or deflated, but some are {how}, such as {entry.filename}")
    if entry.file_size > 100 * entry.compress_size:  # making paths of a million names would take a minute
        check_bomb(path / entry.filename, entry.file_size, entry.compress_size)


def _member(container: Container, name: str, entry: zipfile.ZipInfo) -> ZipMember:
    deflated = entry.compress_type == zipfile.ZIP_DEFLATED
    return ZipMember(
        container,
        name,
        entry.file_size,
        header=entry.header_offset,
        packed=entry.compress_size,
        deflated=deflated,
        crc=entry.CRC,
    )
