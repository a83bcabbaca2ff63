"""`SweepTable`: the results of a sweep as a Markdown table, a CSV file and curves."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from admg.files import atomic

from .cells import Row, number
from .curves import draw, lower_is_better
from .report import format_value


@dataclass(frozen=True, repr=False)
class SweepTable:
    """The results of a sweep; `print` shows a Markdown table.

    rows: the finished cells, in the order of the sweep
    title: title of the curves
    caption: description of the table, in Markdown
    notes: reasons why some metrics could not be computed
    """

    rows: Sequence[Row]
    title: str
    caption: str
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def __repr__(self) -> str:
        return "\n".join([self.markdown(), *self.notes])

    def _repr_markdown_(self) -> str:
        return repr(self)

    def write(self, out: Path) -> None:
        """Write sweep.csv, table.md and, if there is a value, curves.png to a folder, each as a whole."""
        with atomic(out / "sweep.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(self.table())
        with atomic(out / "table.md") as temporary:
            temporary.write_text(self.markdown(), encoding="utf-8")
        if self.names:
            draw(self.rows, self.title, out / "curves.png")
        else:  # one of other cells must not remain
            (out / "curves.png").unlink(missing_ok=True)

    @property
    def names(self) -> dict[str, str]:
        """The display names of the metrics that any row has, by metric."""
        return {value.metric: value.name for row in self.rows for value in row.values}

    def table(self) -> list[list[Any]]:
        """Return header and rows of the CSV file, with all digits but without times: equal sweeps write equal files."""
        head = ["sampler", "steps", "guidance", "scale", "cfg", "samples", "network"]
        lines: list[list[Any]] = [head + [name + end for name in self.names.values() for end in ("", " low", " high")]]
        for row in self.rows:
            cell = row.cell
            features = [value.network for value in row.values if value.metric != "accuracy"]
            line: list[Any] = [cell.sampler, cell.steps, row.guidance, cell.scale, cell.cfg, row.num, *features[:1]]
            line += [""] * (len(head) - len(line))
            for metric in self.names:
                value = row.get(metric)
                line += [value.value, value.low, value.high] if value else [None] * 3
            lines.append(["" if isinstance(x, float) and not math.isfinite(x) else x for x in line])
        return lines

    def markdown(self) -> str:
        """Return the table; the best value of each column is bold."""
        cells = [row.cell for row in self.rows]
        scales = [key for key in ("scale", "cfg") if any(getattr(cell, key) is not None for cell in cells)]
        timed = any(row.seconds is not None for row in self.rows)
        guides = ["guide"] if any(cell.guide for cell in cells) else []
        heads = ["sampler", "steps", *scales, *guides, *self.names.values(), *(["s/image"] if timed else [])]
        lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
        best = {metric: best_of(self.rows, metric) for metric in self.names}
        for row in self.rows:
            line = [row.cell.sampler, row.cell.steps, *("" if (v := getattr(row.cell, k)) is None else number(v)
                                                         for k in scales)]  # fmt: skip
            line += [row.cell.guide] if guides else []
            for metric in self.names:
                value = row.get(metric)
                text = format_value(value.value) if value and math.isfinite(value.value) else ""
                line.append(f"**{text}**" if value and text and value.value == best[metric] else text)
            lines.append(line + ([f"{row.seconds:.3g}" if row.seconds is not None else ""] if timed else []))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{self.caption}\n"


def best_of(rows: Sequence[Row], metric: str) -> float | None:
    """Return the best value of a metric, or None if no row has one."""
    values = [value.value for row in rows if (value := row.get(metric)) and math.isfinite(value.value)]
    best: Callable[[list[float]], float] = min if lower_is_better(metric) else max
    return best(values) if values else None
