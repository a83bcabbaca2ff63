"""Zips of images, such as those of the dataset tools of StyleGAN and EDM."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

from .arrays import check_bomb
from .errors import DataError
from .listing import DESCRIPTION, Description, Listing, in_order, visible
from .members import Container, ZipMember

READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError)
"""What zipfile raises for damaged files."""
ENCRYPTED = 1  # bit of the flags of a member


def list_zip(path: Path) -> Listing:
    """Return the files in a zip. Raises DataError if it is not a zip, or if its members cannot be read at random."""
    container = Container.from_path(path)
    try:
        with zipfile.ZipFile(path) as file:
            entries = {entry.filename: entry for entry in file.infolist() if not entry.is_dir()}
            for entry in entries.values():
                _check(path, entry)
            descriptions = [name for name in entries if name.rpartition("/")[2] == DESCRIPTION]
            described = min(descriptions, key=lambda name: name.count("/"), default=None)
            content = None if described is None else file.read(described)
    except DataError:
        raise
    except (*BROKEN, ValueError) as error:
        raise DataError(f"{path} cannot be read as a zip: {error}") from error
    names, left_out = visible(entries)
    members = {name: _member(container, entries[name]) for name in in_order(names) if name != described}
    description = None
    if described is not None and content is not None:
        description = Description(content, described.removesuffix(DESCRIPTION))
    return Listing.of_members(path, members, left_out, "zip of images", description)


def _check(path: Path, entry: zipfile.ZipInfo) -> None:
    """Raise DataError if a member cannot be read at random, or would fill the memory."""
    if entry.compress_type not in READABLE or entry.flag_bits & ENCRYPTED:
        how = "encrypted" if entry.flag_bits & ENCRYPTED else f"compressed by method {entry.compress_type}"
        raise DataError(f"{path}: members must be stored or deflated, but some are {how}, such as {entry.filename}")
    if entry.file_size > 100 * entry.compress_size:  # making paths of a million names would take a minute
        check_bomb(path / entry.filename, entry.file_size, entry.compress_size)


def _member(container: Container, entry: zipfile.ZipInfo) -> ZipMember:
    deflated = entry.compress_type == zipfile.ZIP_DEFLATED
    return ZipMember(
        container,
        entry.filename,
        entry.file_size,
        header=entry.header_offset,
        packed=entry.compress_size,
        deflated=deflated,
        crc=entry.CRC,
    )
