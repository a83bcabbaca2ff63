"""`admg evaluate`: how good a model or its samples are. Each measure is a sub-command with a file of its own."""

from __future__ import annotations

import argparse
import importlib

MEASURES = {"nll": "log-likelihood of real images, in bits per dimension"}
"""Sub-command -> what it measures; `nll` is in evaluate_nll.py, with add_arguments(parser) and run(args)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    measures = parser.add_subparsers(dest="measure", metavar="MEASURE", required=True, parser_class=type(parser))
    for name, text in MEASURES.items():
        measure = measures.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        importlib.import_module(f"admg.cli.evaluate_{name}").add_arguments(measure)


def run(args: argparse.Namespace) -> None:
    importlib.import_module(f"admg.cli.evaluate_{args.measure}").run(args)
