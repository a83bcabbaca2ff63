"""The names of ImageNet-1k's labels. Label k is the k-th of the 1,000 WordNet ids in sorted order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files


@cache
def terms() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return (WordNet id, names) of each label, display name first: `("n01440764", ("tench", "Tinca tinca"))`, ...

    Source: WordNet 3.0, see imagenet_labels.txt.
    """
    text = (files("admg.data") / "imagenet_labels.txt").read_text(encoding="utf-8")
    split = (line.split(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return tuple((wordnet_id, tuple(listed.split(", "))) for wordnet_id, listed in split)


@cache
def names() -> tuple[str, ...]:
    """Return the display names of the 1,000 labels. No two are equal, even regardless of case."""
    return tuple(listed[0] for _, listed in terms())


@cache
def synonyms() -> tuple[tuple[str, ...], ...]:
    """Return the other names of each label and its WordNet id, in lower case. Some belong to two labels ("crane")."""
    return tuple((*(name.lower() for name in listed[1:]), wordnet_id) for wordnet_id, listed in terms())


@cache
def numbers() -> dict[str, int]:
    """Return the number of each WordNet id."""
    return {wordnet_id: number for number, (wordnet_id, _) in enumerate(terms())}


def published(ids: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Return the number and the display name of each WordNet id; {} unless all are labels of ImageNet-1k."""
    known = numbers()
    return {i: (known[i], names()[known[i]]) for i in ids} if all(i in known for i in ids) else {}
