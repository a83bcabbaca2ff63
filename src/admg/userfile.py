"""Load objects from a user's Python file, given as path/to/file.py:name."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from admg.engine.memory import is_out_of_memory

TYPING = ("typing", "types", "collections.abc")
"""Modules of the types of aliases such as Callable[..., Tensor]."""
IMPORTED: dict[Path, bytes] = {}
"""Files that users' files import from their folder, in the state in which `load_object` first imported them."""


def load_object(spec: str) -> tuple[Any, str]:
    """Return the object and a checksum of its file and of the files of the same folder that it imports.

    Raises ValueError with a one-line message if there is no such file or name, or if running the file fails.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not name.isidentifier():
        raise ValueError(f"expected path/to/file.py:name, got {spec!r}")
    if not path.is_file():
        raise ValueError(f"{spec}: there is no file {path}")
    text = path.read_bytes()
    imported = imports_of(path.resolve(), text)
    digest = hashlib.sha256(b"".join([text, *imported.values()])).hexdigest()[:12]
    forget_changed(imported)
    known = {file_of(other) for other in list(sys.modules.values())}
    IMPORTED.update({file: content for file, content in imported.items() if file not in known})
    try:
        module = _executed(path, text, f"admg_user_{path.stem}_{digest}")
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be imported: {error_text(error, path)}") from error
    if not hasattr(module, name):
        there = [key for key, value in vars(module).items() if _is_own(key, value, module)]
        raise ValueError(f"{path} has no {name!r}" + (f": it has {', '.join(there)}" if there else ""))
    return getattr(module, name), digest


def imports_of(path: Path, text: bytes) -> dict[Path, bytes]:
    """Return the files of the same folder that a file imports, directly or through others, and what they hold."""
    sources: dict[Path, bytes] = {}
    waiting = [(path, text)]
    while waiting:
        file, source = waiting.pop()
        for candidate in _imported(file, source, path.parent):
            if candidate != path and candidate not in sources and candidate.is_file():
                sources[candidate] = candidate.read_bytes()
                waiting.append((candidate, sources[candidate]))
    return dict(sorted(sources.items()))


def _imported(file: Path, source: bytes, folder: Path) -> Iterator[Path]:
    """Yield the paths that the modules imported in a file would have if they were in this folder."""
    try:
        nodes = [*ast.walk(ast.parse(source))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # running the file raises an error for it
        return
    for node in nodes:
        names, start = [], folder
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = [node.module] if node.module else []
            names = [".".join(module), *(".".join([*module, alias.name]) for alias in node.names)]
            start = folder if node.level == 0 else [file, *file.parents][min(node.level, len(file.parents))]
        for parts in (name.split(".") for name in names if name):
            for depth in range(1, len(parts) + 1):
                at = start.joinpath(*parts[:depth])
                yield from (at.with_suffix(".py"), at / "__init__.py")


def forget_changed(files: Mapping[Path, bytes]) -> None:
    """Let Python import these files again if one of them has changed since `load_object` imported it."""
    if all(IMPORTED.get(path, content) == content for path, content in files.items()):
        return
    stale = {path for path in files if IMPORTED.pop(path, None) is not None}
    for name, module in list(sys.modules.items()):
        if name != "__main__" and file_of(module) in stale:
            del sys.modules[name]


def file_of(module: Any) -> Path | None:
    """Return the file of a module, or None if it has none."""
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) else None


def _is_own(name: str, value: Any, module: ModuleType) -> bool:
    """Whether a name of a module was probably defined in the file."""
    if getattr(value, "__module__", None) == module.__name__:
        return True
    imported = isinstance(value, type | FunctionType | BuiltinFunctionType) or type(value).__module__ in TYPING
    return not name.startswith("_") and callable(value) and not imported


@contextmanager
def errors_of(spec: str) -> Iterator[None]:
    """Raise any error of the code of `path/to/file.py:name` as one ValueError that names the file and the line.

    Out-of-memory errors are passed on unchanged, since the caller may retry with smaller batches. An empty `spec`
    changes nothing: objects that are passed in Python raise their own errors.
    """
    try:
        yield
    except Exception as error:  # the user's code may raise any exception
        if not spec or is_out_of_memory(error):
            raise
        raise ValueError(f"{spec}: {error_text(error, Path(spec.rpartition(':')[0]).expanduser())}") from error


def error_text(error: BaseException, path: Path) -> str:
    """Return the error in one line, with the last line of this file in its traceback: `NameError: ... (line 3)`."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path.resolve()]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return type(error).__name__ + (f": {text}" if text else "") + (f" (line {line})" if line else "")


def _executed(path: Path, text: bytes, name: str) -> ModuleType:
    """Run the text of a file as a module, which may import modules from the same folder.

    The standard loader is not used: its bytecode cache misses changes within one second that keep the file's length.
    """
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        exec(compile(text, str(path.resolve()), "exec", dont_inherit=True), vars(module))
    finally:
        sys.path.pop(0)
    return module
