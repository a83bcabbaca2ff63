"""Every number of every option is checked before a command does anything: one line, exit code 2, nothing written."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from helpers import run

from admg import config
from admg.cli.main import COMMANDS
from admg.cli.options import flag
from admg.config import Option, Range

MODULES = {
    name: importlib.import_module(f"admg.cli.{name.replace('-', '_').replace(' ', '_')}")
    for name in COMMANDS
    if name != "completion"
}


def numeric(option: Option) -> type[int] | type[float] | None:
    """Return the kind of number that an option takes, None for text."""
    parts = {option.type, *get_args(option.type)}
    if str in parts or any(str in get_args(part) for part in parts):
        return None
    return float if float in parts else int if int in parts else None


def outside(option: Option) -> Iterator[str]:
    """Yield texts that are out of the range of an option."""
    kind, range = numeric(option), option.declared.range or Range()
    yield "x"
    if kind is float:
        yield "nan"
        yield from () if range.infinite else ("inf",)
    else:
        yield "0.5"
    step = 1 if kind is int else 1e-3
    candidates = [(range.min, -step), (range.max, step), (range.above, 0), (range.below, 0)]
    for bound, beyond in candidates:
        if bound is not None:
            yield repr(kind(bound + beyond) if kind else bound)
    if range.min is not None or range.above is not None:
        yield "-1000000"


def cases() -> list[Any]:
    found = []
    for name, module in MODULES.items():
        for option in config.options(module.Options):
            if numeric(option) is not None and not option.declared.positional:
                found += [pytest.param(name, option.name, text, id=f"{name}-{option.name}={text}")
                          for text in dict.fromkeys(outside(option))]  # fmt: skip
    return found


CASES = cases()


def needed(name: str, without: str) -> list[str]:
    """Return the required options of a command, with values that would be refused later."""
    words = []
    for option in config.options(MODULES[name].Options):
        if option.required and option.name != without:
            value = "8" if numeric(option) else "nowhere"
            words += [value] if option.declared.positional else [flag(option), value]
    return words


def test_there_are_many_cases():
    assert len(CASES) > 300 and len({case.values[0] for case in CASES}) > 10


@pytest.mark.thorough
@pytest.mark.parametrize("command, name, text", CASES)
def test_a_value_out_of_range_is_refused_first(capsys, tmp_path, monkeypatch, command, name, text):
    monkeypatch.chdir(tmp_path)
    option = next(option for option in config.options(MODULES[command].Options) if option.name == name)
    code, out, err = run(capsys, *command.split(), *needed(command, name), f"{flag(option)}={text}")
    assert code == 2 and not out and err.count("\n") == 1, err
    assert flag(option) in err, err
    number = math.nan if text == "x" else float(text)
    if option.declared.range is not None and math.isfinite(number) and text != "0.5":
        assert str(option.declared.range) in err  # what is allowed
    assert not list(tmp_path.iterdir())
