"""What the commands that take labels share."""

from __future__ import annotations

from typing import Any

from admg.checkpoints.model import Model
from admg.generation.labels import Label, typed_labels

Labels = int | str | tuple[int | str, ...]
"""Value of `--labels`: text on the command line; in a TOML file, also an integer or a list of integers and texts."""


def chosen_labels(
    model: Model, guides: Any, label: tuple[int | str, ...], labels: Labels | None
) -> str | list[Label] | None:
    """Return the labels of `--label`, or else those of `--labels`, as generate() takes them.

    A name or alias is text, and any other decimal number is the number of a label.
    """
    if not label and (labels is None or labels == "balanced" or labels == "random"):
        return labels
    return typed_labels(model, guides, listed_labels(label, labels))


def listed_labels(label: tuple[int | str, ...], labels: Labels | None) -> list[int | str]:
    """Return the labels of `--label`, or else those of `--labels`."""
    if label or labels is None:
        return list(label)
    if isinstance(labels, str):
        return [part.strip() for part in labels.split(",")]
    return [labels] if isinstance(labels, int) else list(labels)
