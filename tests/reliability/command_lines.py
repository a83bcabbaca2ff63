"""Bad command lines, generated from what the options of all commands declare."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args, get_origin

from admg import config
from admg.cli.main import COMMANDS
from admg.cli.options import flag
from admg.config import Option, Range

MODULES = {name: importlib.import_module(f"admg.cli.{name.replace('-', '_').replace(' ', '_')}") for name in COMMANDS}
CONFLICTS = [
    "sample --label 1 --labels balanced",
    "sample --sheet scale=1,2 --upsampler nowhere",
    "sample --sheet scale=1,2 --rank 0 --world-size 2",
    "sample --rank 2 --world-size 2",
    "sample --strength 0.5",
    "sample --label 1 --label nothing-of-this-name",
    "sample --steps 25 --sampler ddim:10",
    "edit --image a.png --from-label 1",
    "interpolate --seeds 0,1 --image a.png",
    "interpolate --seeds 0",
    "interpolate --image a.png",
    "train --data nowhere --out o --shard --compile on",
    "train --data nowhere --out o --accumulate 9 --batch-size 4",
    "train --data nowhere --out o --class-power 1",
    "train --data nowhere --out o --sampling weighted",
    "train --data nowhere --out o --sampling weighted --class-power 1 --class-weight a=2",
    "train --data nowhere --out o --weighting p2 --objective vlb",
    "train --data nowhere --out o --objective simple --vlb-weight 1",
    "train --data nowhere --out o --weighting-k 2",
    "train --data nowhere --out o --timesteps-std 2",
    "train --data nowhere --out o --lr-anneal-steps 5",
    "train --data nowhere --out o --log none,tensorboard",
    "train --data nowhere --out o --init-flags=--image_size_64",
    "train --data nowhere --out o --recipe cifar-11",
    "train --data nowhere --out o --ema 0.9,0.9",
    "train --data nowhere --out o --freeze nothing.of.this.name",
    "sweep --reference nowhere --sampler ddim:25 --steps 10",
    "sweep --reference nowhere --scale=",
    "sweep --reference nowhere --label 1 --labels random",
    "neighbours data.npz data.npz --out o.txt",
    "data pack nowhere --image-size 8 --out o.tar",
    "data pack nowhere --image-size 8 --out o.zip --value-range 1,0",
    "evaluate nowhere nowhere --metrics nothing",
    "evaluate nowhere nowhere --network nothing",
    "recipes nothing",
    "info nowhere extra",
    "completion fish",
    "nothing",
    "--verison",
]
"""Options that do not fit together, or name what does not exist."""


@dataclass(frozen=True)
class BadLine:
    """A bad command line.

    words: its arguments
    named: a text of which the message must have at least one
    """

    words: tuple[str, ...]
    named: tuple[str, ...] = ()


def numeric(option: Option) -> type[int] | type[float] | None:
    """Return the kind of number that an option takes, None for text."""
    parts = {option.type, *get_args(option.type)}
    if str in parts or any(str in get_args(part) for part in parts):
        return None
    return float if float in parts else int if int in parts else None


def is_flag(option: Option) -> bool:
    return bool in {option.type, *get_args(option.type)}


def outside(option: Option) -> Iterator[str]:
    """Yield texts that are no number, or out of the range of an option."""
    kind, range = numeric(option), option.declared.range or Range()
    yield from ("x", "1e", "0x10", "1 2", "--")
    if kind is float:
        yield from ("nan", "-nan")
        yield from () if range.infinite else ("inf", "-inf", "1e999")
    else:
        yield from ("0.5", "1e3", "inf")
    step = 1 if kind is int else 1e-3
    for bound, beyond in ((range.min, -step), (range.max, step), (range.above, 0), (range.below, 0)):
        if bound is not None:
            yield repr(kind(bound + beyond) if kind else bound)
            yield repr(kind(bound + beyond * 1000) if kind else bound)
    if range.min is not None or range.above is not None:
        yield from ("-1000000", "-0.5", str(-(10**30)))
    if range.max is not None:
        yield str(10**30)


def is_list(option: Option) -> bool:
    return any(get_origin(part) is tuple for part in (option.type, *get_args(option.type)))


def bad_values(option: Option) -> Iterator[str]:
    """Yield texts that an option refuses, by its type."""
    choices = option.declared.choices or config.literals(option.type)
    if is_flag(option):
        yield from ("1", "yes", "x", "")
    elif numeric(option) is not None:
        yield from outside(option)
        yield from () if is_list(option) else ("",)
    elif is_list(option):
        yield from ("x", f"{choices[0]},x") if choices else ()
    elif choices:
        yield from (
            "",
            "x",
            f"{choices[0]}x",
            f" {choices[0]}",
            str(choices[0]).upper() + "?",
            ",".join(map(str, choices)),
        )
    elif not option.declared.dashes:
        yield from ("", " ")


def needed(name: str, without: str = "") -> list[str]:
    """Return the required options of a command, with values that would be refused later."""
    words = []
    for option in config.options(MODULES[name].Options):
        if option.required and option.name != without:
            choices = option.declared.choices or config.literals(option.type)
            value = "8" if numeric(option) else str(choices[0]) if choices else "nowhere.zip"
            words += [value] if option.declared.positional else [flag(option), value]
    return words


def of_option(name: str, option: Option) -> Iterator[BadLine]:
    """Yield bad uses of an option of a command."""
    start = (*name.split(), *needed(name, option.name))
    shown = flag(option)
    if option.declared.positional:
        if option.required:
            yield BadLine(start, (" is required",))
        return
    for text in bad_values(option):
        yield BadLine((*start, f"{shown}={text}"), (shown,))
    if not is_flag(option) and not option.declared.dashes:
        yield BadLine((*start, shown), (shown,))
        yield BadLine((*start, shown, "--offline"), (shown,))
    yield BadLine((*start, f"{shown}x"), (f"{shown}x",))
    if len(shown) > 6:
        yield BadLine((*start, shown[:-1]), (shown[:-1],))
        yield BadLine((*start, shown.replace("--", "-", 1)), (shown[1:],))
    if option.required:
        yield BadLine(start, (shown, option.name))


def of_command(name: str) -> Iterator[BadLine]:
    """Yield bad uses of a command as a whole."""
    start = (*name.split(), *needed(name))
    for word in ("--nothing", "-z", "--", "---"):
        if word != "--":
            yield BadLine((*start, word), (word,))
    yield BadLine((*start, "one", "two", "three", "four"), ("one", "two", "three", "four"))
    yield BadLine((*start, "--config", "nowhere.toml"), ("nowhere.toml",))
    yield BadLine((*start, "--config"), ("--config",))
    yield BadLine((*start, "--config", "."), (".",))
    yield BadLine((*start, "--config="), ())


def every() -> list[BadLine]:
    """Return all bad command lines."""
    found = [BadLine(tuple(text.split())) for text in CONFLICTS]
    for name, module in MODULES.items():
        found += of_command(name)
        for option in config.options(module.Options):
            found += of_option(name, option)
    return list(dict.fromkeys(found))


def some(num: int, seed: int) -> list[BadLine]:
    """Return bad command lines, from every command if there are enough."""
    lines = every()
    rng = random.Random(seed)
    rng.shuffle(lines)
    conflicts = [line for line in lines if " ".join(line.words) in CONFLICTS]
    rest = [line for line in lines if " ".join(line.words) not in CONFLICTS]
    return (conflicts[: num // 10] + rest)[:num] if num < len(lines) else lines
