"""Images on disk: written in shards, merged by streaming into the .npz of the published evaluator, read in slices."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, cast

import numpy as np
from jaxtyping import Int64, UInt8

from admg.data.arrays import check_not_one_image, read_arrays
from admg.data.errors import listed
from admg.data.generated import SHARDS
from admg.files import atomic

READ_ERRORS = (
    OSError, EOFError, ValueError, RuntimeError, NotImplementedError, MemoryError, OverflowError, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip
"""Exceptions that reading a damaged, encrypted or hostile .npz raises."""


@dataclass(frozen=True)
class Shards:
    """Images 0 to num - 1 of a run, `size` per file, in folder/shards until they are merged into `target`.

    shape: (H, W, C) of an image
    labelled: whether the files hold labels, arr_1
    Raises ValueError if `num` or `size` is below 1.
    """

    folder: Path
    num: int
    size: int
    shape: tuple[int, int, int]
    labelled: bool

    def __post_init__(self) -> None:
        if self.num < 1 or self.size < 1:
            raise ValueError(f"num and size must be at least 1, got {self.num} and {self.size}")

    @property
    def target(self) -> Path:
        """Path of the merged file."""
        return merged_path(self.folder, (self.num, *self.shape))

    @property
    def parts(self) -> Path:
        """Folder of the shards."""
        return self.folder / SHARDS

    def __len__(self) -> int:
        return -(-self.num // self.size)

    def span(self, k: int) -> range:
        """Return the indices of the images in shard k."""
        return range(k * self.size, min((k + 1) * self.size, self.num))

    def path(self, k: int) -> Path:
        span = self.span(k)
        return self.parts / f"{span.start:07d}-{span.stop - 1:07d}.npz"

    def write(self, k: int, images: UInt8[np.ndarray, "n h w c"], labels: Int64[np.ndarray, " n"] | None) -> None:
        """Write shard k, completely or not at all. Raises ValueError if images or labels do not fit the shard."""
        count = len(self.span(k))
        if images.dtype != np.uint8 or images.shape != (count, *self.shape):
            raise ValueError(f"images must be uint8 {(count, *self.shape)}, got {images.dtype} {images.shape}")
        if (labels is not None) != self.labelled or (labels is not None and labels.shape != (count,)):
            raise ValueError(f"a shard of {count} images must have {count if self.labelled else 'no'} labels")
        write_npz(self.path(k), images, labels)

    def missing(self) -> list[int]:
        """Return the indices of the shards that are absent or incomplete."""
        return [k for k in range(len(self)) if not self._whole(k)]

    def _whole(self, k: int) -> bool:
        """A truncated zip lacks the directory at its end; merging finds other damage by the checksums."""
        try:
            shard = NpzImages(self.path(k))
        except (OSError, ValueError):
            return False
        return shard.shape == (len(self.span(k)), *self.shape) and (shard.labels is not None) == self.labelled

    def damaged(self, k: int) -> bool:
        """Whether the checksum of the images of shard k, which exists, is wrong."""
        try:
            NpzImages(self.path(k)).verify()
        except FileNotFoundError:  # merged in the meantime
            return False
        except (OSError, ValueError):
            return True
        return False

    def merge(self) -> Path:
        """Copy all shards into `target`, a megabyte at a time; np.load reads arr_0 (N, H, W, C) and arr_1 (N,).

        Two processes may merge at the same time. Raises FileNotFoundError if a shard is missing, ValueError if one is
        damaged.
        """
        with (
            atomic(self.target, durable=True) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        ):
            self._merge(archive, "arr_0.npy", np.dtype(np.uint8), (self.num, *self.shape))
            if self.labelled:
                self._merge(archive, "arr_1.npy", np.dtype(np.int64), (self.num,))
        return self.target

    def _merge(self, archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as out:  # no date, as in NumPy
            np.lib.format.write_array_header_1_0(out, header)
            for k in range(len(self)):
                try:
                    with zipfile.ZipFile(self.path(k)) as shard, shard.open(name) as member:
                        found = _read_header(member)
                        if found != (dtype, (len(self.span(k)), *shape[1:])):
                            raise ValueError(f"it holds {found[0]} {found[1]}")
                        shutil.copyfileobj(member, out, 1 << 20)
                except FileNotFoundError:
                    raise
                except (*READ_ERRORS, KeyError) as error:
                    raise ValueError(f"{self.path(k)} is damaged; remove it and sample again: {error}") from None

    def discard(self) -> None:
        """Remove the shards, and temporary files left by a process that was killed while merging."""
        shutil.rmtree(self.parts, ignore_errors=True)
        for temporary in self.folder.glob(f".{self.target.stem}.*.tmp.npz"):
            temporary.unlink(missing_ok=True)


def merged_path(folder: Path, shape: Sequence[int]) -> Path:
    """Return the path of the file of all images (N, H, W, C), named as the published sample batches are."""
    return folder / f"samples_{'x'.join(map(str, shape))}.npz"


def write_npz(path: Path, images: UInt8[np.ndarray, "n h w c"], labels: Int64[np.ndarray, " n"] | None) -> None:
    """Write images as arr_0, and labels, if there are any, as arr_1; completely or not at all."""
    arrays = {"arr_0": images} | ({} if labels is None else {"arr_1": labels.astype(np.int64)})
    with atomic(path, durable=True) as temporary:
        np.savez(temporary, allow_pickle=False, **arrays)


class NpzImages:
    """The images of an .npz file, read in slices and never all at once: arr_0, uint8 (N, H, W, C) or (N, H, W).

    A slice of a stored array (np.savez, Shards.merge) is read alone; a compressed array is decompressed up to it.

    shape: (N, H, W, C)
    labels: arr_1 as int64 (N,), -1 for an image without a label, or None
    crc: checksum of the images
    Raises FileNotFoundError if there is no such file, ValueError if it does not hold images.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} does not exist" if not self.path.exists() else f"{path} is not a file")
        try:
            self._archive = zipfile.ZipFile(self.path)
            names = self._archive.namelist()
            if "arr_0.npy" not in names:
                raise ValueError(f"it has no arr_0, but {listed([n.removesuffix('.npy') for n in names]) or 'nothing'}")
            self._images = self._archive.open("arr_0.npy")
            dtype, shape = _read_header(self._images)
            if dtype != np.uint8 or len(shape) not in (3, 4) or not prod(shape):
                raise ValueError(f"arr_0 must be uint8 (N, H, W, C) or (N, H, W), got {dtype} {shape}")
            if self._archive.getinfo("arr_0.npy").file_size != self._images.tell() + prod(shape):
                raise ValueError(f"arr_0 does not have the number of values of its header, {shape}")
            check_not_one_image(shape)
            self.shape = cast(tuple[int, int, int, int], shape if len(shape) == 4 else (*shape, 1))
            labels = read_arrays(self.path, ("arr_1",))[1].get("arr_1")
            self.labels = None if labels is None else self._labels(labels)
        except READ_ERRORS as error:
            raise ValueError(f"{self.path} cannot be used: {error}".replace("\n", " ")) from None
        self.crc = self._archive.getinfo("arr_0.npy").CRC
        self._start = self._images.tell()
        self._begin = self._find() if self._archive.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED else None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, images: slice) -> UInt8[np.ndarray, "n h w c"]:
        """Return a copy of the images in a slice of step 1."""
        start, stop, step = images.indices(len(self))
        if step != 1:
            raise ValueError(f"the step of a slice of images must be 1, got {step}")
        count, each = max(0, stop - start), prod(self.shape[1:])
        if self._begin is not None:
            data = np.fromfile(self.path, np.uint8, count * each, offset=self._begin + start * each)
        else:
            self._images.seek(self._start + start * each)
            data = np.frombuffer(self._images.read(count * each), np.uint8)
        return data.reshape(count, *self.shape[1:])

    @property
    def fingerprint(self) -> str:
        """Checksums of the images, without reading them, and of the labels; and the shape."""
        labels = b"" if self.labels is None else self.labels.tobytes()
        return f"{self.crc:08x} {hashlib.sha256(labels).hexdigest()[:12]} {self.shape}"

    def verify(self) -> NpzImages:
        """Read the whole file, and return this object. Raises ValueError if a checksum is wrong."""
        try:
            for name in self._archive.namelist():  # including arrays whose names may be damaged
                with self._archive.open(name) as member:
                    while member.read(1 << 20):
                        pass
        except READ_ERRORS as error:
            raise ValueError(f"{self.path} is damaged: {error}") from None
        return self

    def _find(self) -> int:
        """Return the offset of the images: a stored member follows a 30-byte header, its name and an extra field."""
        begin = self._archive.getinfo("arr_0.npy").header_offset
        with open(self.path, "rb") as file:
            file.seek(begin + 26)
            lengths = [int.from_bytes(file.read(2), "little") for _ in range(2)]
        return begin + 30 + sum(lengths) + self._start

    def _labels(self, labels: np.ndarray) -> Int64[np.ndarray, " n"]:
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != self.shape[:1]:
            raise ValueError(f"arr_1 must hold integers ({len(self)},), got {labels.dtype} {labels.shape}")
        if labels.min() < -1:
            raise ValueError(f"labels in arr_1 must be at least 0, or -1 for none, got {labels.min()}")
        return labels.astype(np.int64)


def _read_header(member: IO[bytes]) -> tuple[np.dtype, tuple[int, ...]]:
    """Read the header of a .npy file, up to its values. Raises ValueError for Fortran order and other files."""
    try:
        version = np.lib.format.read_magic(cast(Any, member))
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(cast(Any, member))
    except (*READ_ERRORS, SyntaxError, TypeError, TokenError) as error:  # NumPy parses headers as Python
        raise ValueError(f"it has no array header: {' '.join(str(error).split())[:200]}") from None
    if fortran and len(shape) > 1:
        raise ValueError("it must be in C order, NumPy's default, got Fortran order")
    return dtype, shape
