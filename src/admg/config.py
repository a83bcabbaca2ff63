"""Documented dataclasses as configurations: one declaration for Python, the command line and TOML files.

A configuration is a frozen dataclass whose docstring has a line `name: text` for each field. `setting` declares the
range of a field, `check` enforces it, and `field_texts` reads the texts, so that help and error messages agree.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import math
import numbers
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

C = TypeVar("C")
T = TypeVar("T")
MAX_TOML_BYTES = 1 << 20
MAX_MESSAGE_LENGTH = 1500
"""Largest number of characters of a message."""


@dataclass(frozen=True)
class Range:
    """The values that a number may have.

    min, max: inclusive bounds
    above, below: exclusive bounds
    infinite: whether infinity is allowed
    """

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    infinite: bool = False

    def __contains__(self, value: float) -> bool:
        return (
            (math.isfinite(value) or (self.infinite and not math.isnan(value)))
            and (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.min, "above": self.above, "at most": self.max, "below": self.below}
        parts = [
            f"{word} {bound:,}" if isinstance(bound, int) else f"{word} {bound:g}"
            for word, bound in words.items()
            if bound is not None
        ]
        return " and ".join(parts) + (", or inf" if self.infinite else "") or "a finite number"


@dataclass(frozen=True)
class Setting:
    """Display and checks of a field. See `setting`."""

    range: Range | None = None
    choices: tuple[str, ...] | None = None
    repeat: bool = False
    positional: bool = False
    metavar: str | None = None
    default_text: str | None = None
    dashes: bool = False


def setting(
    default: Any = MISSING,
    *,
    min: float | None = None,
    max: float | None = None,
    above: float | None = None,
    below: float | None = None,
    infinite: bool = False,
    choices: Iterable[str] | None = None,
    repeat: bool = False,
    positional: bool = False,
    metavar: str | None = None,
    default_text: str | None = None,
    dashes: bool = False,
) -> Any:
    """Declare a dataclass field with a range and with the way it appears on the command line.

    default: the field's default; without one the field is required
    min, max, above, below: inclusive and exclusive bounds of a number, or of each number of a tuple
    infinite: infinity is allowed
    choices: allowed texts, if the type is not a Literal
    repeat: a tuple whose option is repeated, `--label A --label B`, instead of a list, `--label A,B`
    positional: an argument without a name
    metavar: placeholder of the value in the help
    default_text: description of the default in the help, if the value itself is not informative
    dashes: the value may begin with `--`
    """
    bounds = (min, max, above, below)
    range = Range(*bounds, infinite) if infinite or any(bound is not None for bound in bounds) else None
    names = None if choices is None else tuple(choices)
    declared = Setting(range, names, repeat, positional, metavar, default_text, dashes)
    return dataclasses.field(default=default, metadata={"setting": declared})


def group(
    kind: type, *, omit: Iterable[str] = (), title: str | None = None, chosen: Mapping[str, str] | None = None
) -> Any:
    """Declare a field that holds another configuration, whose fields become a group of options.

    omit: fields that are not options and keep their defaults
    title: heading in the help; by default the first sentence of the docstring
    chosen: fields whose default is chosen by the command, with a description of it for the help
    """
    metadata = {"group": (kind, tuple(omit), title, False), "chosen": chosen or {}}
    return dataclasses.field(default_factory=kind, metadata=metadata)


def overrides(
    kind: type, *, omit: Iterable[str] = (), title: str | None = None, chosen: Mapping[str, str] | None = None
) -> Any:
    """Declare a field of type `dict[str, Any]` with the given fields of a configuration that is built later.

    For a configuration that cannot be built from the options alone, such as a network whose number of labels the data
    decides: `build(kind, options.network, num_classes=10)` does it.

    chosen: fields whose default is chosen later, with a description of it for the help
    """
    metadata = {"group": (kind, tuple(omit), title, True), "chosen": chosen or {}}
    return dataclasses.field(default_factory=dict, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """A field of a configuration, or of a configuration within it.

    group: heading of the group that the option belongs to, "" for the configuration itself
    deferred: whether the option belongs to a configuration that is built later, in which it makes a difference whether
        its default is given
    """

    name: str
    type: Any
    default: Any
    text: str
    declared: Setting
    group: str
    deferred: bool = False

    @property
    def required(self) -> bool:
        return self.default is MISSING

    def chosen_later(self, text: str) -> Option:
        """Return the option without a default; the text describes the default in the help."""
        return dataclasses.replace(self, default=None, declared=dataclasses.replace(self.declared, default_text=text))


def options(kind: type, heading: str = "", omit: Iterable[str] = ()) -> Iterator[Option]:
    """Yield the options of a configuration class, including those of nested configurations."""
    hints, texts = get_type_hints(kind), field_texts(kind)
    for field in dataclasses.fields(kind):
        declared = field.metadata.get("setting", Setting())
        if field.name in omit:
            continue
        if "group" in field.metadata:
            inner, inner_omit, title, deferred = field.metadata["group"]
            chosen = field.metadata.get("chosen", {})
            for option in options(inner, title or first_sentence(inner), inner_omit):
                found = option.chosen_later(chosen[option.name]) if option.name in chosen else option
                yield dataclasses.replace(found, deferred=deferred or found.deferred)
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if declared.range is None and field.name in getattr(kind, "RANGES", {}):
            declared = dataclasses.replace(declared, range=Range(*kind.RANGES[field.name]))  # type: ignore[attr-defined]
        yield Option(field.name, hints[field.name], default, texts.get(field.name, ""), declared, heading)


def build(kind: type[C], values: Mapping[str, Any], omit: Iterable[str] = (), **fixed: Any) -> C:
    """Build a configuration and its nested configurations from flat values; unknown names are ignored.

    Raises ValueError if a required field is missing or a value is out of range.
    """
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if "group" in field.metadata:
            inner, inner_omit, _, deferred = field.metadata["group"]
            if deferred:
                known = {option.name: option for option in options(inner, omit=inner_omit)}
                arguments[field.name] = {name: value for name, value in values.items() if name in known}
                for name, value in arguments[field.name].items():
                    check_value(name, value, known[name].declared, known[name].type)
            else:
                arguments[field.name] = build(inner, values, inner_omit)
        elif field.name in values and field.name not in omit:
            arguments[field.name] = values[field.name]
    arguments |= fixed
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in arguments and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{field.name} is required")
    built = kind(**arguments)
    check(built)
    return built


def check(config: Any) -> None:
    """Raise ValueError, naming the field and the allowed values, if a field of the dataclass is out of its range."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        declared: Setting = field.metadata.get("setting", Setting())
        check_value(field.name, getattr(config, field.name), declared, hints[field.name])


