"""Batched network calls of several threads, which run one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class Call:
    """A network call of one request.

    key: calls with the same key can be made as one
    x, t, y: images (n, C, H, W), their timesteps (n,), and their labels (n,), -1 for none, or None
    given: further tensors of n images
    compute: function (x, t, y, given) -> tensor of as many images
    """

    key: tuple[Any, ...]
    x: Tensor
    t: Tensor
    y: Tensor | None
    given: dict[str, Tensor]
    compute: Callable[..., Tensor]
    result: Tensor | None = None
    error: Exception | None = None
    skipped: bool = False

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None


@dataclass(eq=False)
class CallBatcher:
    """Run threads one at a time, and compute their network calls in batches once all threads are waiting.

    A separate thread computes the batches. It chooses the key with the most waiting images, or a key that was skipped
    before.

    max_images: largest number of images in one call
    """

    max_images: int
    workers: int = 0
    busy: bool = False
    closed: bool = False
    calls: list[Call] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._serve, name="batcher", daemon=True)
        self.thread.start()

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Context manager that makes the thread a worker, which runs while no other worker does."""
        with self.changed:
            self.workers += 1
            self.changed.wait_for(lambda: not self.busy)
            self.busy = True
        try:
            yield
        finally:
            with self.changed:
                self.workers -= 1
                self._release()

    def submit(self, call: Call) -> Tensor:
        """Return the result of a call, from a worker thread.

        Raises what the call raises, and CancelledError if the batcher is closed in the meantime.
        """
        with self.changed:
            self.calls.append(call)
            self._release()
            self.changed.wait_for(lambda: (call.done or self.closed) and not self.busy)
            self.busy = True
            if not call.done:
                raise CancelledError("the request was cancelled")
        if call.error is not None:
            raise call.error
        assert call.result is not None
        return call.result

    def close(self) -> None:
        """End the batching: threads that wait for a call get no result."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join()

    def _release(self) -> None:
        self.busy = False
        self.changed.notify_all()

    def _serve(self) -> None:
        def ready() -> bool:
            return self.closed or bool(not self.busy and self.calls and len(self.calls) == self.workers)

        while True:
            with self.changed:
                self.changed.wait_for(ready)
                if self.closed:
                    return
                chosen = self._select_batch()
                self.busy = True
            run_batched(chosen)
            with self.changed:
                self.calls = [call for call in self.calls if not call.done]
                self._release()

    def _select_batch(self) -> list[Call]:
        """Return the calls to make now, as many as fit into one call: at least one."""
        groups: dict[tuple[Any, ...], list[Call]] = {}
        for call in self.calls:
            groups.setdefault(call.key, []).append(call)

        def urgency(group: list[Call]) -> tuple[bool, int]:
            return any(call.skipped for call in group), sum(len(call.x) for call in group)

        group = max(groups.values(), key=urgency)
        chosen, images = [group[0]], len(group[0].x)
        for call in group[1:]:
            if images + len(call.x) <= self.max_images:
                chosen.append(call)
                images += len(call.x)
        for call in self.calls:
            call.skipped = call not in chosen
        return chosen


def run_batched(calls: list[Call]) -> None:
    """Make calls with the same key as one, and set the result of each. If that fails, make each call separately."""
    try:
        first, sizes = calls[0], [len(call.x) for call in calls]
        y = None if first.y is None else torch.cat([call.y for call in calls if call.y is not None])
        given = {name: torch.cat([call.given[name] for call in calls]) for name in first.given}
        x, t = torch.cat([call.x for call in calls]), torch.cat([call.t for call in calls])
        for call, result in zip(calls, torch.split(first.compute(x, t, y, given), sizes)):
            call.result = result
    except Exception as error:
        if len(calls) == 1:
            calls[0].error = error
            return
        for call in calls:
            run_batched([call])
