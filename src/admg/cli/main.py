"""`admg`: the command. Bad input gives one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from typing import NoReturn

from .options import config_arguments

COMMANDS = {
    "sample": "make images of the labels that you ask for, steered by a classifier",
    "edit": "change images towards labels, from a noised or an encoded copy",
    "interpolate": "make the images on the way between two images, or two seeds",
    "upsample": "make small images large, with a super-resolution model",
    "train": "train a diffusion model on a folder of images",
    "train-classifier": "train a noisy classifier, for guidance",
    "info": "what a model is: architecture, parameters, labels, provenance",
    "models": "list the models that come with the package, and the published ones",
    "import-openai": "turn a checkpoint of OpenAI's code into a native one, with or without its flags",
    "diagnose": "find out, on real images, how a checkpoint wants to be used",
    "evaluate": "judge samples against a reference: FID, sFID, IS, KID, precision, recall and more",
    "evaluate nll": "measure a model: its log-likelihood of real images, in bits per dimension",
    "sweep": "samples, figures and curves over guidance scales, samplers and steps",
    "neighbours": "the nearest training images of samples: whether a model has memorised",
    "export": "write a model for diffusers or for OpenAI's code",
    "demo": "every label with guidance, and a sheet of guidance scales",
}


class Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs):
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for bad input, 130 when interrupted."""
    argv = joined(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="admg", description="Guided diffusion for pixel images.")
    parser.add_argument("--version", action="store_true", help="print the version")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    chosen = next((arg for arg in argv if not arg.startswith("-")), None)
    for name, text in COMMANDS.items():
        command = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == chosen:  # the others' modules need not be imported
            module = importlib.import_module(f"admg.cli.{name.replace('-', '_').replace(' ', '_')}")
            module.add_arguments(command)
            add_offline(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    if args.version:
        from admg import __version__

        print(f"admg {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    try:
        if getattr(args, "config", None):  # the file's options first, so that the command line wins over them
            at = argv.index(args.command) + 1
            args = parser.parse_args([*argv[:at], *config_arguments(args.config), *argv[at:]])
        if getattr(args, "offline", False):
            os.environ["ADMG_OFFLINE"] = "1"
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            args.run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("ADMG_TRACEBACK"):
            raise
        print(f"admg {args.command}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "out of memory" not in str(error) or os.environ.get("ADMG_TRACEBACK"):
            raise
        print(f"admg {args.command}: error: out of memory; a smaller --batch-size needs less", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"admg {args.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def joined(argv: list[str]) -> list[str]:
    """`--flags TEXT` as one word, since the text begins with -- itself, which argparse takes for an option; and the
    two words of a command such as `evaluate nll`, if they are the first."""
    if " ".join(argv[:2]) in COMMANDS:
        argv = [" ".join(argv[:2]), *argv[2:]]
    at = argv.index("--flags") if "--flags" in argv[:-1] else None
    return argv if at is None else [*argv[:at], f"--flags={argv[at + 1]}", *argv[at + 2 :]]


def show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning of ours as a line for people; of others as Python shows it."""
    if category is UserWarning and "admg" in filename:
        print(f"note: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)


def add_offline(parser: argparse.ArgumentParser) -> None:
    """--offline, for a command and its sub-commands."""
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for sub in {id(p): p for action in subparsers for p in action.choices.values()}.values():
        add_offline(sub)
    if not subparsers:
        parser.add_argument("--offline", action="store_true", help="never download a model; use only what is on disk")


def one_line(error: Exception) -> str:
    """The message on one line; an OSError without one of ours says what failed and where."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
