"""`pack`: write a data set, resized, as a zip in the format of StyleGAN's and EDM's dataset tools."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from admg.files import LockError, locked, remove
from admg.warn import warn

from .dataset import Dataset
from .decoding import MODES
from .errors import DataError, UnreadableError
from .imagenet import published
from .labelling import description
from .listing import DESCRIPTION
from .members import LOCAL_HEADER, stamp
from .workers import in_workers

VERSION = 1
"""Version of the layout; an unfinished zip of another version is not continued."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Modification time of all members: the same images give the same bytes."""
SIZES = struct.Struct("<3L")
"""Checksum, compressed size and size, at byte 14 of a local header."""


@dataclass(frozen=True)
class Packed:
    """Progress of `pack`.

    position: number of images of the source that have been read
    problem: why the last one cannot be packed, or None
    """

    position: int
    problem: str | None = None


def pack(
    dataset: Dataset,
    out: Path | str,
    *,
    workers: int = 0,
    compression: int = 0,
    strict: bool = False,
    overwrite: bool = False,
) -> Generator[Packed]:
    """Write the images of a data set, fitted to its size, to a zip, and yield the progress after each of them.

    dataset: what `open` returns; its random augmentation is left out
    out: the zip, 00000/img00000000.png, ... and dataset.json, in the order of the data set
    workers: processes that read and resize images; they do not change the result
    compression: compression of the PNG files, from 0 (none, as EDM's tool writes them) to 9
    strict: raise UnreadableError for an image that cannot be decoded, instead of leaving it out
    overwrite: replace an existing file

    Classes that are named by WordNet ids of ImageNet-1k get the published numbers and names. The zip appears when it is
    complete. Until then it is a hidden file beside it, which the next call with the same images and options continues;
    the result is the same to the byte.

    Raises DataError if the images cannot be stored in 8-bit PNG files, OSError if the zip cannot be written.
    """
    out = check_target(out, overwrite)
    if not 0 <= compression <= 9:
        raise DataError(f"compression must be an integer from 0 to 9, got {compression}")
    if dataset.channels not in MODES:
        raise DataError(f"images must have 1 to 4 channels to be stored as PNG files, got {dataset.channels}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with suppress(LockError):
            stack.enter_context(locked(out))
        check_target(out, overwrite)  # again, since another process may have written it while this one waited
        part = out.with_name(f".{out.stem}.{_digest(dataset, compression)}.part")
        for other in out.parent.glob(f".{out.stem}.{'[0-9a-f]' * 16}.part"):
            if other != part:
                warn(f"removed an unfinished {out.name} of other images or options")
                remove(other)
        try:
            yield from _write(part, dataset, workers, compression, strict)
            part.replace(out)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"cannot write {out}: {reason}; the same call continues where it stopped") from error
        remove(out.with_name(f".{out.name}.lock"))


def check_target(out: Path | str, overwrite: bool = False) -> Path:
    """Return the path of a zip that may be written. Raises DataError if it is another file, or exists."""
    out = Path(out).expanduser()
    if out.suffix.lower() != ".zip" or out.is_dir():
        raise DataError(f"out must be the name of a file that ends in .zip, got {out}")
    if out.exists() and not overwrite:
        raise DataError(f"{out} exists: pass overwrite=True to replace it")
    return out


def member_name(position: int) -> str:
    """Return the name of an image in the zip, as EDM's tool names it."""
    number = f"{position:08d}"
    return f"{number[:5]}/img{number}.png"


def labels_of(dataset: Dataset) -> tuple[Sequence[int], Sequence[str]]:
    """Return the number and the name of each image's label, -1 and "" for none; those of ImageNet as published."""
    if dataset.labels is None:
        return [-1] * len(dataset), [""] * len(dataset)
    known = published(dataset.label_names)
    every = [known.get(name, (number, name)) for number, name in enumerate(dataset.label_names)]
    labels = [(-1, "") if number < 0 else every[number] for number in dataset.labels.tolist()]
    return [number for number, _ in labels], [name for _, name in labels]


