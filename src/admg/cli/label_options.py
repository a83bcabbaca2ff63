"""What the commands that take labels share."""

from __future__ import annotations

Labels = int | str | tuple[int | str, ...]
"""Value of `--labels`: text on the command line; in a TOML file, also an integer or a list of integers and texts."""


def listed_labels(label: tuple[int | str, ...], labels: Labels | None) -> list[int | str]:
    """Return the labels of `--label`, or else those of `--labels`."""
    if label or labels is None:
        return list(label)
    if isinstance(labels, str):
        return [part.strip() for part in labels.split(",")]
    return [labels] if isinstance(labels, int) else list(labels)
