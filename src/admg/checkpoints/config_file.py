"""config.json of a native checkpoint: read as data, checked against the types of the configurations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_type_hints

import msgspec

from admg.checksums import read_any
from admg.config import literals

from .weights import CheckpointError

C = TypeVar("C")
Count = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]


class Content(TypedDict, total=False):
    """The entries of config.json. "format" and "version" are checked before the others."""

    kind: Literal["diffusion", "upsampler", "classifier"]
    network: dict[str, Any]
    diffusion: dict[str, Any]
    labels: Count | list[str]
    training: dict[str, Any]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises CheckpointError if it is too large or not valid JSON."""
    try:
        return read_any(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def check_types(path: Path, content: dict[str, Any]) -> None:
    """Raise CheckpointError, naming the entry, if an entry of config.json does not have the type in Content."""
    _convert(content, Content, path, "")


def section(path: Path, content: dict[str, Any], key: str, kind: type[C]) -> C:
    """Return a section of config.json as a configuration.

    Raises CheckpointError, naming the entry, if the section is missing, or if an entry is unknown, of the wrong type or
    out of range.
    """
    if key not in content:
        raise CheckpointError(f"{path} has no {key!r}")
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := [name for name in content[key] if name not in known]:
        raise CheckpointError(f"{path}: {key} has an unknown entry {unknown[0]!r}, possibly from a newer admg")
    config: C = _convert(content[key], kind, path, f"{key}.")
    return config


def _convert(content: Any, kind: Any, path: Path, prefix: str) -> Any:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        if reason.startswith("Invalid enum value"):
            reason += f", must be one of {', '.join(map(repr, literals(get_type_hints(kind)[name])))}"
        raise CheckpointError(f"{path}: {prefix}{name}: {reason}" if name else f"{path}: {reason}") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: bad {prefix.rstrip('.')!r}: {error}") from None
