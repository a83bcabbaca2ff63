"""Files in the cache folder about files or folders elsewhere, by whose paths they are found."""

from __future__ import annotations

import gzip
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from admg.files import atomic, cache_folder


def cache_path(kind: str, source: Path, ending: str) -> Path:
    """Return the path in the cache folder, in its folder `kind`, of a file about `source`."""
    return cache_folder() / kind / f"{hashlib.sha256(place_of(source).encode()).hexdigest()[:24]}{ending}"


def place_of(source: Path) -> str:
    """Return the absolute path as text in ASCII: names of files need not be valid Unicode."""
    return ascii(str(source.resolve()))


def read_index(path: Path) -> Any:
    """Return the content that write_index wrote. Raises all kinds of exceptions if it is missing or damaged."""
    return json.loads(gzip.decompress(path.read_bytes()))


def write_index(path: Path, content: dict[str, Any]) -> None:
    """Write content as compressed JSON. Does nothing if the cache folder is not writable."""
    text = json.dumps(content, separators=(",", ":"))
    with suppress(OSError), atomic(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode("ascii"), compresslevel=1, mtime=0))
