"""Labels in metadata.csv or metadata.jsonl beside the images, as `imagefolder` of Hugging Face's `datasets` has."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import DataError, listed
from .listing import METADATA, nfc

FILE_NAME = "file_name"
"""Column with the name of the image, relative to the folder."""
LABELS = ("label", "labels", "class", "cls", "category", "target", "y", "class_name", "fine_label")
"""Names of columns of labels, in the order of precedence."""


def metadata_labels(root: Path, names: Sequence[str]) -> list[int | str] | None:
    """Return the label of each file below a folder, or None if there are no metadata with a column of labels.

    Raises DataError if the metadata cannot be read, or if the label of a file is missing.
    """
    path = next((root / name for name in METADATA if (root / name).is_file()), None)
    rows = [] if path is None else _rows(path)
    column = next((name for name in LABELS if rows and name in rows[0]), None)
    if path is None or column is None:
        if path is not None and rows and not any("/" in name for name in names):  # else folders may be the labels
            note_columns(path, rows[0])
        return None
    labels: dict[str, Any] = {}
    for row in rows:
        if not isinstance(row.get(FILE_NAME), str):
            raise DataError(f"{path} has a row without {FILE_NAME}: {str(row)[:80]}")
        name, label = nfc(row[FILE_NAME].replace("\\", "/").removeprefix("./")), _label(row.get(column))
        if labels.setdefault(name, label) != label:
            raise DataError(f"{path} has {name} twice, with the labels {labels[name]} and {label}")
    missing = [name for name in names if labels.get(nfc(name)) is None]
    if missing:
        raise DataError(
            f"{path} has no {column} for {len(missing)} of {len(names)} images ({listed(missing, 1)}): add "
            f'labels for all images, or pass labels="folders", "prefix" or "none"'
        )
    return [labels[nfc(name)] for name in names]


def note_columns(path: Path, row: Mapping[str, Any]) -> None:
    """Warn of metadata in which no column of labels is recognised, though there are columns besides the file's name."""
    columns = [str(name) for name in row if name != FILE_NAME]
    if columns:
        warnings.warn(
            f"{path} has no column of labels (it has {listed(columns, 5)}): use a column name such as "
            f"{', '.join(LABELS[:5])}, in a CSV file separated by commas",
            stacklevel=2,
        )


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path} has a line that is not an object: expected {{"file_name": "a.png", "label": "cat"}}')
    return rows


def _label(value: Any) -> int | str | None:
    """Return a number or a name; text that is a whole number is a number, as in CSV."""
    if isinstance(value, str):
        value = value.strip()
        return int(value) if value.isdecimal() and len(value) <= 18 else value or None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
