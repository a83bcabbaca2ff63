"""Samples on disk: written in shards, merged by streaming into the .npz of the published evaluator, read in slices."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from jaxtyping import Int64, UInt8

from admg.files import atomic

RUN = "run.json"
NAMES = ("model", "classifier")  # settings for people to read: a model is the same by its weights, however it is called
BROKEN = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)  # what reading a damaged .npz raises


@dataclass(frozen=True)
class Shards:
    """Images 0 .. num - 1 of a run, `size` to a file, in folder/shards until they are merged into `target`.

    shape: (H, W, C) of an image; labelled: whether there are labels, arr_1
    """

    folder: Path
    num: int
    size: int
    shape: tuple[int, int, int]
    labelled: bool

    def __post_init__(self):
        if self.num < 1 or self.size < 1:
            raise ValueError(f"there must be at least one image, and one to a shard, not {self.num} and {self.size}")

    @property
    def target(self) -> Path:
        """The merged file, named as the published ones are."""
        return self.folder / f"samples_{'x'.join(map(str, (self.num, *self.shape)))}.npz"

    @property
    def parts(self) -> Path:
        return self.folder / "shards"

    def __len__(self) -> int:
        return -(-self.num // self.size)

    def span(self, k: int) -> range:
        """The numbers of the images in shard k."""
        return range(k * self.size, min((k + 1) * self.size, self.num))

    def path(self, k: int) -> Path:
        span = self.span(k)
        return self.parts / f"{span.start:07d}-{span.stop - 1:07d}.npz"

    def write(self, k: int, images: UInt8[np.ndarray, "n h w c"], labels: Int64[np.ndarray, " n"] | None) -> None:
        """Write shard k, whole or not at all. ValueError: images or labels that are not what the shard must hold."""
        count = len(self.span(k))
        if images.dtype != np.uint8 or images.shape != (count, *self.shape):
            raise ValueError(f"a shard of {count} images {self.shape} cannot hold {images.dtype} {images.shape}")
        if (labels is not None) != self.labelled or (labels is not None and labels.shape != (count,)):
            raise ValueError(f"a shard of {count} images needs {count if self.labelled else 'no'} labels")
        with atomic(self.path(k)) as temporary:
            arrays = {"arr_0": images} | ({} if labels is None else {"arr_1": labels.astype(np.int64)})
            np.savez(temporary, allow_pickle=False, **arrays)

    def missing(self) -> list[int]:
        """The shards that are not there, or not whole."""
        return [k for k in range(len(self)) if not self._whole(k)]

    def _whole(self, k: int) -> bool:
        """Cut-off files have no directory, which ends a zip; other damage is met when merging, by its checksum."""
        try:
            shard = NpzImages(self.path(k))
        except (OSError, ValueError):
            return False
        return shard.shape == (len(self.span(k)), *self.shape) and (shard.labels is not None) == self.labelled

    def merge(self) -> Path:
        """Copy all shards into `target`, a megabyte at a time; np.load reads arr_0 (N, H, W, C) and arr_1 (N,).

        FileNotFoundError: a shard is missing. ValueError: one is damaged. Two processes may do it at once.
        """
        with atomic(self.target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            self._merge(archive, "arr_0.npy", np.dtype(np.uint8), (self.num, *self.shape))
            if self.labelled:
                self._merge(archive, "arr_1.npy", np.dtype(np.int64), (self.num,))
        return self.target

    def _merge(self, archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as out:  # ZipInfo: of no date, as NumPy's
            np.lib.format.write_array_header_1_0(cast(IO[bytes], out), header)
            for k in range(len(self)):
                try:
                    with zipfile.ZipFile(self.path(k)) as shard, shard.open(name) as member:
                        found = _read_header(member)
                        if found != (dtype, (len(self.span(k)), *shape[1:])):
                            raise ValueError(f"it holds {found[0]} {found[1]}")
                        shutil.copyfileobj(member, out, 1 << 20)
                except FileNotFoundError:
                    raise
                except (*BROKEN, KeyError) as error:
                    raise ValueError(f"{self.path(k)} is damaged; remove it to have it made again: {error}") from None

    def discard(self) -> None:
        """Remove the shards, once they are merged, and what a killed process left of its merging."""
        shutil.rmtree(self.parts, ignore_errors=True)
        for temporary in self.folder.glob(f".{self.target.stem}.*.tmp.npz"):
            temporary.unlink(missing_ok=True)


class NpzImages:
    """The images of an .npz, arr_0, uint8 (N, H, W, C) or (N, H, W), read in slices and never all at once.

    Of stored arrays (np.savez, Shards.merge) the slice alone is read; compressed ones are decompressed up to it.

    shape: (N, H, W, C); labels: arr_1 as int64 (N,), or None; crc: checksum of the images
    ValueError: not such a file; labels below -1, which stands for none.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} does not exist" if not self.path.exists() else f"{path} is not a file")
        try:
            self._archive = zipfile.ZipFile(self.path)
            names = self._archive.namelist()
            if "arr_0.npy" not in names:
                raise ValueError(
                    f"it has no arr_0, but {', '.join(n.removesuffix('.npy') for n in names) or 'nothing'}"
                )
            self._images = self._archive.open("arr_0.npy")
            dtype, shape = _read_header(self._images)
            if dtype != np.uint8 or len(shape) not in (3, 4) or not prod(shape):
                raise ValueError(f"arr_0 is {dtype} {shape}: allowed is uint8 (N, H, W, C) or (N, H, W)")
            self.shape = cast(tuple[int, int, int, int], shape if len(shape) == 4 else (*shape, 1))
            self.labels = self._read_labels() if "arr_1.npy" in names else None
        except BROKEN as error:
            raise ValueError(f"{self.path} cannot be used: {error}".replace("\n", " ")) from None
        self.crc = self._archive.getinfo("arr_0.npy").CRC
        self._start = self._images.tell()
        self._begin = self._find() if self._archive.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED else None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, images: slice) -> UInt8[np.ndarray, "n h w c"]:
        """A copy of a slice of step 1."""
        start, stop, step = images.indices(len(self))
        if step != 1:
            raise ValueError(f"images are read in slices of step 1, not {step}")
        count, each = max(0, stop - start), prod(self.shape[1:])
        if self._begin is not None:
            data = np.fromfile(self.path, np.uint8, count * each, offset=self._begin + start * each)
        else:
            self._images.seek(self._start + start * each)
            data = np.frombuffer(self._images.read(count * each), np.uint8)
        return data.reshape(count, *self.shape[1:])

    def _find(self) -> int:
        """Where the images begin in the file: a stored member follows its header of 30 bytes, its name and an extra."""
        begin = self._archive.getinfo("arr_0.npy").header_offset
        with open(self.path, "rb") as file:
            file.seek(begin + 26)
            lengths = [int.from_bytes(file.read(2), "little") for _ in range(2)]
        return begin + 30 + sum(lengths) + self._start

    def _read_labels(self) -> Int64[np.ndarray, " n"]:
        with self._archive.open("arr_1.npy") as member:
            labels = np.lib.format.read_array(cast(IO[bytes], member), allow_pickle=False)
        if not np.issubdtype(labels.dtype, np.integer) or labels.shape != self.shape[:1]:
            raise ValueError(f"arr_1 is {labels.dtype} {labels.shape}: allowed are integers ({len(self)},)")
        if labels.min() < -1:
            raise ValueError(f"arr_1 has a label {labels.min()}: allowed are labels from 0 up, and -1 for none")
        return labels.astype(np.int64)


