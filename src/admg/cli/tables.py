"""Text tables of the commands."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str] = ()) -> str:
    """Return the rows under a heading, in columns that are aligned to the right, or to the left if listed in `left`."""
    lines = [tuple(columns), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    aligned = (
        (text.ljust(width) if name in left else text.rjust(width) for text, width, name in zip(line, widths, columns))
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def size_text(size: int) -> str:
    """Return a number of bytes in MB or GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
