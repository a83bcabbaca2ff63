"""The exceptions of this package, and helpers for their messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args


class DataError(ValueError):
    """Data or options that cannot be used. The message is one line that says what is wrong and what is allowed."""


class UnreadableError(DataError):
    """A file that cannot be read as an image."""


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return at most `most` names for an error message: 'cat, dog, ... (1000 in all)'."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def check_choice(value: Any, kind: Any, name: str) -> None:
    """Raise DataError unless the value is one of those of a Literal. name: name of the option"""
    allowed = [repr(choice) for choice in get_args(kind)]
    if value not in get_args(kind):
        raise DataError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
