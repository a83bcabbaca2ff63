"""Labels of a call: names and numbers resolved, repeated in equal shares, balanced, or drawn at random."""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.config import check_integer
from admg.guidance import Guide
from admg.guidance.base import reads_labels
from admg.warn import warn

Label = int | str | None
"""An int is the number of a label, a str its name, and None or -1 stands for no label."""
LabelsArgument = Label | Sequence[Label] | Tensor
MAX_RECORDED_LABELS = 100
MAX_IMAGES = 10_000_000
"""Largest number of images of one run; more are several runs with different seeds."""


def label_table(model: Model, guide: Guide | None) -> Labels:
    """Return the available labels: those of the model, or else those of the guide's classifier."""
    of_guide = getattr(getattr(guide, "classifier", None), "labels", None)
    return model.labels if model.labels.count or of_guide is None else of_guide


def uses_labels(model: Model, guide: Guide | None, unconditional: bool) -> bool:
    """Whether labels have an effect: on the guide, or on a network that is conditioned on them."""
    return (guide is not None and reads_labels(guide)) or (model.conditional and not unconditional)


def check_labels_used(model: Model, guide: Guide | None, unconditional: bool, labels: Sequence[int | None]) -> None:
    """Raise ValueError if images have labels that would have no effect."""
    if any(label is not None for label in labels) and not uses_labels(model, guide, unconditional):
        raise no_effect(model.labels)


def no_effect(table: Labels) -> ValueError:
    """Return the error for labels that would have no effect. table: the known labels"""
    why = "neither the model nor a guide uses them" if table.count else "this model has no labels"
    return ValueError(f"labels would have no effect: {why}")


def check_num(num: int | None) -> None:
    """Raise ValueError unless a number of images is None or in its range."""
    if num is None:
        return
    check_integer("num", num)
    if num > MAX_IMAGES:
        raise ValueError(f"num must be from 1 to {MAX_IMAGES:,}, got {num}")


def resolve_labels(
    model: Model, guide: Guide | None, labels: LabelsArgument, num: int | None = None
) -> list[int | None]:
    """Return the number of each image's label, None for an image without a label.

    labels: one label, a sequence of them, or a tensor (N,) of numbers; -1 stands for no label
    num: number of images, in equal shares of the labels; None: one image per label
    Raises ValueError for an unknown label, or if there is no image.
    """
    check_num(num)
    table, items = label_table(model, guide), label_list(labels)
    if not table.count:  # the network may know how many there are
        table = Labels(getattr(getattr(model.network, "config", None), "num_classes", None) or 0)
    if not items:
        raise ValueError("no labels: at least one is needed")
    return in_shares([label_number(table, item) for item in items], num)


def in_shares(numbers: list[int | None], num: int | None) -> list[int | None]:
    """Return `num` labels in equal shares, with a warning if some labels get no image; None: each label once."""
    if num is not None and num < len(numbers):
        warn(f"{num} images for {len(numbers)} labels: the last labels get none")
    return numbers if num is None else cycle_labels(numbers, num)


