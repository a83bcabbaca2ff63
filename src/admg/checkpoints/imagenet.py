"""The names of ImageNet-1k's labels. Label k is the k-th of the 1,000 WordNet ids in order, as everywhere."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def terms() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(WordNet id, names) of each label, the name to show first: ("n01440764", ("tench", "Tinca tinca")), ...

    Source: WordNet 3.0, see imagenet_labels.txt.
    """
    text = (files("admg.checkpoints") / "imagenet_labels.txt").read_text(encoding="utf-8")
    split = (line.split(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return tuple((wordnet_id, tuple(listed.split(", "))) for wordnet_id, listed in split)


@cache
def names() -> tuple[str, ...]:
    """A name for each of the 1,000 labels; no two are equal, whatever the case."""
    return tuple(listed[0] for _, listed in terms())


@cache
def synonyms() -> tuple[tuple[str, ...], ...]:
    """What else each label is called, in lower case, its WordNet id among it; some belong to two labels ("crane")."""
    return tuple((*(name.lower() for name in listed[1:]), wordnet_id) for wordnet_id, listed in terms())
