"""Processes that take turns: each side has one of its own, so that no side's settings or memory become another's."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import ours
import rivals
import torch
from cases import Part, Setting, Unable, Work

SIDES: dict[str, dict[str, Part]] = {"admg": ours.PARTS, "diffusers": rivals.DIFFUSERS, "reference": rivals.REFERENCE}


class Worker:
    """The process of a side. Call prepare(), then seconds() any number of times, peak() and finish(), for each part."""

    def __init__(self, side: str, setting: Setting):
        context = multiprocessing.get_context("spawn")
        self.side = side
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(side, setting, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, *message: Any) -> Any:
        """The answer to a message. ValueError: what went wrong there, or Unable."""
        try:
            self.pipe.send(message)
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise ValueError(f"the process of {self.side} ended: was there too little memory?") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def prepare(self, part: str) -> np.ndarray | None:
        """Set up the part; the result that the sides must agree on. Unable: the side does not have it."""
        return self.ask("part", part)

    def seconds(self, at_least: float) -> float:
        """Of one call, over as many as take this long by the last measurement."""
        return self.ask("seconds", at_least)

    def matmul(self, dtype: str) -> float:
        """FLOP/s of square matrix products in this dtype, of that of several sizes which is fastest at first."""
        return self.ask("matmul", dtype)

    def peak(self) -> int | None:
        """Most bytes of memory that the part took beyond the libraries; None: the system does not tell."""
        return self.ask("peak")

    def finish(self) -> None:
        self.ask("finish")

    def close(self) -> None:
        self.pipe.close()
        self.process.join(10)
        self.process.terminate()


def _serve(side: str, setting: Setting, pipe: Connection) -> None:
    torch.set_num_threads(setting.threads)
    if side == "diffusers":
        rivals.import_diffusers()
    elif side == "reference":
        rivals.import_reference(setting.reference)
    warm_up(setting.device)
    memory = Memory(setting.device)
    while True:
        try:
            _, part = pipe.recv()
        except (EOFError, OSError):
            return
        memory.begin()
        try:
            if part not in SIDES[side]:
                raise Unable("has no noisy classifier and no guidance")
            SIDES[side][part](setting, lambda work: _answer(work, setting.device, memory, pipe))
            pipe.send(None)  # to "finish"
        except (EOFError, OSError):
            return
        except Exception as error:
            known = isinstance(error, ValueError)
            text = str(error) if known else "".join(traceback.format_exception_only(error))
            pipe.send(error if isinstance(error, Unable) else ValueError(f"{side}, {part}: {text}"))


def _answer(work: Work, device: str, memory: Memory, pipe: Connection) -> None:
    """Answer what the other process asks about this work, until it says "finish"."""
    pipe.send(None if work.check is None else work.check().detach().float().cpu().numpy())
    last = 0.0
    sizes: tuple[int, ...] = ()
    while (message := pipe.recv())[0] != "finish":
        match message:
            case ("seconds", at_least):
                calls = max(1, round(at_least / last)) if last else 1
                last = timed(work.run, calls, device)
                pipe.send(last)
            case ("matmul", dtype):
                fastest, n = matmul_flops(getattr(torch, dtype), device, sizes)
                sizes = (n,)
                pipe.send(fastest)
            case ("peak",):
                pipe.send(memory.peak())


def timed(run: Callable[[], Any], calls: int, device: str) -> float:
    """Seconds of each of several calls in a row."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _wait(device)
    return (time.perf_counter() - start) / calls


def matmul_flops(dtype: torch.dtype, device: str, sizes: Sequence[int] = ()) -> tuple[float, int]:
    """FLOP/s of square matrix products, and the size that reached most."""
    found = []
    for n in sizes or ((512, 1024, 2048) if device == "cpu" else (2048, 4096, 8192)):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        run = partial(torch.mm, a, b, out=torch.mm(a, b))
        found.append((2 * n**3 / timed(run, 2 if device == "cpu" else 20, device), n))
    return max(found)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def warm_up(device: str) -> None:
    """Load the libraries' own code and buffers, which are no part's."""
    network = torch.nn.Conv2d(32, 32, 3, padding=1).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.randn(2, 32, 16, 16, device=device)).flatten(1).square().mean().backward()
    optimizer.step()
    torch.mm(*torch.randn(2, 256, 256, device=device))


class Memory:
    """The most memory that this process takes between begin() and peak(), beyond what it takes now, on its device.

    On a CPU as Linux counts resident pages. Not ru_maxrss, which begins with that of the process that started this one.
    """

    def __init__(self, device: str):
        self.device = device
        self.before: int | None = 0
        self.begin()
        if device == "cpu":
            self.before = _status("VmRSS")

    def begin(self) -> None:
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.before is not None and sys.platform == "linux":
            with suppress(OSError, AttributeError):  # not allowed here, or another C library
                ctypes.CDLL(None).malloc_trim(0)  # what is free already is no part's
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int | None:
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated(self.device)
        most = _status("VmHWM")
        return None if most is None or self.before is None else most - self.before


def _status(name: str) -> int | None:
    """Bytes of an entry of /proc/self/status; None on another system than Linux."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
