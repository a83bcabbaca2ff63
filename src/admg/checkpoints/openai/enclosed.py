"""The flags and the names of the labels, which an export encloses in its .pt file, beside what torch.load reads."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from admg.checkpoints.weights import DamagedError

ENTRY, MOST_BYTES = "admg.json", 1 << 20


class Enclosed(msgspec.Struct, frozen=True):
    """What a state dict does not say about its model.

    flags: flags of OpenAI's scripts
    label_names: name of each label; empty if they have none
    """

    flags: str
    label_names: tuple[str, ...] = ()


def enclose(path: Path, flags: str, label_names: Sequence[str]) -> None:
    """Add the entry to a file of torch.save."""
    with zipfile.ZipFile(path, "a") as file:
        folder = file.namelist()[0].partition("/")[0]  # torch expects all entries in the same
        content = msgspec.json.encode(Enclosed(flags, tuple(label_names)))
        file.writestr(zipfile.ZipInfo(f"{folder}/{ENTRY}"), content)


def enclosed(path: Path) -> Enclosed | None:
    """Return what is enclosed in a file, or None. Raises DamagedError if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as file:
            entry = next((entry for entry in file.infolist() if entry.filename.partition("/")[2] == ENTRY), None)
            if entry is None:
                return None
            if entry.file_size > MOST_BYTES:
                raise ValueError(f"it has {entry.file_size:,} bytes")
            content = file.read(entry)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError):
        return None  # what is wrong with the file as a whole is reported when its weights are read
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: {ENTRY} in it cannot be read ({error})") from None
    try:
        return msgspec.json.decode(content, type=Enclosed)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path} is damaged: {ENTRY} in it cannot be read ({error})") from None