def _read_header(member: IO[bytes]) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of a .npy file; what follows are its values. ValueError: another order, or not a .npy file."""
    version = np.lib.format.read_magic(cast(Any, member))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(cast(Any, member))
    if fortran and len(shape) > 1:
        raise ValueError("it is in Fortran order: allowed is C order, NumPy's default")
    return dtype, shape


class OtherRun(ValueError):
    """The folder holds a run of other settings."""


def open_run(settings: Mapping[str, Any], shards: Shards) -> Shards:
    """Begin the run of these settings in the folder of the shards, or find it there: its shards, whose size it keeps.

    run.json is written first, and once: processes that share a run may call this at the same time.
    settings: all that decides the images, of JSON's types, and its NAMES
    ValueError: as find_run.
    """
    found = find_run(settings, shards)
    if found is None:
        content = _content(settings, shards) | {"shard_size": shards.size}
        _write_once(shards.folder / RUN, json.dumps(content, indent=2) + "\n")
        found = find_run(settings, shards)
    return found or shards


def find_run(settings: Mapping[str, Any], shards: Shards) -> Shards | None:
    """The run of these settings in the folder of the shards, with the size it has; None: there is no run.

    OtherRun: the folder holds a run of other settings, which the message names.
    ValueError: it holds no run, but files that one would replace; or a run.json that is not ours.
    """
    present = [path.name for path in (shards.target, *_parts(shards.folder)) if os.path.lexists(path)]
    record = read_record(shards.folder)  # asked second, since others that begin this run write it before anything
    if record is None:
        if present:
            missing = f"no {RUN} that tells how it was made"
            raise ValueError(f"{shards.folder} holds {present[0]}, but {missing}: choose another folder")
        return None
    run = _recorded(shards.folder, record)
    here = _content(settings, shards) | {"shard_size": run.size}
    if differing := differences(record, json.loads(json.dumps(here))):
        raise OtherRun(f"{shards.folder} holds a run of other settings: {'; '.join(differing)}")
    return run


def read_record(folder: Path) -> dict[str, Any] | None:
    """What run.json says, None if there is none. ValueError: it is not the record of a run."""
    path = folder / RUN
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _recorded(folder, record)
        dict(record["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a run: {type(error).__name__}: {error}") from None
    return record


def run_files(folder: Path) -> list[Path]:
    """What the run in this folder has written, or would write; nothing if no run is there."""
    try:
        record = read_record(folder)
    except ValueError:  # somebody else's run.json
        return []
    if record is None:
        return []
    return [*_parts(folder), _recorded(folder, record).target, folder / RUN]


def _recorded(folder: Path, record: Mapping[str, Any]) -> Shards:
    return Shards(folder, record["num"], record["shard_size"], tuple(record["shape"]), record["labelled"])


def _parts(folder: Path) -> list[Path]:
    return [folder / name for name in ("shards", "images", "sheet.png")]


def _content(settings: Mapping[str, Any], shards: Shards) -> dict[str, Any]:
    return {"settings": settings, "num": shards.num, "shape": shards.shape, "labelled": shards.labelled}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`scale is 4 there, 2 here`, for each setting that differs, but NAMES; settings within settings: base.scale.

    An old precision "auto", as runs once recorded it, is any.
    """
    a, b = dict(_flat(old)), dict(_flat(new))
    a |= {key: b.get(key) for key in a if key.split(".")[-1] == "precision" and a[key] == "auto"}
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key) and key.split(".")[-1] not in NAMES]
    return [f"{key} is {_shown(a.get(key))} there, {_shown(b.get(key))} here" for key in keys]


def _flat(settings: Mapping[str, Any], prefix: str = ""):
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, prefix if key == "settings" else f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: Any) -> str:
    text = "unset" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _write_once(path: Path, text: str) -> None:
    """Write the file whole unless another process is sooner; a link, unlike a rename, never replaces."""
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")
    temporary.write_text(text, encoding="utf-8")
    try:
        with suppress(FileExistsError):
            os.link(temporary, path)
    except OSError:  # a file system without links
        if not path.exists():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
