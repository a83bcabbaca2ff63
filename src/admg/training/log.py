"""The log of a run: rows of measurements in log.csv, and the same rows as JSON in metrics.jsonl."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from admg.files import atomic
from admg.warn import warn

CSV, JSONL = "log.csv", "metrics.jsonl"
COUNTS = ("step", "images")
"""Columns of whole numbers."""


class Log:
    """Rows of measurements, in two files of the run directory.

    out: run directory
    step: number of steps done; later rows of an existing log are dropped, since their steps will be repeated
    """

    def __init__(self, out: Path, step: int = 0):
        self.csv, self.jsonl, self.step = out / CSV, out / JSONL, step
        self.rows = [row for row in read_rows(self.csv) if int(row["step"]) <= step] if step else []
        self.names: list[str] = []  # columns of the current files, which are rewritten with the first row

    def rewind(self, step: int) -> None:
        """Drop the rows after a step; the files are rewritten with the next row."""
        self.rows = [row for row in self.rows if int(row["step"]) <= step]
        self.step, self.names = step, []

    @property
    def checksum(self) -> str:
        """Checksum of the rows, for a checkpoint."""
        return checksum(self.rows)

    def check(self, recorded: str) -> None:
        """Compare the rows with a checksum; if it matches only metrics.jsonl, use the rows of that file."""
        if not recorded or self.checksum == recorded:
            return
        others = [row for row in read_jsonl(self.jsonl) if int(row["step"]) <= self.step]
        if checksum(others) == recorded:
            warn(f"{self.csv} is damaged: rewriting it from {self.jsonl.name}")
            self.rows = others
        else:
            warn(f"{self.csv} is damaged or was changed: keeping its readable rows")

    def append(self, step: int, images: int, values: Mapping[str, float]) -> None:
        """Write a row. Both files are only appended to unless there is a new column, or the last attempt failed."""
        row = {"step": str(step), "images": str(images)} | {name: to_text(name, v) for name, v in values.items()}
        whole = not set(row) <= set(self.names)
        names, self.names = self.names, []  # until the row has been written
        if whole:
            names = list(dict.fromkeys(name for row in (*self.rows, row) for name in row))
        row = {name: row[name] for name in names if name in row}  # in the order in which log.csv is read back
        if whole:
            with atomic(self.csv) as temporary, temporary.open("w", newline="") as file:
                file.write(to_csv([dict(zip(names, names)), *self.rows, row], names))
            with atomic(self.jsonl) as temporary:
                temporary.write_text("".join(map(to_json, (*self.rows, row))))
        else:
            with self.csv.open("a", newline="") as file:
                file.write(to_csv([row], names))
            with self.jsonl.open("a") as file:
                file.write(to_json(row))
        self.rows.append(row)
        self.names = names


def measurements(out: Path) -> frozenset[str]:
    """Return the names of the logged measurements; none if the log cannot be read."""
    with suppress(OSError, ValueError), (out / CSV).open(encoding="utf-8", newline="") as file:
        return frozenset(next(csv.reader(file), [])) - set(COUNTS)
    return frozenset()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a log.csv, without their empty cells; [] if there is none.

    An incomplete last line and lines without numbers are skipped.
    """
    if not path.exists():
        return []
    whole, newline, _ = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    rows = csv.DictReader(io.StringIO(whole + newline))
    parsed: list[dict[str, str]] = []
    with suppress(csv.Error):  # a damaged file: stop reading
        for row in rows:
            parsed.append({name: text for name, text in row.items() if text})
    return [row for row in parsed if is_row(row)]


def read_jsonl(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.jsonl; see `read_rows`."""
    if not path.exists():
        return []
    rows: list[dict[str, str]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, AttributeError, TypeError):
            rows.append({name: to_text(name, value) for name, value in json.loads(line).items()})
    return [row for row in rows if is_row(row)]


def is_row(row: Mapping[str, str]) -> bool:
    """Whether the step and the images of a row are whole numbers, and all its other values numbers."""
    try:
        _ = [int(row[name]) for name in COUNTS] + [float(text) for text in row.values()]
    except (KeyError, ValueError, TypeError):
        return False
    return True


def to_text(name: str, value: float | None) -> str:
    """Return the text of a value in a row."""
    return str(value) if name in COUNTS else f"{math.nan if value is None else value:.6g}"


def checksum(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a checksum of rows, which is the same in both files."""
    return hashlib.sha256("".join(map(to_json, rows)).encode()).hexdigest()[:16]


def to_csv(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> str:
    """Return rows as lines of a CSV file, with empty cells where a row has no value."""
    text = io.StringIO()
    csv.DictWriter(text, names).writerows(rows)
    return text.getvalue()


def to_json(row: Mapping[str, str]) -> str:
    """Return a row as a line of JSON, in which numbers that are not finite are null."""
    values: dict[str, float | None] = {}
    for name, text in row.items():
        number = int(text) if name in COUNTS else float(text)
        values[name] = number if math.isfinite(number) else None
    return json.dumps(values) + "\n"