def label_list(labels: LabelsArgument) -> list[Label]:
    """Return one label or several as a list. The number -1 becomes None, as do negative ones in a tensor or array."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "UO" and labels.ndim == 1:
        return list(labels.tolist())  # names, or names and numbers
    if isinstance(labels, Tensor | np.ndarray):
        if np.asarray(labels).dtype.kind not in "iu" or labels.ndim > 1:
            raise ValueError(
                f"a tensor of labels must hold whole numbers (N,), got {labels.dtype} {tuple(labels.shape)}"
            )
        return [None if number < 0 else number for number in np.atleast_1d(np.asarray(labels)).tolist()]
    items: list[Label] = [labels] if is_single(labels) else list(labels)  # type: ignore[list-item, arg-type]
    return [None if isinstance(item, int | np.integer) and item == -1 else item for item in items]


def is_single(labels: LabelsArgument) -> bool:
    """Whether this is one label, and not a sequence of labels."""
    if isinstance(labels, Tensor | np.ndarray):
        return labels.ndim == 0
    return labels is None or isinstance(labels, str | int | np.integer)


class TypedLabel(str):
    """A label that was typed as text: a name or alias, or else a decimal number."""


def label_number(table: Labels, label: Any) -> int | None:
    """Return the number of a label: an integer is one, and text is looked up as a name.

    Raises ValueError if there is no such label. In an empty table, every integer from 0 is one.
    """
    if label is None:
        return None
    if isinstance(label, str):
        return table.parse(label) if isinstance(label, TypedLabel) else table.number(label)
    try:
        if isinstance(label, bool | np.bool_):
            raise TypeError
        number = operator.index(label)
    except TypeError:
        raise ValueError(f"label {label!r} is neither an integer nor a name") from None
    return number if table.count == 0 and number >= 0 else table.number(number)


def typed_labels(model: Model, guide: Any, labels: Sequence[int | str]) -> list[Label]:
    """Return the numbers of the labels of a command: text is a name or alias, or else a decimal number.

    Text remains a TypedLabel if the labels are not known yet. Warns if text could be both a name and a number.
    Raises ValueError if there is no such label.
    """
    table = label_table(model, guide)
    if not table.count:
        return [TypedLabel(label) if isinstance(label, str) else label for label in labels]
    numbers: list[Label] = [
        table.parse(label) if isinstance(label, str) else label_number(table, label) for label in labels
    ]
    for label, number in dict(zip(labels, numbers)).items():
        other = int(label) if isinstance(label, str) and label.isdecimal() else number
        if isinstance(other, int) and isinstance(number, int) and number != other < table.count:
            warn(f"label {label!r} is the one of this name, number {number}; number {other} is {table.name(other)!r}")
    return numbers


def label_names(table: Labels, numbers: Sequence[int | None]) -> list[str]:
    """Return the name of each label, "" for None."""
    return ["" if number is None else table.name(number) for number in numbers]


def choose_labels(
    model: Model,
    guide: Guide | None,
    labels: LabelsArgument = None,
    num: int | None = None,
    *,
    unconditional: bool = False,
    seed: int = 0,
) -> tuple[list[int | None], Any]:
    """Return a label for each image of a run, and a description of their choice for its record.

    labels: "balanced" (equal shares of all labels), "random" (drawn with the seed), or as in sample(); None: balanced,
        or random for fewer images than labels. Images have no label where labels would have no effect
    num: number of images. By default one per given label; else 8 per label, or 64 if there are more than 20 labels
    Raises ValueError for an unknown label, or for labels that would have no effect.
    """
    check_num(num)
    table = label_table(model, guide)
    if not uses_labels(model, guide, unconditional) or not table.count:
        if labels is not None and any(item is not None for item in label_list(labels)):
            raise no_effect(table)
        return [None] * (num or (len(label_list(labels)) if labels is not None else 8)), None
    if labels is not None and not (isinstance(labels, str) and labels in ("balanced", "random")):
        numbers = resolve_labels(model, guide, labels)
        return in_shares(numbers, num), label_record(numbers)
    num = num or (8 * table.count if table.count <= 20 else 64)
    if (labels or ("random" if num < table.count else "balanced")) == "balanced":
        return cycle_labels(range(table.count), num), "balanced"
    return [*random_labels(seed, table.count, num)], "random"


def cycle_labels(labels: Sequence[int | None], num: int) -> list[int | None]:
    """Return `num` labels, taken in turn; the numbers of images per label differ by at most one.

    >>> cycle_labels([0, 1], 5)
    [0, 1, 0, 1, 0]
    """
    return list(itertools.islice(itertools.cycle(labels), num))


def random_labels(seed: int, count: int, num: int) -> list[int]:
    """Return `num` random labels below `count`. Label i of a seed does not depend on the number of images."""
    stream = int.from_bytes(b"labels", "little")  # a stream of its own, unlike that of any image's noise
    drawn: list[int] = np.random.default_rng([seed, stream]).integers(count, size=num).tolist()
    return drawn


def label_record(numbers: Sequence[int | None]) -> Any:
    """Return the labels for the record of a run: the numbers, or a checksum if there are many."""
    if len(numbers) <= MAX_RECORDED_LABELS:
        return list(numbers)
    return f"{len(numbers)} labels, checksum {hashlib.sha256(as_tensor(numbers).numpy().tobytes()).hexdigest()[:12]}"


def as_tensor(labels: Sequence[int | None]) -> Int64[Tensor, " n"]:
    """Return the numbers of labels as a tensor, -1 for no label."""
    return torch.tensor([-1 if label is None else label for label in labels], dtype=torch.int64)
