"""Zips of images, such as those of the dataset tools of StyleGAN and EDM."""

from __future__ import annotations

import zipfile
from pathlib import Path

from .arrays import check_bomb
from .errors import DataError
from .listing import DESCRIPTION, Description, Listing, in_order, visible
from .members import Container, ZipMember

READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1  # bit of the flags of a member


def list_zip(path: Path) -> Listing:
    """Return the files in a zip. Raises DataError if it is not a zip, or if its members cannot be read at random."""
    container = Container.of(path)
    try:
        with zipfile.ZipFile(path) as file:
            entries = {entry.filename: entry for entry in file.infolist() if not entry.is_dir()}
            found = [name for name in entries if name.rpartition("/")[2] == DESCRIPTION]
            described = min(found, key=lambda name: name.count("/"), default=None)
            if described is not None:
                entry = entries[described]
                check_bomb(path / described, entry.file_size, entry.compress_size)
            content = None if described is None else file.read(described)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as a zip: {error}") from error
    for entry in entries.values():
        check_bomb(path / entry.filename, entry.file_size, entry.compress_size)
        if entry.compress_type not in READABLE or entry.flag_bits & ENCRYPTED:
            how = "encrypted" if entry.flag_bits & ENCRYPTED else f"compressed by method {entry.compress_type}"
            raise DataError(
                f"{path} has members that are {how}, such as {entry.filename}: allowed are stored and deflated"
            )
    names, left_out = visible(entries)
    members = {
        name: ZipMember(
            container,
            name,
            entries[name].file_size,
            header=entries[name].header_offset,
            packed=entries[name].compress_size,
            deflated=entries[name].compress_type == zipfile.ZIP_DEFLATED,
        )
        for name in in_order(names)
        if name != described
    }
    description = None
    if described is not None and content is not None:
        description = Description(content, described.removesuffix(DESCRIPTION))
    return Listing.of_members(path, members, left_out, "zip of images", description)
