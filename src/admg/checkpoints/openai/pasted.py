"""Flags as people paste them from a shell: `--name value`, quoted, over several lines, with the command around them."""

from __future__ import annotations

import re
import shlex


def pairs(flags: str) -> dict[str, str]:
    """Name -> text of each flag; the last one of a name wins, as in argparse.

    ValueError: no shell words, a word that belongs to no flag, a flag without a value, a variable without its value.
    """
    rest, found = words(flags), {}
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise ValueError(f"flags: {name!r} is neither a flag (--name) nor the value of one")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"flags: {name} needs a value")
            text = rest.pop(0)
        found[name.removeprefix("--")] = text
    return found


def words(flags: str) -> list[str]:
    """The words of a pasted text: assignments opened; the command itself and variables set in the text left out."""
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
            raise ValueError(f"flags: {word} was not expanded: paste the flags that it stands for")
    return opened


def shell_words(text: str) -> list[str]:
    """As the shell splits them, without comments, redirections, what the output is piped into, and ; & && between."""
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
        raise ValueError(f"flags: not shell words: {error}") from None
    return kept
