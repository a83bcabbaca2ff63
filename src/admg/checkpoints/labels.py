"""The labels of a model: numbers 0 to K-1, with or without names."""

from __future__ import annotations

import difflib
import operator
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

from admg.data import imagenet
from admg.data.listing import nfc

MOST_BYTES = 100
"""Length of a label in a file name. Names may have 255 bytes, and 143 on encrypted disks."""
RESERVED = re.compile(r"^(con|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³])\.", re.IGNORECASE)
"""Names of devices on Windows, which would also match files such as nul.png."""


class Labels:
    """The labels 0 to K-1 of a model, and their names if it has any. Names are kept and looked up in Unicode's NFC.

    count: number of labels, K
    names: display name of each label; empty if the labels are only numbers
    aliases: further names of each label, matched regardless of case; empty if there are none
    """

    def __init__(self, count: int, names: Sequence[str] = (), aliases: Sequence[Sequence[str]] = ()):
        if names and len(names) != count:
            raise ValueError(f"there must be {count} label names, got {len(names)}")
        if aliases and len(aliases) != count:
            raise ValueError(f"there must be {count} tuples of aliases, got {len(aliases)}")
        self.count = count
        self.names = tuple(map(nfc, names))
        self.aliases = tuple(tuple(nfc(alias).lower() for alias in listed) for listed in aliases)

    @classmethod
    def imagenet(cls) -> Labels:
        """Return the 1,000 labels of ImageNet-1k, with WordNet's synonyms as aliases."""
        return cls(1000, imagenet.names(), imagenet.synonyms())

    @classmethod
    def stated(cls, count: int, names: Sequence[str]) -> Labels:
        """Return the labels of a network with `count` labels, 0 if it takes none, and with the names in its file.

        Raises ValueError if there are names, but not one for each label.
        """
        if names and count not in (0, len(names)):
            raise ValueError(f"there must be {count} label names, got {len(names)}")
        return cls.of(names) if names else cls(count)

    @classmethod
    def of(cls, names: Sequence[str]) -> Labels:
        """Return labels with these names. ImageNet's names also get their synonyms."""
        return cls.imagenet() if tuple(names) == imagenet.names() else cls(len(names), names)

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.names[:3])) + (", ..." if len(self.names) > 3 else "")
        return f"Labels({self.count}{': ' if shown else ''}{shown})"

    def name(self, label: int) -> str:
        """Return the name of a label, or its number as text if the labels have no names."""
        return self.names[label] if self.names else str(label)

    def number(self, label: SupportsIndex | str) -> int:
        """Return the number of a label. An integer is a number already; a string is looked up as a name or alias.

        Raises ValueError if an integer is out of range, if no label has this name (the message suggests similar ones),
        or if several labels share this alias (the message lists them).
        """
        if isinstance(label, str):
            return self._number_of_name(label, numbers_allowed=False)
        number = operator.index(label)
        if not 0 <= number < self.count:
            raise ValueError(self._unknown(str(number)))
        return number

    def parse(self, text: str) -> int:
        """Return the number of a label that was typed as text: a name or alias, or else a decimal number.

        Raises ValueError as `number` does.
        """
        return self._number_of_name(text, numbers_allowed=True)

    def _number_of_name(self, text: str, numbers_allowed: bool) -> int:
        exact = nfc(text)
        text = exact.strip()
        matches = self._named(exact) or self._named(text)
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ValueError(f"label {text!r} is ambiguous: {self._listed(matches)}")
        if text.isdecimal() and int(text) < self.count:
            if numbers_allowed:
                return int(text)
            raise ValueError(f"no label is named {text!r}: a number must be given as an integer, {int(text)}")
        raise ValueError(self._unknown(text))

    def _unknown(self, text: str) -> str:
        """Return the message for a label that does not exist."""
        if self.count == 0:
            return f"label {text!r}: this model has no labels"
        similar = self._similar(text.lower())
        hint = f"did you mean {self._listed(similar)}? " if similar else ""
        listed = ": " + ", ".join(self.names) if 0 < len(self.names) <= 20 else ""
        return f"unknown label {text!r}: {hint}labels are 0 to {self.count - 1}{listed}"

    def _named(self, text: str) -> list[int]:
        """Return the labels with exactly this name, or else with this name in another case, or else with this alias."""
        exact = [i for i, name in enumerate(self.names) if name == text]
        folded = [i for i, name in enumerate(self.names) if name.lower() == text.lower()]
        return exact or folded or [i for i, listed in enumerate(self.aliases) if text.lower() in listed]

    def _similar(self, text: str) -> list[int]:
        """Return up to three labels with a name that contains the text as a word, resembles it, or contains it."""
        if not text or text.isdecimal():
            return []
        by_term: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            for term in (name.lower(), *(self.aliases[i] if self.aliases else ())):
                by_term.setdefault(term, []).append(i)
        similar = [term for term in by_term if text in term.split()]
        similar += difflib.get_close_matches(text, by_term, n=5, cutoff=0.5)
        similar += [term for term in by_term if text in term]
        return list(dict.fromkeys(i for term in similar for i in by_term[term]))[:3]

    def _listed(self, labels: Sequence[int]) -> str:
        """Return, for example, `'crane (wading bird)' (134) or 'crane (lifting device)' (517)`."""
        return " or ".join(f"{self.name(i)!r} ({i})" for i in labels)


def file_name(label: str) -> str:
    """Return the label as the beginning of a file name that every system allows; different labels may have the same.

    Every character but letters, digits, `-` and `.`, and dots at the ends, are replaced by `-`; what is longer than
    MOST_BYTES in UTF-8 is cut off.
    """
    kept = "".join(letter if letter.isalnum() or _is_mark(letter) or letter in "-." else "-" for letter in nfc(label))
    kept = RESERVED.sub(r"\1-", kept)
    kept = kept.encode("utf-8", "ignore")[:MOST_BYTES].decode("utf-8", "ignore")
    return re.sub(r"^\.|\.$", "-", kept) or "sample"


def file_names(labels: Iterable[str]) -> dict[str, str]:
    """Return the beginning of a file name for each label, different for different labels, whatever the case."""
    result: dict[str, str] = {}
    taken: set[str] = set()
    for label in dict.fromkeys(labels):
        name, count = file_name(label), 1
        while name.casefold() in taken:
            count += 1
            name = f"{file_name(label)}~{count}"
        result[label] = name
        taken.add(name.casefold())
    return result


def _is_mark(letter: str) -> bool:
    """Whether this character combines with the letter before it, like vowels in Hindi and Thai."""
    return unicodedata.category(letter).startswith("M")
