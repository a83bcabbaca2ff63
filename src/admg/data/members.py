"""Images inside larger files, such as zips and tars: each is read by itself, in any order, without unpacking."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from PIL import Image

from .errors import DataError

ORIENTATION = 274
"""Tag of EXIF; above 4, the sides of the image are exchanged."""
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
"""Header in front of each member of a zip: signature, ..., lengths of the name and of the extra field."""
NOWHERE = -1
"""Start of a member that its container does not hold as a whole, such as a link to a file elsewhere."""
PROGRAMS = frozenset({"EPS", "WMF"})
"""Formats that Pillow passes to Ghostscript or Windows, which execute the file's content."""


@dataclass(frozen=True, slots=True)
class Member:
    """An image inside a larger file. It is pickled and used in several processes and threads at once.

    container: file that holds it
    name: its name within that file, with "/"
    size: number of bytes
    label: number or name that is stored with it, or None
    """

    container: Container
    name: str
    size: int = 0
    label: int | str | None = None

    def open(self) -> BinaryIO:
        """Return the content of the image as a file that reads only the requested bytes."""
        raise NotImplementedError

    def read_bytes(self) -> bytes:
        """Return the content of the image."""
        with self.open() as file:
            return file.read()

    def __str__(self) -> str:
        return f"{self.container.path}/{self.name}"


ImagePath = Path | Member
"""Where an image is: a file of its own, or a part of a file."""


@dataclass(frozen=True, slots=True)
class Container:
    """A file that holds images, as it was when it was opened.

    size, changed: size in bytes, and time of the last change in nanoseconds
    """

    path: Path
    size: int
    changed: int

    @classmethod
    def from_path(cls, path: Path) -> Container:
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def read(self, start: int, size: int) -> bytes:
        """Return at most `size` bytes from `start`. Raises DataError if the file has been replaced."""
        file = _opened(self, os.getpid(), threading.get_ident())
        file.seek(start)
        return file.read(size)


@lru_cache(maxsize=256)
def _opened(container: Container, process: int, thread: int) -> BinaryIO:
    """Return a file opened by this thread of this process, since sharing a file would share its position."""
    file = container.path.open("rb", buffering=0)
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != (container.size, container.changed):
        file.close()
        raise DataError(f"{container.path} has changed since it was opened: open it again")
    return cast(BinaryIO, file)


class Readable(Protocol):
    """Content that is read from any position."""

    def read(self, start: int, size: int) -> bytes: ...


class Part(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, container: Readable, start: int, size: int):
        self.container, self.start, self.size, self.position = container, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, origin + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        wanted = max(0, min(len(buffer), self.size - self.position))
        content = self.container.read(self.start + self.position, wanted)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


@dataclass(frozen=True, slots=True)
class StoredMember(Member):
    """An image that is stored as it is, as in tars.

    start: position of its first byte, or NOWHERE
    """

    start: int = 0

    def open(self) -> BinaryIO:
        if self.start == NOWHERE:
            raise DataError("it is a link to a folder or to a file elsewhere, or a sparse file: store the file itself")
        return cast(BinaryIO, io.BufferedReader(Part(self.container, self.start, self.size)))


@dataclass(frozen=True, slots=True)
class ZipMember(Member):
    """An image in a zip, stored or deflated.

    header: position of its local header
    packed: number of bytes in the zip
    deflated: whether they are compressed
    crc: CRC-32 of the content
    """

    header: int = 0
    packed: int = 0
    deflated: bool = False
    crc: int = 0

    def open(self) -> BinaryIO:
        fields = self.container.read(self.header, LOCAL_HEADER.size)
        if len(fields) < LOCAL_HEADER.size or fields[:4] != b"PK\x03\x04":
            raise DataError("its header in the zip is damaged")
        *_, name, extra = LOCAL_HEADER.unpack(fields)
        part = Part(self.container, self.header + LOCAL_HEADER.size + name + extra, self.packed)
        if not self.deflated:
            return cast(BinaryIO, io.BufferedReader(part))
        whole = zlib.decompressobj(-zlib.MAX_WBITS).decompress(part.readall(), max(1, self.size))
        return io.BytesIO(whole)

    def read_bytes(self) -> bytes:
        """Return the content of the image. Raises DataError if its checksum is wrong."""
        content = Member.read_bytes(self)
        if zlib.crc32(content) != self.crc:
            raise DataError("it is damaged: its checksum is not the one in the zip")
        return content


def open_image(file: ImagePath, whole: bool = False) -> Image.Image:
    """Return the image as Pillow opens it: with its header read, but not its pixels.

    whole: read all of a member, for its pixels, and compare its checksum if it has one

    Raises DataError for a format that another program would render, and for implausibly many pixels.
    """
    if isinstance(file, Path):
        image = Image.open(file)
        if image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) > 4:
            image.filename = ""  # which keeps Pillow from mapping raw pixels into memory with their sides exchanged
    else:
        image = Image.open(io.BytesIO(file.read_bytes()) if whole else file.open())
    if image.format in PROGRAMS:
        image.close()
        raise DataError(f"it has the format {image.format}, which contains drawing commands: convert it to PNG")
    check_pixels(image)
    if not isinstance(file, Path):
        image.filename = str(file)
    return image


def check_pixels(image: Image.Image) -> None:
    """Raise DataError if an image, or its current frame, is so large that Pillow warns of it."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        image.close()
        raise DataError(f"it has {image.width}x{image.height} pixels, more than {most // 1_000_000} million")


def stamp(file: ImagePath) -> tuple[str, int, int]:
    """Return the name of a file, its size in bytes and its time of change, which show whether it has changed."""
    if isinstance(file, Path):
        status = file.stat()
        return file.name, status.st_size, status.st_mtime_ns
    return file.name, file.size, file.container.changed
