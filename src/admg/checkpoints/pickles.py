"""Read the files of torch.save without running anything that they contain.

A pickle can name any function of Python and have it called. torch's own restricted unpickler (`weights_only=True`)
builds tensors and plain containers, and refuses every other name. Training code often saves such names beside the
weights: argparse.Namespace, NumPy numbers, configurations. `load_inert` replaces each by a class that does nothing.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from admg.config import printable

from .weights import CheckpointError, DamagedError

CHUNK_BYTES = 1 << 20
MAX_NAMES = 100  # the file is read once more for each name
_UNKNOWN = re.compile(r"Unsupported global: GLOBAL (\S+) was not an allowed global")
_CONTAINER = re.compile(r"Can only (SETITEM|append|extend)[^\n]* but got <class '([^'\s]+)'>")


class Inert:
    """Placeholder of an object of an unknown class or of the result of an unknown function: it does nothing."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:  # torch 2.8 does not ask first whether it is a dictionary
        raise pickle.UnpicklingError(f"Can only SETITEM for dictionaries, but got {type(self)}")


class _InertDict(Inert):
    """For a class of dictionaries: the unpickler fills a plain one."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class _InertList(Inert):
    """For a class of lists: the unpickler fills a plain one."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return []


def load(path: Path, mmap: bool = False) -> Any:
    """Return the contents of a file written by torch.save, with its tensors on the CPU.

    Raises CheckpointError if the file is damaged or holds anything but tensors and plain containers.
    """
    try:
        return _load(path, mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} {_refused(path, str(error))}") from None
    except Exception as error:  # torch raises many types for a damaged file
        raise CheckpointError(f"{path} {_damaged(error)}") from None


def load_inert(path: Path, mmap: bool = False) -> Any:
    """Return the contents as `load` does, with an Inert in place of every object that is not a tensor or container.

    Nothing that the file names is imported, looked up or called. Dictionaries and lists of unknown classes become plain
    ones. Names in `os`, `posix`, `nt` and `sys` are refused.

    Raises CheckpointError if the file is damaged, or cannot be read without calling what it names.
    """
    known: dict[str, type[Inert]] = {}
    while True:
        try:
            with torch.serialization.safe_globals([(cls, name) for name, cls in known.items()]):
                return _load(path, mmap)
        except pickle.UnpicklingError as error:
            message = str(error)
            if len(known) >= MAX_NAMES or not _learn(known, message):
                raise CheckpointError(f"{path} {_refused(path, message)}") from None
        except Exception as error:
            beside = f"; it holds Python objects ({', '.join(sorted(known)[:3])})" if known else ""
            raise CheckpointError(f"{path} {_damaged(error)}{beside}") from None


def check_members(path: Path) -> None:
    """Compare the parts of a file of torch.save with their CRC-32, which torch.load does not.

    Raises DamagedError if a checksum differs. Other errors in the archive are reported by torch.load.
    """
    try:
        with zipfile.ZipFile(path) as file:
            entries = [entry for entry in file.infolist() if entry.compress_type == zipfile.ZIP_STORED]
            if sum(entry.file_size for entry in entries) > path.stat().st_size:  # they overlap
                return
            for entry in entries:
                with file.open(entry) as member:
                    while entry.CRC and member.read(CHUNK_BYTES):  # it is 0 if none was written
                        pass
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if "Bad CRC-32" in str(error):
            part = printable(entry.filename)
            raise DamagedError(f"{path} is damaged: the checksum of {part} does not match") from None


def _load(path: Path, mmap: bool) -> Any:
    with warnings.catch_warnings():  # torch warns of unusual pickles before it refuses them
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _learn(known: dict[str, type[Inert]], message: str) -> bool:
    """Add the class for the name that torch refused, and return whether there was a new one."""
    if unknown := _UNKNOWN.search(message):
        name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"  # torch leaves out `builtins`
        new = name not in known
        known[name] = _named(Inert, name)
        return new
    container = _CONTAINER.search(message)
    if container is None or (name := container[2]) not in known:
        return False
    new = known[name].__base__ is Inert
    known[name] = _named(_InertDict if container[1] == "SETITEM" else _InertList, name)
    return new


def _named(base: type[Inert], name: str) -> type[Inert]:
    """Return a class of this kind that messages show under this name."""
    module, _, own = name.rpartition(".")
    return type(own, (base,), {"__slots__": (), "__module__": module, "__qualname__": own})


def qualified_name(value: Inert) -> str:
    """Return the name of the class or function that the file has where `value` stands."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def refused_objects(name: str) -> str:
    """Return the reason for refusing a file whose content is an object of this class or function."""
    return (
        f"holds Python objects ({name}), not only tensors, and could run any code when it is opened: refused; if "
        "you trust the file, save only its state_dict()"
    )


def _refused(path: Path, message: str) -> str:
    """Return why torch.load(weights_only=True) refused a file."""
    if "Unsupported operand" in message and zipfile.is_zipfile(path):
        return (
            "has a pickle_protocol that cannot be read without running code: refused; if you trust the file, load it "
            "and save it again without that argument"
        )
    match = re.search(r"(?:GLOBAL|global|class|function) ([\w.]*\w\.\w+)", message)
    return refused_objects(match[1]) if match else "is damaged or not a .pt file that holds only tensors: refused"


def _damaged(error: Exception) -> str:
    first = str(error).partition("\n")[0].partition(". ")[0]
    reason = f": {first}" if isinstance(error, RuntimeError) and first else ""
    return f"is truncated, damaged or not a .pt file{reason}"
