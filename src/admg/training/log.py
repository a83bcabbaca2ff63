"""The log of a run: rows of measurements in log.csv, and the same rows as JSON in metrics.jsonl."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from admg.files import atomic

CSV, JSONL = "log.csv", "metrics.jsonl"
COUNTS = ("step", "images")
"""Columns of whole numbers."""


class Log:
    """Rows of measurements, in two files of the run directory.

    out: run directory
    step: number of steps done; later rows of an existing log are dropped, since their steps will be repeated
    """

    def __init__(self, out: Path, step: int = 0):
        self.csv, self.jsonl = out / CSV, out / JSONL
        self.rows = [row for row in read_rows(self.csv) if int(row["step"]) <= step] if step else []
        self.names: list[str] = []  # columns of the files as they are; they are written anew for the first row

    def rewind(self, step: int) -> None:
        """Drop the rows after a step; the files are written anew with the next row."""
        self.rows = [row for row in self.rows if int(row["step"]) <= step]
        self.names = []

    def append(self, step: int, images: int, values: Mapping[str, float]) -> None:
        """Write a row. Both files are only appended to unless there is a new column."""
        row = {"step": str(step), "images": str(images)} | {name: f"{value:.6g}" for name, value in values.items()}
        self.rows.append(row)
        if set(row) <= set(self.names):
            with self.csv.open("a", newline="") as file:
                file.write(to_csv([row], self.names))
            with self.jsonl.open("a") as file:
                file.write(to_json(row))
            return
        self.names = list(dict.fromkeys(name for row in self.rows for name in row))
        with atomic(self.csv) as temporary, temporary.open("w", newline="") as file:
            file.write(to_csv([dict(zip(self.names, self.names)), *self.rows], self.names))
        with atomic(self.jsonl) as temporary:
            temporary.write_text("".join(map(to_json, self.rows)))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a log.csv, without their empty cells; [] if there is none.

    A last line that was not written to its end is left out.
    """
    if not path.exists():
        return []
    whole, newline, _ = path.read_text().rpartition("\n")
    rows = csv.DictReader(io.StringIO(whole + newline))
    return [{name: text for name, text in row.items() if text} for row in rows]


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