def check_used(config: Any, by: str, *names: str) -> None:
    """Raise ValueError for a field without effect: one that is not at its default although `by` is not given."""
    if getattr(config, by):
        return
    for name in changed_fields(config):
        if name in names:
            raise ValueError(f"{name} requires --{by.replace('_', '-')}")


def changed_fields(config: Any) -> list[str]:
    """Return the names of the fields of a dataclass that are not at their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return [name for name, default in defaults.items() if default not in (MISSING, getattr(config, name))]


def check_integer(name: str, value: Any, minimum: int = 1) -> None:
    """Raise ValueError unless a value is an integer, of Python or NumPy, of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_value(name: str, value: Any, declared: Setting, hint: Any) -> None:
    """Raise ValueError, naming the field, if a value is out of its range. Numbers without a range must be finite."""
    if value is None:
        return
    allowed, range = declared.choices or literals(hint), declared.range or Range()
    for item in value if isinstance(value, tuple) else (value,):
        if allowed and item not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {item!r}")
        if isinstance(item, int | float) and not isinstance(item, bool) and item not in range:
            raise ValueError(f"{name} must be {range}, got {item}")
        if isinstance(item, float) and int in types_in(hint) and float not in types_in(hint):
            raise ValueError(f"{name} must be an integer, got {item}")


