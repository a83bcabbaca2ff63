"""Command-line parsers made from documented dataclasses: one option per field, explained by the docstring.

A command is a module `cli/<name>.py` with a dataclass `Options`, a text `EXAMPLES` and a function `run(options)`. A
function `preset(given)`, if it has one, returns values for options that neither the command line nor --config gives.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, get_args, get_origin

from admg import config
from admg.config import Option

from .names_elsewhere import NAMES_ELSEWHERE

WIDTH = 78
"""Columns of the descriptions in the help, which argparse does not wrap."""
MAX_THREADS = 1024
VERBS = "(must|cannot|requires?|needs?|applies|apply|ignores|has|have)"
"""What follows the name of a parameter at the beginning of a message about it."""


@dataclass(frozen=True)
class Common:
    """The options common to all commands, outside of their Options; `given` are the values of all given options."""

    offline: bool = False
    threads: int | None = None
    gpus: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr, with exit code 2."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(
            2, config.shortened(config.printable(f"{self.prog}: error: {message}")) + f" (see {self.prog} --help)\n"
        )


def add_options(parser: argparse.ArgumentParser, command: ModuleType, together: bool = False) -> None:
    """Add the options of a command, its description and its examples to a parser.

    together: whether several processes can share the work of the command
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    paragraphs = config.summary(command.Options).split("\n\n")
    parser.description = "\n\n".join(textwrap.fill(paragraph, width=WIDTH) for paragraph in paragraphs)
    parser.epilog = f"examples:\n{command.EXAMPLES.rstrip()}"
    groups: dict[str, Any] = {}
    for option in config.options(command.Options):
        if option.group and option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        _add(groups.get(option.group, parser), option)
    common = parser.add_argument_group("Configuration")
    text = "TOML file of options, with these names; options on the command line take precedence"
    common.add_argument("--config", metavar="FILE", dest="config_file", help=text)
    common.add_argument("--print-config", action="store_true", help="print the options as TOML and exit")
    common.add_argument("--offline", action="store_true", help="download nothing; use models and data sets on disk")
    text = "number of CPU threads (at least 1; default: OMP_NUM_THREADS, or the cores left free)"
    common.add_argument("--threads", metavar="N", type=int, help=text)
    if together:
        text = "number of GPUs of this machine that share the work, one process each, or all (default: one)"
        common.add_argument("--gpus", metavar="N|all", help=text)


def parse(parser: argparse.ArgumentParser, command: ModuleType, argv: list[str]) -> tuple[Any, Common]:
    """Parse the arguments of a command into its Options and the common ones. Exits after --help and --print-config.

    Raises ValueError if an option is unknown, missing or out of range; the message names the option, and the --config
    file if the option comes from it.
    """
    known = {option.name: option for option in config.options(command.Options)}
    given = vars(_parse_known(parser, join_dashes(argv, known.values())))
    file, printing = given.pop("config_file", None), given.pop("print_config", False)
    common = Common(
        given.pop("offline", False), given.pop("threads", None), None if "gpus" in known else given.pop("gpus", None)
    )
    if common.threads is not None and not 1 <= common.threads <= MAX_THREADS:
        raise ValueError(f"--threads must be at least 1 and at most {MAX_THREADS:,}, got {common.threads}")
    if file is not None:
        given = _from_file(parser, file, known) | {name: value for name, value in given.items() if value is not None}
    values = {name: value for name, value in given.items() if name in known and value is not None}
    if hasattr(command, "preset"):
        values = {**command.preset(values), **values}
    if printing:
        print(config.to_toml(command.Options, values), end="")
        parser.exit()
    try:
        return config.build(command.Options, values), replace(common, given=values)
    except ValueError as error:
        raise ValueError(as_option(str(error), known)) from None


def as_option(message: str, known: Mapping[str, Option]) -> str:
    """Return the message with the field name at its beginning as an option: `batch_size` as --batch-size."""
    name, _, rest = message.partition(" ")
    if name not in known:
        return message
    return f"{flag(known[name])} {rest}"