def _write(part: Path, dataset: Dataset, workers: int, compression: int, strict: bool) -> Iterator[Packed]:
    with part.open("r+b" if part.exists() else "w+b") as file:
        entries, end = recover(file)
        file.truncate(end)
        file.seek(end)
        encoded = _Encoded(dataset, compression)
        done = position_of(entries[-1]) + 1 if entries else 0
        written = {position_of(entry) for entry in entries}
        with zipfile.ZipFile(file, "w") as archive:
            archive.infolist().extend(entries)  # what an earlier call wrote
            for position in range(done):
                problem = None if position in written else encoded[position]
                yield Packed(position + 1, problem if isinstance(problem, str) else None)
            for position, content in enumerate(in_workers(encoded, range(done, len(dataset)), workers, 16), done):
                if isinstance(content, bytes):
                    archive.writestr(_entry(member_name(position)), content)
                    written.add(position)
                elif strict:
                    raise UnreadableError(content)
                yield Packed(position + 1, None if isinstance(content, bytes) else content)
            if not written:
                raise DataError("none of the images can be decoded")
            archive.writestr(_entry(DESCRIPTION), json.dumps(_description(dataset, sorted(written))))


@dataclass(frozen=True)
class _Encoded:
    """The images as PNG files, or the reasons why they cannot be decoded."""

    dataset: Dataset
    compression: int

    def __getitem__(self, position: int) -> bytes | str:
        try:
            x, _ = self.dataset.batch([position])
        except UnreadableError as error:
            return str(error)
        return png(to_bytes(x)[0], self.compression)


def to_bytes(x: Float[Tensor, "n c s s"]) -> UInt8[np.ndarray, "n s s c"]:
    """Return images in [-1, 1] as 8-bit pixels. 8-bit images are restored exactly."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def png(pixels: UInt8[np.ndarray, "h w c"], compression: int) -> bytes:
    """Return a PNG file of an image of 1 to 4 channels."""
    squeezed = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    Image.fromarray(squeezed).save(file, "png", compress_level=compression)
    return file.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.create_system, entry.external_attr = 3, 0o644 << 16  # a file that its owner can write, on Unix
    return entry


def _description(dataset: Dataset, positions: Sequence[int]) -> dict[str, object]:
    numbers, names = labels_of(dataset)
    files = [member_name(position) for position in positions]
    return description(files, [numbers[i] for i in positions], [names[i] for i in positions])


def position_of(entry: zipfile.ZipInfo) -> int:
    """Return the position in the data set of an image in the zip."""
    return int(entry.filename[9:-4])


def recover(file: BinaryIO) -> tuple[list[zipfile.ZipInfo], int]:
    """Return the complete images at the beginning of an unfinished zip, and the position of the byte after them.

    An image counts if its checksum is right. One that was being written when the process was killed does not.
    """
    entries: list[zipfile.ZipInfo] = []
    end = file.seek(0)
    while True:
        header = file.read(LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            return entries, end
        crc, packed, size = SIZES.unpack_from(header, 14)
        *_, length, extra = LOCAL_HEADER.unpack(header)
        name = file.read(length).decode("ascii", "replace")
        content = file.read(extra + packed)[extra:]
        expected = position_of(entries[-1]) + 1 if entries else 0
        named = name.endswith(".png") and name[9:-4].isdigit() and name == member_name(int(name[9:-4]))
        if not named or int(name[9:-4]) < expected or packed != size or not size or zlib.crc32(content) != crc:
            return entries, end
        entry = _entry(name)
        entry.header_offset, entry.CRC, entry.compress_size, entry.file_size = end, crc, packed, size
        entries.append(entry)
        end = file.tell()


def _digest(dataset: Dataset, compression: int) -> str:
    """Return a hash of 16 digits of the images, their labels, and everything that determines their pixels."""
    digest = hashlib.sha256(
        f"{VERSION} {PIL.__version__} {compression} {dataset.image_size} {dataset.channels} {dataset.fit} "
        f"{dataset.decoding} {dataset.label_names} {dataset.numbered}".encode()
    )
    for array in (dataset.labels, dataset.images):
        if isinstance(array, np.ndarray):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    if not isinstance(dataset.images, np.ndarray):
        frames = dataset.frames or [0] * len(dataset)
        for file, frame in zip(dataset.images, frames, strict=True):
            digest.update(f"{file}\n{stamp(file)} {frame}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
