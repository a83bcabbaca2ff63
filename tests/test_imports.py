"""The direction of imports within the package (ARCHITECTURE.md), and that only the command line talks and exits."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import admg

ROOT = Path(admg.__file__).parent
LAYERS = [  # from low to high; a part imports only of itself and of lower layers
    {"config", "files", "userfile"},
    {"data"},
    {"models", "engine", "diffusion"},
    {"guidance"},
    {"samplers"},
    {"checkpoints"},
    {"generation"},
    {"evaluation"},
    {"training"},
    {"cli"},
    {"__main__"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
FILES = {
    str(path.relative_to(ROOT)): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.parent != ROOT or path.stem != "__init__"
}


def part_of(file: str) -> str:
    """The package or module directly within admg that a file belongs to."""
    return file.split("/")[0].removesuffix(".py")


def imported(file: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and part of each import of admg's own, wherever in the file it stands; the part is "" for admg itself."""
    package = ["admg", *file.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = base + node.module.split(".") if node.module else base
            # `from . import a, b` may import modules, `from .a import b` something of a
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            top, *rest = name.split(".")
            if top == "admg":
                yield node.lineno, rest[0] if rest and is_part(rest[0]) else ""


def is_part(name: str) -> bool:
    return (ROOT / f"{name}.py").is_file() or (ROOT / name / "__init__.py").is_file()


@pytest.mark.parametrize("file", FILES)
def test_imports_run_downwards(file):
    part = part_of(file)
    assert part in RANK, f"{part} has no layer yet: add it to LAYERS in {Path(__file__).name}"
    for line, other in imported(file, ast.parse(FILES[file].read_text(encoding="utf-8"))):
        if part == "cli" and other == "":  # admg's own names, such as the version
            continue
        allowed = other == part or {part, other} == {"models", "engine"} or RANK.get(other, len(LAYERS)) < RANK[part]
        assert allowed, f"{file}:{line} imports {other or 'admg'}, which is not below {part}"


@pytest.mark.parametrize("file", [file for file in FILES if part_of(file) not in ("cli", "__main__")])
def test_only_the_command_line_prints_parses_and_exits(file):
    for node in ast.walk(ast.parse(FILES[file].read_text(encoding="utf-8"))):
        what = ""
        if isinstance(node, ast.Call):
            what = ast.unparse(node.func)
        elif isinstance(node, ast.Import):
            what = next((alias.name for alias in node.names if alias.name == "argparse"), "")
        elif isinstance(node, ast.ImportFrom):
            what = next((a.name for a in node.names if (node.module, a.name) == ("sys", "exit")), node.module or "")
        elif isinstance(node, ast.Raise) and node.exc is not None:
            what = ast.unparse(node.exc).split("(")[0]
        banned = {"print", "exit", "quit", "sys.exit", "os._exit", "SystemExit", "argparse", "sys.stdout.write"}
        assert what not in banned, f"{file}:{node.lineno}: {what}"


def test_the_check_sees_every_form_of_import():
    source = """
import admg.data
from . import ddim
from ..guidance import Guide
from .. import models, __version__
import torch
def f():
    from admg import diffusion
"""
    seen = [part for _, part in sorted(imported("samplers/ddpm.py", ast.parse(source)))]
    assert seen == ["data", "samplers", "guidance", "", "models", "diffusion"]
    assert list(imported("files.py", ast.parse("from . import data\nfrom .data import Dataset"))) == [
        (1, "data"),
        (2, "data"),
    ]
