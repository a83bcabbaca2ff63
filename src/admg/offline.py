"""Whether downloads are allowed: ADMG_OFFLINE, and --offline, which sets it for one command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from threading import RLock
from typing import Any

VARIABLES = "ADMG_OFFLINE", "HF_HUB_OFFLINE"

_loading = RLock()


def offline() -> bool:
    """Return whether ADMG_OFFLINE forbids downloads."""
    return os.environ.get("ADMG_OFFLINE", "").lower() not in ("", "0", "no", "false")


@contextmanager
def downloads_forbidden(forbidden: bool) -> Iterator[None]:
    """Forbid downloads in this process and those that it starts, by environment variables; if False, change nothing."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    if forbidden:
        os.environ.update(dict.fromkeys(VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items() if forbidden else ():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def hub_as_allowed() -> Iterator[None]:
    """Keep huggingface_hub, through which other libraries load, from downloading if ADMG_OFFLINE forbids it.

    One thread at a time, since what is changed belongs to the process.
    """
    if not offline() or find_spec("huggingface_hub") is None:
        yield
        return
    constants: Any = import_module("huggingface_hub.constants")
    forget_sessions = getattr(import_module("huggingface_hub.utils"), "reset_sessions", lambda: None)
    with _loading:
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        forget_sessions()  # before version 1, each thread has a session, which is online or not
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before
            forget_sessions()
