"""Signals that request a training run to stop: it finishes the step, saves a checkpoint and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Sent by Ctrl-C; by `kill`, batch systems and containers; by SLURM with --signal=USR1@120."""


class StopSignals:
    """Context manager in which these signals call a function instead of ending the process; a second Ctrl-C ends it.

    call: the function
    signals: the signals
    received: the first of them that came, or None

    Signals reach only the main thread: in any other thread the context has no effect.
    """

    def __init__(self, call: Callable[[], object], signals: Sequence[signal.Signals] = SIGNALS) -> None:
        self.call, self.signals = call, signals
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.signals}
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


def deferred_interrupt(stop: Callable[[], object]) -> StopSignals:
    """Return a context manager in which Ctrl-C calls `stop`, where it would have raised KeyboardInterrupt.

    A handler of one's own is kept. A second Ctrl-C raises KeyboardInterrupt.
    """
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return StopSignals(stop, [signal.SIGINT] if raises else [])
