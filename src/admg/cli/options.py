"""Command-line options made from dataclasses: one option per field, explained by the class's docstring."""

from __future__ import annotations

import argparse
import dataclasses
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints


def add_fields(parser: argparse.ArgumentParser, config: type, title: str, omit: tuple[str, ...] = ()) -> None:
    """An option for every field of the dataclass but those in `omit`. The default is left to the dataclass."""
    group = parser.add_argument_group(title)
    hints, texts = get_type_hints(config), field_help(config)
    for field in dataclasses.fields(config):
        if field.name in omit:
            continue
        required = field.default is dataclasses.MISSING
        default = "" if required else f" (default: {_shown(field.default)})"
        text = texts.get(field.name, "").replace("%", "%%") + default
        arguments = _argument(hints[field.name]) | {"dest": field.name, "default": argparse.SUPPRESS, "help": text}
        group.add_argument(f"--{field.name.replace('_', '-')}", **arguments)


def build(config: type, values: dict[str, Any], **fixed: Any) -> Any:
    """The dataclass from those of the values that it has fields for, and the fixed ones."""
    names = {field.name for field in dataclasses.fields(config)}
    return config(**{k: v for k, v in values.items() if k in names} | fixed)


def config_arguments(path: str) -> list[str]:
    """The options in a TOML file, named as on the command line (with - or _), as command-line arguments."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    arguments = []
    for key, value in values.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        else:
            arguments.append(f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return arguments


def field_help(config: type) -> dict[str, str]:
    """Field -> text, from lines `name: text` (continued by deeper indentation) in docstrings, its bases' too."""
    texts: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        for match in re.finditer(r"^ {4}(\w+): (.+(?:\n {5,}\S.*)*)", cls.__doc__ or "", re.MULTILINE):
            texts[match[1]] = re.sub(r"\s+", " ", match[2])
    return texts


def _argument(hint: Any) -> dict[str, Any]:
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint), "type": str}
    if get_origin(hint) is tuple:
        return {"type": _list_of(get_args(hint)[0]), "metavar": "A,B,..."}
    if get_args(hint):  # an optional value: `int | None`
        hint = next(h for h in get_args(hint) if h is not type(None))
    return {"type": hint, "metavar": {int: "N", float: "X", str: "TEXT", Path: "PATH"}.get(hint)}


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(",") if part.strip())

    parse.__name__ = f"list of {kind.__name__}s"  # argparse names it in its error message
    return parse


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "by image size"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
