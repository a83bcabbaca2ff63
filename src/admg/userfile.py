"""Load objects from a user's Python file, given as path/to/file.py:name."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from admg.engine.memory import is_out_of_memory

TYPING = ("typing", "types", "collections.abc")
"""Modules of the types of aliases such as Callable[..., Tensor]."""


def load_object(spec: str) -> tuple[Any, str]:
    """Return the object and a checksum of its file.

    Raises ValueError with a one-line message if there is no such file or name, or if running the file fails.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not name.isidentifier():
        raise ValueError(f"{spec!r} is not of the form path/to/file.py:name")
    if not path.is_file():
        raise ValueError(f"{spec}: there is no file {path}")
    text = path.read_bytes()
    digest = hashlib.sha256(text).hexdigest()[:12]
    try:
        module = _executed(path, text, f"admg_user_{path.stem}_{digest}")
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be imported: {described(error, path)}") from error
    if not hasattr(module, name):
        there = [key for key, value in vars(module).items() if _is_own(key, value, module)]
        raise ValueError(f"{path} has no {name!r}" + (f": it has {', '.join(there)}" if there else ""))
    return getattr(module, name), digest


def _is_own(name: str, value: Any, module: ModuleType) -> bool:
    """Whether a name of a module is probably one that the file offers: defined in it, or an object made there."""
    if getattr(value, "__module__", None) == module.__name__:
        return True
    imported = isinstance(value, type | FunctionType | BuiltinFunctionType) or type(value).__module__ in TYPING
    return not name.startswith("_") and callable(value) and not imported


@contextmanager
def errors_of(spec: str) -> Iterator[None]:
    """Raise any error of the code of `path/to/file.py:name` as one ValueError that names the file and the line.

    Running out of memory passes as it is, since the caller may try again with a smaller batch. An empty `spec` changes
    nothing: objects that are passed in Python raise their own errors.
    """
    try:
        yield
    except Exception as error:  # the user's code may raise any exception
        if not spec or is_out_of_memory(error):
            raise
        raise ValueError(f"{spec}: {described(error, Path(spec.rpartition(':')[0]).expanduser())}") from error


def described(error: BaseException, path: Path) -> str:
    """Return the error in one line, with the last line of this file in its traceback: `NameError: ... (line 3)`."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path.resolve()]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return type(error).__name__ + (f": {text}" if text else "") + (f" (line {line})" if line else "")


def _executed(path: Path, text: bytes, name: str) -> ModuleType:
    """Run the text of a file as a module, which may import modules from the same folder.

    The standard loader is not used: its bytecode cache misses changes within one second that keep the file's length.
    """
    found = importlib.util.spec_from_file_location(name, path.resolve())
    assert found is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look up their module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        exec(compile(text, str(path.resolve()), "exec", dont_inherit=True), vars(module))
    finally:
        sys.path.pop(0)
    return module
