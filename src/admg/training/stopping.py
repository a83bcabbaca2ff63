"""Signals that ask a training run to stop: it finishes the step, saves, and ends, so that nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C; what `kill`, batch systems and containers send; what SLURM sends with --signal=USR1@120."""


class StopSignals:
    """A context in which these signals call a function instead of ending the process. A second Ctrl-C ends it at once.

    call: the function
    received: the first signal, or None

    Signals reach the main thread alone: in any other thread the context changes nothing.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
        self.call()
