"""Turn our docstrings into Markdown: lines `name: text` into a list, and examples after `>>>` into code."""

from __future__ import annotations

import re
from typing import Any

import griffe

FIELD = re.compile(r"^((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*): (.+)$")


class Docstrings(griffe.Extension):
    """A griffe extension; mkdocstrings finds it by its base class."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring in Markdown.

    A field is a line `name: text` or `name, name: text` that begins a line; indented lines continue it. The first line
    of the docstring is never one.
    """
    out: list[str] = []
    state = "text"
    for number, line in enumerate(text.splitlines()):
        field = FIELD.match(line) if number else None
        if line.startswith(">>>") and state != "example":
            out += ["", "```pycon"]
            state = "example"
        elif state == "example" and not line.strip():
            out.append("```")
            state = "text"
        elif state == "example":
            pass
        elif field is not None:
            out += [] if state == "fields" else [""]
            names = ", ".join(f"`{name}`" for name in field[1].split(", "))
            line, state = f"- {names}: {escaped(field[2])}", "fields"
        elif state == "fields" and line.startswith(" "):
            line = f"  {escaped(line.strip())}"
        else:
            out += [""] if line.strip() and state == "fields" else []
            line, state = escaped(line), "text"
        out.append(line)
    return "\n".join([*out, "```"] if state == "example" else out)


def escaped(line: str) -> str:
    """Return a line in which underscores outside of code stand for themselves, as in x_t."""
    parts = line.split("`")
    return "`".join(part.replace("_", "\\_") if i % 2 == 0 else part for i, part in enumerate(parts))
