"""An index of the headers of a data set's images, in the cache folder, so that they are read only once.

An entry is valid only while the size and the modification time of the file are unchanged. An index that is damaged or
has another version is ignored and rewritten. Processes that write it at the same time replace the whole file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import PIL

from . import cached
from .decoding import Kind
from .folder import ImageFile
from .listing import ListedFile
from .members import ImagePath

Row = tuple[str, int, int, int, int, str, bool, bool, int, bool]
"""Name, size in bytes and modification time of a file, its width and height, and the fields of its Kind."""
VERSION = "3"
"""Version of the meaning of these fields; other versions are rewritten."""
SMALLEST = 64
"""Minimum number of files for an index; with fewer, reading the headers is as fast."""


def read_index(
    root: Path, files: Iterable[ListedFile], at: Callable[[str], ImagePath] | None = None
) -> dict[str, ImageFile]:
    """Return the images that the index knows among the files, by name; {} if there is no index.

    root: folder, or file that holds the images
    at: function from a name to the path of its file; by default the path below the folder
    """
    at = at or root.joinpath
    with suppress(Exception):  # an index only saves time: ignore every failure
        content = cached.read_index(index_path(root))
        if content["about"] != _about(root):
            return {}
        rows = msgspec.convert(content["files"], list[Row])
        stored = {name: (size, changed, header) for name, size, changed, *header in rows}
        entries = ((file, stored.get(file.name)) for file in files)
        return {
            file.name: _image(at(file.name), entry[2])
            for file, entry in entries
            if entry is not None and entry[:2] == (file.size, file.changed)
        }
    return {}


def write_index(root: Path, files: Iterable[ListedFile], images: Mapping[str, ImageFile]) -> None:
    """Write an index of the images, by name, among the files. Does nothing if the cache folder is not writable."""
    rows = [
        [file.name, file.size, file.changed, *images[file.name].size, *dataclasses.astuple(images[file.name].kind)]
        for file in files
        if file.name in images
    ]
    cached.write_index(index_path(root), {"about": _about(root), "files": rows})


def index_path(root: Path) -> Path:
    """Return the index file of a folder, or of a file that holds images."""
    return cached.cache_path("folders", root, ".json.gz")


def _about(root: Path) -> list[str]:
    """Return the key of an index: the folder, the version, the stored fields of an image, and Pillow's version."""
    return [cached.place_of(root), VERSION, *(field.name for field in dataclasses.fields(Kind)), PIL.__version__]


def _image(path: ImagePath, header: list[Any]) -> ImageFile:
    width, height, *kind = header
    return ImageFile(path, (width, height), Kind(*kind))
