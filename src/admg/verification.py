"""`verify`: read files of admg again, and compare them with the checksums that were written with them."""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from .checkpoints import native
from .checkpoints.diffusers.unet2d_config import SHA256
from .checkpoints.download import records
from .checksums import KEY, damaged, is_damaged
from .files import LEFTOVER, sha256
from .training import checkpointing, log, posthoc, snapshots

State = Literal["whole", "damaged", "no checksum"]
Check = Callable[[Path], bool]
"""Reads a file or folder and returns whether it has a checksum. Raises ValueError or OSError if it is damaged."""
BROKEN = (ValueError, OSError, EOFError, SyntaxError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)
"""Exceptions for damaged files; Pillow raises a SyntaxError."""
CHUNK_BYTES = 1 << 20
"""Number of bytes to read at a time."""


@dataclass(frozen=True)
class Verified:
    """The result for a file, or for a folder that is verified as a whole.

    path: the file or folder
    state: "whole", "damaged", or "no checksum" if it cannot be verified
    reason: description of the damage, or ""
    """

    path: Path
    state: State
    reason: str = ""


def verify(path: Path | str) -> list[Verified]:
    """Read all files of admg below a path, and compare them with their checksums.

    path: model, run directory of training or sampling, folder of cached features or downloads, or a single file

    Code in files is never executed. Other files, such as a README.md, are skipped.

    Raises FileNotFoundError if there is nothing of this name, and ValueError if there is nothing in it that admg reads.

    Example::

        >>> import admg
        >>> run = admg.train_diffusion(dataset, "runs/mine", admg.TrainConfig(steps=2, batch_size=4), network=small)
        >>> for step in run:
        ...     pass
        >>> {found.state for found in admg.verify("runs/mine/model")}
        {'whole'}
    """
    return [verified(*unit) for unit in units(path)]


def units(path: Path | str) -> list[tuple[Path, Check]]:
    """Return what there is to read below a path: files, and folders that are read as a whole.

    Raises FileNotFoundError if there is nothing of this name, and ValueError if there is nothing in it that admg reads.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    checked = [(path, check_file(path) or no_checksum)] if path.is_file() else list(below(path))
    if not checked:
        raise ValueError(f"{path} holds no files that admg can verify")
    return checked


def verified(path: Path, check: Check) -> Verified:
    """Return what is found when a file or folder is read."""
    try:
        return Verified(path, "whole" if check(path) else "no checksum")
    except BROKEN as error:
        return Verified(path, "damaged", " ".join(str(error).split()))


def below(folder: Path) -> Iterator[tuple[Path, Check]]:
    """Yield what there is to read in a folder and in those within it, in the order of their names."""
    if whole := check_folder(folder):
        yield folder, whole
        return
    if (folder / log.CSV).is_file() and (folder / log.JSONL).is_file():
        yield folder / log.CSV, logs
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or LEFTOVER.fullmatch(path.name):
            continue
        if path.is_dir():
            yield from below(path)
        elif (check := check_file(path)) is not None:
            yield path, check


def check_folder(folder: Path) -> Check | None:
    """Return what reads a folder as a whole, or None if its files are read one by one."""
    if (folder / checkpointing.CHECKSUMS).is_file() or folder in checkpointing.saved_checkpoints(folder.parent.parent):
        return checkpoint
    return model if native.is_ours(folder / native.CONFIG) else None


def check_file(path: Path) -> Check | None:
    """Return what reads a file, or None for a file that admg does not read again."""
    if records.read_record(path) is not None:
        return recorded
    if path.parent.name == snapshots.FOLDER and path.suffix == ".safetensors":
        return snapshot
    if path.suffix == ".safetensors" and path.with_name(native.CONFIG).is_file():
        return exported
    return CHECKS.get("".join(path.suffixes[-2:]).lower(), CHECKS.get(path.suffix.lower()))


# -- how each kind is read --------------------------------------------------------------------------------------------


def checkpoint(path: Path) -> bool:
    if problem := checkpointing.damage(path):
        raise ValueError(problem)
    return True


def model(path: Path) -> bool:
    has_checksum = native.verify(path)
    return has_checksum and KEY in json.loads((path / native.CONFIG).read_text(encoding="utf-8"))


def exported(path: Path) -> bool:
    """Compare weights with the SHA-256 that an export to diffusers has in its config.json."""
    content = json.loads(path.with_name(native.CONFIG).read_text(encoding="utf-8"))
    expected = content.get(SHA256) if isinstance(content, dict) else None
    if expected not in (None, sha256(path)):
        raise ValueError(f"its SHA-256 differs from {native.CONFIG}")
    return expected is not None


def snapshot(path: Path) -> bool:
    with posthoc.Reader(path) as reader:
        reader.read_all()
        reader.check()
    return True


def logs(path: Path) -> bool:
    """Compare log.csv with metrics.jsonl: a kill may have left either with more rows than the other."""
    rows, others = log.read_rows(path), log.read_jsonl(path.with_name(log.JSONL))
    count = min(len(rows), len(others))
    if log.checksum(rows[:count]) != log.checksum(others[:count]):
        raise ValueError(f"its rows differ from {log.JSONL}")
    return True


def recorded(path: Path) -> bool:
    records.check(path, records.read_record(path), records.ANY)
    return True


def zipped(path: Path) -> bool:
    """Read a zip, such as an .npz or a .pt file, whose members have a CRC-32; old .pt files are not zips."""
    if not zipfile.is_zipfile(path):
        if path.suffix in (".npz", ".zip"):
            raise ValueError("it is truncated, or not a zip")
        return False
    with zipfile.ZipFile(path) as archive:
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {bad} does not match")
    return True


def gzipped(path: Path) -> bool:
    with gzip.open(path) as file:
        while file.read(CHUNK_BYTES):
            pass
    return True


def json_file(path: Path) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and is_damaged(content):
        raise ValueError(damaged(path))
    return isinstance(content, dict) and KEY in content


def picture(path: Path) -> bool:
    """Read a PNG file, each part of which has a CRC-32; that of pixels is compared by decompressing them."""
    with Image.open(path) as image:
        image.verify()
    return True


def no_checksum(path: Path) -> bool:
    return False


CHECKS: dict[str, Check] = {
    **dict.fromkeys((".npz", ".zip", ".pt", ".pth"), zipped),
    **dict.fromkeys((".safetensors", ".bin", ".npy", ".arrow", ".parquet", ".tar"), no_checksum),
    **dict.fromkeys((".json.gz", ".gz"), gzipped),
    ".json": json_file,
    ".png": picture,
}
"""How a file is read, by the end of its name."""

__all__ = ["Verified", "verify"]
