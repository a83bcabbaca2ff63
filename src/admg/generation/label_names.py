"""The names of the labels of stored samples; an .npz holds only their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from admg.data.generated import IMAGES, MERGED
from admg.data.listing import DESCRIPTION

from .run_record import read_record
from .samples import Samples


def names_of(images: Any) -> tuple[str, ...]:
    """Return the names of the labels of `Samples` or of a stored run, by number; () if they are not known."""
    if isinstance(images, Samples):
        return table_of({str(k): name for k, name in zip(images.labels.tolist(), images.label_names) if k >= 0})
    return names_of_labels(Path(images)) if isinstance(images, str | Path) else ()


def names_of_labels(npz: Path) -> tuple[str, ...]:
    """Return the names of the labels of the run or the `Samples` that wrote this file, or () if they are not known."""
    if not MERGED.fullmatch(npz.name):
        return ()
    with suppress(ValueError, OSError, AttributeError):  # a file of another program
        if (record := read_record(npz.parent)) is not None:
            names = record.get("label_names", ())
            return tuple(names) if all(isinstance(name, str) for name in names) else ()
        return table_of(json.loads((npz.parent / IMAGES / DESCRIPTION).read_bytes()).get("label_names") or {})
    return ()


def table_of(names: Mapping[str, str]) -> tuple[str, ...]:
    """Return names by number, `{"3": "Dress"}`, as a table with "" for missing ones; () if labels have only numbers."""
    named = {int(number): name for number, name in names.items() if name}
    if all(name == str(number) for number, name in named.items()):
        return ()
    return tuple(named.get(number, "") for number in range(max(named) + 1))
