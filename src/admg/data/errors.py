"""The error that this package raises on purpose."""

from __future__ import annotations

from collections.abc import Sequence


class DataError(ValueError):
    """Data or options that cannot be used. The message is one line that says what is wrong and what is allowed."""


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return at most `most` names for an error message: 'cat, dog, ... (1000 in all)'."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
