"""The layers of the package (ARCHITECTURE.md): imports run downwards, and only the command line prints and exits."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import admg
from admg.cli.main import COMMANDS

ROOT = Path(admg.__file__).parent
LAYERS = [  # from low to high: a part imports only itself and lower layers
    {"config", "files", "threads", "checksums", "offline", "warn"},
    {"disk"},
    {"data"},
    {"models", "diffusion"},
    {"engine"},
    {"userfile"},
    {"guidance"},
    {"samplers"},
    {"checkpoints"},
    {"generation"},
    {"evaluation"},
    {"training"},
    {"verification"},
    {"studio"},
    {"cli"},
    {"__main__"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
UTILITIES = {"config", "files", "checksums", "disk", "offline", "warn"}
ALLOWED = {"models": set(), "diffusion": UTILITIES, "data": UTILITIES}
"""Parts that import nothing else of the package, although it may be in a lower layer."""
FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}
BELOW_ROOT = [file for file in FILES if file != "__init__.py"]


def module_name(file: str) -> str:
    """Return the dotted name of a file's module."""
    return ".".join(["admg", *file.removesuffix(".py").split("/")]).removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES}


def part_of(module: str) -> str:
    """Return the package or module directly within admg that a module belongs to; "" for admg itself."""
    return module.split(".")[1] if "." in module else ""


def nodes(tree: ast.AST, at_import_time: bool) -> Iterator[ast.AST]:
    """Yield the nodes of a syntax tree.

    at_import_time: leave out the bodies of functions and of `if TYPE_CHECKING`, which do not run during the import
    """
    for node in ast.iter_child_nodes(tree):
        if at_import_time and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ):
            continue
        yield node
        yield from nodes(node, at_import_time)


def imports(file: str, tree: ast.AST, at_import_time: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the line and the module of each import from admg."""
    package = ["admg", *file.split("/")[:-1]]
    for node in nodes(tree, at_import_time):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = base + node.module.split(".") if node.module else base
            # `from . import a` may import a module, `from .a import b` a name of one
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            while name not in MODULES and "." in name:
                name = name.rpartition(".")[0]
            if name in MODULES:
                yield node.lineno, name


def parsed(file: str) -> ast.Module:
    return ast.parse(FILES[file].read_text(encoding="utf-8"))


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the strongly connected components with more than one node (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
            if other in stack:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("file", BELOW_ROOT)
def test_imports_run_downwards(file):
    part = part_of(module_name(file))
    assert part in RANK, f"{part} has no layer yet: add it to LAYERS in {Path(__file__).name}"
    for line, module in imports(file, parsed(file)):
        other = part_of(module)
        if other == part or (part in ("cli", "__main__") and other == ""):
            continue  # the command line may import admg itself, for its version
        lower = RANK.get(other, len(LAYERS)) < RANK[part] and other in ALLOWED.get(part, RANK)
        assert lower, f"{file}:{line} imports {module}, which {part} must not import"


def test_only_the_module_main_imports_the_command_line():
    users = {
        part_of(module_name(file)) for file in FILES for _, m in imports(file, parsed(file)) if part_of(m) == "cli"
    }
    assert users <= {"cli", "__main__"}


def test_no_command_imports_another():
    commands = {f"admg.cli.{name.replace('-', '_').replace(' ', '_')}" for name in COMMANDS}
    for module in commands:
        others = {other for _, other in imports(MODULES[module], parsed(MODULES[module]))} & (commands - {module})
        assert not others, f"{module} imports {', '.join(sorted(others))}"


def test_no_imports_in_a_circle():
    graph = {
        module: {other for _, other in imports(file, parsed(file), at_import_time=True)} - {module}
        for module, file in MODULES.items()
    }
    assert circles(graph) == []


def test_circles_are_found():
    assert circles({"a": "b", "b": "c", "c": "d", "d": "b", "e": "a"}) == [["b", "c", "d"]]
    assert circles({"a": "bc", "b": "c", "c": ""}) == []


@pytest.mark.parametrize("file", [file for file in BELOW_ROOT if file.split("/")[0] not in ("cli", "__main__.py")])
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


def test_every_form_of_import_is_found():
    source = """
import admg.data
from . import ddim
from ..guidance import Guide
from .. import models, __version__
import torch
def f():
    from admg import diffusion
if TYPE_CHECKING:
    from admg.samplers import heun
"""
    found = [module for _, module in sorted(imports("samplers/ddpm.py", ast.parse(source)))]
    below = ["admg.data", "admg.samplers.ddim", "admg.guidance", "admg", "admg.models"]
    assert found == [*below, "admg.diffusion", "admg.samplers.heun"]
    assert [m for _, m in sorted(imports("samplers/ddpm.py", ast.parse(source), at_import_time=True))] == below
    assert list(imports("files.py", ast.parse("from . import data\nfrom .data import Dataset"))) == [
        (1, "admg.data"),
        (2, "admg.data"),
    ]
