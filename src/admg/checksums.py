"""JSON files with a checksum of their own content, which reveals damage when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEY = "checksum"
MAX_JSON_BYTES = 64 << 20
"""Largest size in bytes of a JSON file that is read."""


def read_any(path: Path) -> Any:
    """Return the content of any JSON file.

    Raises OSError if it cannot be read, and ValueError, which names the file, if it is too large or not valid JSON.
    """
    with path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"{path} has more than {MAX_JSON_BYTES >> 20} MiB, which no JSON file of admg has")
    return parse_json(content, path)


def parse_json(text: str | bytes, source: object) -> Any:
    """Return the value of a JSON text. Raises ValueError, which names the source, if it is not valid JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{source} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from None


def write_json(path: Path, content: Mapping[str, Any], indent: int = 1) -> None:
    """Write a JSON file that ends with the checksum of its content. Names that are not valid Unicode are escaped."""
    content = with_checksum(content)
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = json.dumps(content, indent=indent)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file without its checksum.

    Raises OSError if it cannot be read, and ValueError if it is not JSON, not a dictionary, or damaged.
    """
    content = read_any(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a dictionary")
    if is_damaged(content):
        raise ValueError(damaged(path))
    content.pop(KEY, None)
    return content


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content, of JSON types, with its checksum as the last entry."""
    rest = {name: value for name, value in content.items() if name != KEY}
    return rest | {KEY: _checksum(rest)}


def is_damaged(content: Mapping[str, Any]) -> bool:
    """Whether the content has a checksum that is not its own. Content without one, of older files, is not damaged."""
    if KEY in content:
        return bool(content[KEY] != with_checksum(content)[KEY])
    *others, (_, last) = content.items() or [("", "")]
    same: bool = str(last) == _checksum(dict(others))  # its name is damaged
    return same


def damaged(path: Path) -> str:
    """Return the message for a damaged file, with advice if it was changed on purpose."""
    return f"{path} is damaged, or was changed by hand: if you changed it, remove its entry {KEY!r}"


def _checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the values; spaces, line ends and the order of the entries do not count."""
    try:
        read = json.loads(json.dumps(content))  # keys as they are read back, all of them strings
        text = json.dumps(read, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise ValueError("the content is nested too deeply") from None
    return hashlib.sha256(text.encode("ascii")).hexdigest()