def with_options(message: str, command: ModuleType) -> str:
    """Return a message of the library with its parameters written as the options of a command.

    `val_images` becomes --val-images, `labels="none"` --labels none, and `value_range=(LOW, HIGH)` --value-range
    LOW,HIGH. A name without an underscore may be an ordinary word: it becomes an option in an assignment, or at the
    beginning of a sentence that states what it must be.
    """
    known = {option.name: flag(option) for option in config.options(command.Options)}
    names = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    free = r"(?<![\w./'\"-])"  # not within a path, a quotation or an option

    def assigned(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if value in ("True", "False"):
            return known[name] if value == "True" else f"no {known[name]}"
        plain = value.strip("'\"()").replace(", ", ",")
        return f"{known[name]} {plain}"

    message = re.sub(rf"{free}({names})=('[^']*'|\"[^\"]*\"|\([^)]*\)|True|False)", assigned, message)
    message = re.sub(rf"^({names}) (?={VERBS}\b)", lambda match: f"{known[match[1]]} ", message)
    underscored = "|".join(name for name in known if "_" in name)
    if not underscored:
        return message
    return re.sub(rf"{free}({underscored})(?![\w/.'\"=]|-\w)", lambda match: known[match[1]], message)


def flag(option: Option) -> str:
    return option.name.upper() if option.declared.positional else f"--{option.name.replace('_', '-')}"


def join_dashes(argv: list[str], known: Any) -> list[str]:
    """Join `--flags --image_size 64` as `--flags=--image_size 64` for options whose value may begin with dashes."""
    names = [flag(option) for option in known if option.declared.dashes]
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] in names:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _parse_known(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    flags = [string for action in parser._actions for string in action.option_strings]
    misspelt = [
        word for word in argv if re.match("--|-[A-Za-z].", word) and word.partition("=")[0] not in (*flags, "--")
    ]
    if empty := next((word for word in argv if word.startswith("--") and word.endswith("=--")), None):
        parser.error(f"argument {empty[:-3]}: invalid value: '--'")  # argparse treats it as an empty list
    namespace, unknown = (None, misspelt) if misspelt else parser.parse_known_args(argv)
    if namespace is None or unknown:
        word = unknown[0].partition("=")[0]
        hint = _hint(word, flags) if word.startswith("-") else ""
        parser.error(
            f"unknown {'option' if word.startswith('-') else 'argument'} {word!r}" + (f": {hint}" if hint else "")
        )
    return namespace


def _hint(word: str, known: Iterable[str]) -> str:
    """Return the option that a word may mean: one of guided-diffusion or diffusers, or else one spelt alike.

    known: options as they are written, or their names in a TOML file
    """
    ours = NAMES_ELSEWHERE.get(word.lstrip("-").replace("-", "_").lower(), "").split()
    ours = ours if word.startswith("-") else [option[2:].replace("-", "_") for option in ours]
    found = next((option for option in ours if option in known), None)
    return f"here it is {found!r}" if found else config.did_you_mean(word, known)


def _from_file(parser: argparse.ArgumentParser, file: str, known: Mapping[str, Option]) -> dict[str, Any]:
    """Return the options of a TOML file. Raises ValueError, naming the file, if one is unknown or has a bad value."""
    values = config.read_toml(Path(file).expanduser())
    words: list[str] = []
    labels: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            hint = _hint(name, known)
            raise ValueError(f"{file}: unknown option {name!r}" + (f": {hint}" if hint else ""))
        if _is_label(known[name].type):
            labels[name] = _labels(known[name], value, file)
        else:
            _check_switch(known[name], value, file)
            words += _words(known[name], value)
    quiet = Parser(prog=parser.prog, add_help=False)
    for option in known.values():
        _add(quiet, option, by_name=True)
    quiet.error = _raise(file, [name for name, option in known.items() if option.declared.positional])  # type: ignore[method-assign, assignment]
    return vars(quiet.parse_args(words)) | labels


def _is_label(hint: Any) -> bool:
    """Whether an option takes labels, for which the integer 3 differs from the text "3"."""
    parts = get_args(hint)
    return {int, str} <= set(parts) or any(_is_label(part) for part in parts)


def _labels(option: Option, value: Any, file: str) -> Any:
    """Return labels of a TOML file unchanged. Raises ValueError for anything but integers and text."""
    items = value if isinstance(value, list) else [value]
    wrong = next((item for item in items if isinstance(item, bool) or not isinstance(item, int | str)), None)
    if wrong is not None:
        raise ValueError(f"{file}: {flag(option)} must be integers or text, got {config.toml_value(wrong)}")
    return tuple(items) if option.declared.repeat or isinstance(value, list) else value


def _check_switch(option: Option, value: Any, file: str) -> None:
    """Raise ValueError unless a switch is true or false, and any other option is neither."""
    is_switch = _without_none(option.type) is bool
    if is_switch != isinstance(value, bool):
        wanted = "true or false" if is_switch else "a value"
        raise ValueError(f"{file}: {flag(option)} must be {wanted}, got {config.toml_value(value)}")


def _raise(file: str, positional: Sequence[str]) -> Callable[[str], NoReturn]:
    def error(message: str) -> NoReturn:
        message = re.sub(r"^argument ", "", message)
        for name in positional:
            message = re.sub(rf"^--{name}(?=:)", name.upper(), message)
        raise ValueError(f"{file}: {message}")

    return error


def _words(option: Option, value: Any) -> list[str]:
    """Return a value of a TOML file as words of a command line."""
    items = value if isinstance(value, list) else [value]
    if option.declared.positional:
        return [f"--{option.name}={value}"]
    if isinstance(value, bool) and option.name.startswith("no_"):
        return [flag(option)] * value
    if isinstance(value, bool):
        return [flag(option) if value else f"--no-{flag(option)[2:]}"]
    if option.declared.repeat:
        return [f"{flag(option)}={item}" for item in items]
    return [f"{flag(option)}={','.join(map(str, items))}"]


def _add(parser: Any, option: Option, by_name: bool = False) -> None:
    """Add an option to a parser; by_name: a positional argument as an option, as a file names it."""
    arguments = _argument(option)
    if option.declared.positional and by_name:
        parser.add_argument(f"--{option.name}", dest=option.name, default=argparse.SUPPRESS, **arguments)
    elif option.declared.positional:
        arguments |= {"nargs": "?", "default": None, "metavar": option.declared.metavar or option.name.upper()}
        parser.add_argument(option.name, **arguments)
    else:
        arguments |= {"dest": option.name, "default": argparse.SUPPRESS}
        parser.add_argument(flag(option), **arguments)


def _argument(option: Option) -> dict[str, Any]:
    declared, hint = option.declared, _without_none(option.type)
    text = {"help": _help(option)}
    if hint is bool and option.name.startswith("no_"):
        return text | {"action": "store_true"}
    if hint is bool:
        return text | {"action": argparse.BooleanOptionalAction}
    choices = declared.choices or config.literals(hint)
    if _is_label(hint):
        action = {"action": Repeat} if declared.repeat else {}
        return text | action | {"type": not_empty(str), "metavar": declared.metavar or "LABEL"}
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        convert = one_of(config.literals(item)) if config.literals(item) else item
        if declared.repeat:
            convert = not_empty(item) if item in (str, Path) else convert
            return text | {"action": Repeat, "type": convert, "metavar": declared.metavar or _metavar(item)}
        return text | {"type": _list_of(convert), "metavar": declared.metavar or "A,B,..."}
    if choices:
        return text | {"type": one_of(choices), "metavar": declared.metavar or "{" + ",".join(map(str, choices)) + "}"}
    hint = str if str in get_args(hint) else hint  # a number or text: the configuration tells them apart
    kind = home_expanded if hint is Path else hint
    kind = not_empty(kind) if hint in (str, Path) and not declared.dashes else kind
    return text | {"type": kind, "metavar": declared.metavar or _metavar(hint)}


def home_expanded(text: str) -> Path:
    """Return a path, with ~ for the user's home folder. A shell does not expand it in --out=~/x, or in a TOML file."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


class Repeat(argparse.Action):
    """Collect the values of an option that is repeated in a tuple."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), values))


def one_of(choices: tuple[Any, ...]) -> Callable[[str], Any]:
    """Return a converter that accepts only the choices, and suggests one for a misspelt word."""
    by_text = {str(choice): choice for choice in choices}

    def convert(text: str) -> Any:
        if text not in by_text:
            hint = config.did_you_mean(text, by_text)
            raise argparse.ArgumentTypeError(
                f"{text!r} is not one of {', '.join(by_text)}" + (f": {hint}" if hint else "")
            )
        return by_text[text]

    return convert


def not_empty(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a converter that refuses an empty text, which as a path would mean the current folder."""

    def convert(text: str) -> Any:
        if not text.strip():
            raise argparse.ArgumentTypeError("must not be empty")
        return kind(text)

    return convert


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def convert(text: str) -> tuple[Any, ...]:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())

    convert.__name__ = f"list of {getattr(kind, '__name__', 'value')}s"  # argparse names it in its error message
    return convert


def _without_none(hint: Any) -> Any:
    """Return T for `T | None`."""
    parts = [part for part in get_args(hint) if part is not type(None)]
    return parts[0] if type(None) in get_args(hint) and len(parts) == 1 else hint


def _metavar(kind: Any) -> str:
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _help(option: Option) -> str:
    """Return the text of an option with its range and default. A text may end with its own `(default: ...)`."""
    text, _, own = (option.text or option.name.replace("_", " ")).partition(" (default: ")
    notes = [note for note in _notes(option) if not (own and note.startswith("default"))]
    notes += [f"default: {own.removesuffix(')')}"] if own else []
    return (f"{text} ({'; '.join(notes)})" if notes else text).replace("%", "%%")


def _notes(option: Option) -> Iterator[str]:
    declared, default = option.declared, option.default
    if declared.range is not None:
        yield str(declared.range)
    if declared.repeat:
        yield "may be repeated"
    if option.required:
        yield "required"
    elif declared.default_text:
        yield f"default: {declared.default_text}"
    elif default not in (None, "", ()):
        yield f"default: {format_default(default)}"


def format_default(value: Any) -> str:
    """Return a default as it would be typed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
