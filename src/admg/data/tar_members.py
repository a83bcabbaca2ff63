"""Where the files in a tar lie, including those that are stored as links to others."""

from __future__ import annotations

import posixpath
import tarfile
from pathlib import Path

from .errors import DataError
from .members import NOWHERE

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""First bytes of files of gzip, bzip2, xz and zstd."""

MAX_LINKS = 40
"""Largest number of links from one to the next, as on Linux."""

Place = tuple[int, int]
"""First byte of a file in a tar and its number of bytes; (NOWHERE, 0) for one that cannot be read there."""


def read_places(path: Path) -> tuple[dict[str, Place], set[str]]:
    """Read a tar. Return the place of each file by name, and the names of links to folders in it, which have no place.

    GNU tar stores the second name of a hard-linked file as a link. The place of a link is that of its target; links to
    other files than those in the tar, and sparse files, have no place. Raises DataError if the tar cannot be read.
    """
    places: dict[str, Place] = {}
    links: dict[str, str] = {}
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as file:
            for entry in file:
                name = entry.name.removeprefix("./")
                if entry.islnk() or entry.issym():
                    links[name] = _target(entry)
                elif entry.isreg() and entry.offset_data + entry.size > length:
                    raise DataError(f"{path} is truncated or damaged: {name} would end beyond the end of the file")
                elif entry.isreg():
                    places[name] = (NOWHERE, 0) if entry.issparse() else (entry.offset_data, entry.size)
    except (tarfile.TarError, OverflowError) as error:  # sizes may be larger than any file
        with path.open("rb") as raw:
            packed = raw.read(6).startswith(COMPRESSED)
        hint = "it is compressed, and its images cannot be read one by one: unpack it" if packed else error
        raise DataError(f"{path} cannot be read as a tar: {hint}") from error
    return _with_links(places, links)


def _target(entry: tarfile.TarInfo) -> str:
    """Return the name that a link leads to. That of a symbolic link is relative to its folder."""
    folder = posixpath.dirname(entry.name) if entry.issym() else ""
    return posixpath.normpath(posixpath.join(folder, entry.linkname))


def _with_links(places: dict[str, Place], links: dict[str, str]) -> tuple[dict[str, Place], set[str]]:
    """Return the places of files and links, and the names of links to folders."""
    folders = _folders([*places, *links]) if links else set[str]()
    found, linked = dict(places), set[str]()
    for name in (name for name in links if name not in places):  # a file that was added twice is a link to itself
        target = links[name]
        for _ in range(MAX_LINKS - 1):
            target = target if target in places else links.get(target, target)
        found[name] = places.get(target, (NOWHERE, 0))
        if target in folders:
            linked.add(name)
    return found, linked


def _folders(names: list[str]) -> set[str]:
    """Return all folders above these files."""
    folders: set[str] = set()
    for name in names:
        while (name := posixpath.dirname(name)) and name not in folders and name != "/":
            folders.add(name)
    return folders
