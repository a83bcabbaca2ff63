"""Warnings that name the line of the user's program that led to them, not a line of this package."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import FrameType

PACKAGE = str(Path(__file__).parent)
BETWEEN = {"concurrent", "contextlib", "functools", "runpy", "threading", "torch"}
"""Packages whose frames lie between ours and the user's, such as the wrapper of torch.no_grad."""


def warn(message: str) -> None:
    """Warn at the innermost line outside of this package, or at the caller of this function if there is none."""
    caller = sys._getframe(1)
    frame: FrameType | None = caller
    while frame is not None and not _is_outside(frame):
        frame = frame.f_back
    frame = frame or caller
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    module = frame.f_globals.get("__name__") or "<unknown>"  # warnings without a module are dropped
    warnings.warn_explicit(message, UserWarning, frame.f_code.co_filename, frame.f_lineno, module, registry)


def _is_outside(frame: FrameType) -> bool:
    root = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return not frame.f_code.co_filename.startswith(PACKAGE) and root not in BETWEEN