def types_in(hint: Any) -> set[Any]:
    """Return the types in a type hint: {int, None} for `tuple[int, ...] | None`."""
    inner = get_args(hint)
    return set().union(*map(types_in, inner)) if inner and get_origin(hint) is not Literal else {hint}


def literals(hint: Any) -> tuple[Any, ...]:
    """Return the values of a Literal, or of the Literal in `Literal[...] | None`; () for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((get_args(part) for part in get_args(hint) if get_origin(part) is Literal), ())


def field_texts(kind: type) -> dict[str, str]:
    """Return the text of each field, from the lines `name: text` of the docstring and of its base classes."""
    texts: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        for match in re.finditer(r"^ {4}(\w+): (.+(?:\n {5,}\S.*)*)", cls.__doc__ or "", re.MULTILINE):
            texts[match[1]] = re.sub(r"\s+", " ", match[2])
    return texts


def summary(kind: type) -> str:
    """Return the docstring of a configuration without the lines that describe its fields."""
    text = re.sub(r"^ {4}\w+: .+(?:\n {5,}\S.*)*\n?", "", kind.__doc__ or "", flags=re.MULTILINE)
    return "\n\n".join(re.sub(r"\s+", " ", part).strip() for part in text.split("\n\n") if part.strip())


def first_sentence(kind: type) -> str:
    return summary(kind).split(". ")[0].split("\n")[0].rstrip(".")


def printable(text: str) -> str:
    """Return a text with control characters, which a terminal would interpret, escaped as in `repr`."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str) -> str:
    """Return a text without its middle if it is too long for a message, such as one from a file."""
    return (
        text
        if len(text) <= MAX_MESSAGE_LENGTH
        else f"{text[: MAX_MESSAGE_LENGTH // 2]} ... {text[-MAX_MESSAGE_LENGTH // 2 :]}"
    )


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the nearest of the known words, or "" if none is near."""
    near = difflib.get_close_matches(text, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""


def read_toml(path: Path | str) -> dict[str, Any]:
    """Return the values of a TOML file, including those in tables, with `_` for `-` in their names.

    Raises ValueError if the file is not valid TOML or gives a value twice, OSError if it cannot be read.
    """
    with Path(path).open("rb") as file:
        text = file.read(MAX_TOML_BYTES + 1)
    if len(text) > MAX_TOML_BYTES:
        raise ValueError(f"{path} has more than {MAX_TOML_BYTES >> 20} MiB, so it is not a file of options")
    try:
        content = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is not valid TOML: it is nested too deeply") from None
    return flat(content, str(path))


def flat(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the values of TOML tables by name. Raises ValueError, naming the source, if one is given twice."""
    values: dict[str, Any] = {}
    pending = list(content.items())[::-1]
    while pending:
        key, value = pending.pop()
        name = key.replace("-", "_")
        if isinstance(value, dict):
            pending += list(value.items())[::-1]
        elif name in values:
            raise ValueError(f"{source} sets {key!r} twice")
        else:
            values[name] = value
    return values


def to_toml(kind: type, values: Mapping[str, Any]) -> str:
    """Return a TOML text of all options of a configuration: the given values, defaults for the rest.

    Options without a value are written as comments, and so are deferred ones that are not given.
    """
    lines: list[str] = []
    heading = ""
    for option in options(kind):
        if option.group != heading:
            heading = option.group
            lines.append(f"\n# {heading}")
        value = values.get(option.name, option.default)
        if value is None or value is MISSING:
            lines.append(f"# {option.name} =")
        elif option.deferred and option.name not in values:
            lines.append(f"# {option.name} = {toml_value(value)}")
        else:
            lines.append(f"{option.name} = {toml_value(value)}")
    return "\n".join(lines).strip() + "\n"


def toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(str(value), ensure_ascii=False)


def with_fields(part: T, **values: Any) -> T:
    """Return a shallow copy of a dataclass with other values of some fields.

    Unlike `dataclasses.replace`, it keeps attributes that are not fields, and does not run `__post_init__` again, which
    in a user's class may change values that are changed already.
    """
    copied = copy.copy(part)
    for name, value in values.items():
        object.__setattr__(copied, name, value)  # the class may be frozen
    return copied
