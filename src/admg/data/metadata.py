"""Labels in metadata.csv or metadata.jsonl beside the images, as `imagefolder` of Hugging Face's `datasets` has."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from admg.warn import warn

from .errors import DataError, listed
from .listing import Description, nfc

FILE_NAME = "file_name"
"""Column with the name of the image, relative to the folder."""
LABELS = ("label", "labels", "class", "cls", "category", "target", "y", "class_name", "fine_label")
"""Names of columns of labels, in the order of precedence."""


def metadata_labels(path: Path, content: bytes, names: Sequence[str]) -> list[int | str] | None:
    """Return the label of each file below a folder, or None if the metadata have no column of labels.

    path: the file of the metadata, for messages
    Raises DataError if the metadata cannot be read, or if the label of a file is missing.
    """
    rows = _rows(path, content)
    columns = list(dict.fromkeys(name for row in rows for name in row if isinstance(name, str)))
    column, file_name = column_of(columns, LABELS), column_of(columns, (FILE_NAME,)) or FILE_NAME
    if column is None:
        if not any("/" in name for name in names):  # else folders may be the labels
            note_columns(path, [name for name in columns if name != file_name])
        return None
    labels: dict[str, Any] = {}
    for row in rows:
        if not isinstance(row.get(file_name), str):
            raise DataError(f"{path} has a row without {FILE_NAME}: {str(row)[:80]}")
        name, label = nfc(row[file_name].replace("\\", "/").removeprefix("./")), _label(row.get(column))
        if labels.setdefault(name, label) != label:
            raise DataError(f"{path} has {name} twice, with the labels {labels[name]} and {label}")
    missing = [name for name in names if labels.get(nfc(name)) is None]
    if missing:
        raise DataError(
            f"{path} has no {column} for {len(missing)} of {len(names)} images ({listed(missing, 1)}): add "
            f'labels for all images, or pass labels="folders", "prefix" or "none"'
        )
    return [labels[nfc(name)] for name in names]


def column_of(columns: Sequence[str], names: Iterable[str]) -> str | None:
    """Return the first column with one of these names, exactly or else in any case.

    None if there is none, or if several differ only in case.
    """
    names = list(names)
    if exact := next((name for name in names if name in columns), None):
        return exact
    alike = ([column for column in columns if column.strip().lower() == name] for name in names)
    return next((found[0] for found in alike if len(found) == 1), None)


def as_label(value: Any) -> int | str | None:
    """Return a stored value as a number or a name, or None if it is neither. Whole floats and bools are numbers."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return value if isinstance(value, int | str) and value != "" else None


def note_columns(path: Path, columns: Sequence[str]) -> None:
    """Warn of metadata in which no column of labels is recognised, though there are columns besides the file's name."""
    if columns:
        warn(
            f"{path} has no column of labels (it has {listed(columns, 5)}): use a column name such as "
            f"{', '.join(LABELS[:5])}, in a CSV file separated by commas"
        )


def nearest(names: Iterable[str], kinds: Sequence[str], images: Sequence[str]) -> str | None:
    """Return the file of one of these kinds in the innermost folder that contains all images; None without one.

    names, images: files in an archive
    kinds: names of files, such as METADATA
    """
    found = [name for name in names if name.rpartition("/")[2] in kinds]
    around = [name for name in found if all(image.startswith(_folder(name)) for image in images)]
    return min(around, key=lambda name: (-name.count("/"), name), default=None)


def description_of(name: str, content: bytes | str) -> Description:
    """Return the content of a file in an archive that describes the images in its folder."""
    content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    return Description(content, _folder(name), name.rpartition("/")[2])


def _folder(name: str) -> str:
    folder, slash, _ = name.rpartition("/")
    return folder + slash


def _rows(path: Path, content: bytes) -> list[dict[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
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
    return as_label(value)
