"""Read flags as people paste them from a shell: quoted, over several lines, with the command around them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

GivenFlags = str | Mapping[str, Any]
"""Flags as text, or their values by name, such as model_and_diffusion_defaults() of guided-diffusion returns."""


def pairs(flags: GivenFlags) -> dict[str, str]:
    """Return the text of each flag. If a flag is repeated, the last one counts, as in argparse.

    Flags whose value is None in a mapping are left out.

    Raises ValueError for invalid quoting, a word that belongs to no flag, a flag without a value, and a shell variable
    whose value is not in the text.
    """
    if isinstance(flags, Mapping):
        return {
            name: ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            for name, value in flags.items()
            if value is not None
        }
    rest, values = words(flags), {}
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise ValueError(f"flags: {name!r} is neither a flag (--name) nor the value of one")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"flags: {name} needs a value")
            text = rest.pop(0)
        values[name.removeprefix("--")] = text
    return values


def words(flags: str) -> list[str]:
    """Return the words of a pasted text, with the flags in assignments, without the command and without variables."""
    split = shell_words(flags)
    script = max((i for i, word in enumerate(split) if word.endswith(".py")), default=-1)
    assigned, opened = set[str](), list[str]()
    for i, word in enumerate(split):
        if assignment := re.match(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL):
            assigned.add(assignment[1])
            opened += words(assignment[2]) if assignment[2].lstrip().startswith("--") else []
        elif i <= script or word == "export":
            continue
        elif not word.startswith("$"):
            opened.append(word)
        elif word.strip("${}") not in assigned:
            raise ValueError(f"flags: {word} was not expanded: paste its value")
    return opened


def shell_words(text: str) -> list[str]:
    """Split a text as a shell does, without comments, redirections, pipes and separators such as `;` and `&&`."""
    text = re.sub(r"\\\r?\n", " ", text)
    text = re.sub(r"(?<!\S)\d*(?:>>?|<)&?\s*[^\s;|&]+", " ", text)  # 2>&1, > log.txt
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    kept, piped = list[str](), False
    try:
        for word in lexer:
            if set(word) <= set(";&|"):
                piped = word == "|"
            elif not piped:
                kept.append(word)
    except ValueError as error:
        raise ValueError(f"flags: invalid shell quoting: {error}") from None
    return kept
