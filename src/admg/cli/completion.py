"""`admg completion`: completion of commands and options in a shell."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

from admg.config import check, setting

from .options import Parser, add_options

EXAMPLES = """\
  admg completion bash > ~/.local/share/bash-completion/completions/admg
  admg completion zsh > ~/.zfunc/_admg"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Print a script that completes the commands and options of `admg` in a shell.

    shell: bash, zsh or tcsh
    """

    shell: Literal["bash", "zsh", "tcsh"] = setting("bash", positional=True)

    def __post_init__(self) -> None:
        check(self)


def run(options: Options) -> None:
    print(script(options.shell))


def script(shell: str) -> str:
    """Return the completion script for a shell."""
    import shtab

    from .main import COMMANDS, TOGETHER

    parser = Parser(prog="admg")
    commands = parser.add_subparsers()
    for name, text in COMMANDS.items():
        if " " in name:  # a shell completes the second word as an argument
            continue
        module = importlib.import_module(f"admg.cli.{name.replace('-', '_')}")
        command = commands.add_parser(name, help=text)
        add_options(command, module, together=name in TOGETHER)
    return str(shtab.complete(parser, shell))
