"""Worker processes of speed.py. Each side has its own, so that the sides share neither settings nor memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
import sys
import time
import traceback
import warnings
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

from admg.engine import adapt_threads, follow_load
from admg.engine.process import FIRST
from admg.threads import Reading

SIDES: dict[str, dict[str, Part]] = {"admg": ours.PARTS, "diffusers": rivals.DIFFUSERS, "reference": rivals.REFERENCE}


class Worker:
    """The process of a side. For each part call prepare(), seconds() any number of times, peak() and finish()."""

    def __init__(self, side: str, setting: Setting):
        context = multiprocessing.get_context("spawn")
        self.side = side
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(side, setting, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, *message: Any) -> Any:
        """Send a message and return the answer. Raises ValueError if the process reports an error, or Unable."""
        try:
            self.pipe.send(message)
            answer = self.pipe.recv()
        except (EOFError, OSError):
            raise ValueError(f"the process of {self.side} ended unexpectedly (out of memory?)") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def prepare(self, part: str) -> np.ndarray | None:
        """Set up a part and return its result, on which all sides must agree. Raises Unable if the side lacks it."""
        return self.ask("part", part)

    def seconds(self, at_least: float) -> float:
        """Return the mean time of one call, over as many calls as take `at_least` seconds by the last measurement."""
        return self.ask("seconds", at_least)

    def matmul(self, dtype: str) -> float:
        """Return the FLOP/s of a square matrix product; the first call chooses the fastest of several sizes."""
        return self.ask("matmul", dtype)

    def peak(self) -> int | None:
        """Return the peak memory of the part in bytes, libraries excluded; None if the system does not report it."""
        return self.ask("peak")

    def finish(self) -> None:
        """End the part."""
        self.ask("finish")

    def close(self) -> None:
        """End the process."""
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
                raise Unable("no noisy classifier and no guidance")
            SIDES[side][part](setting, lambda work: _answer(work, setting, memory, pipe))
            pipe.send(None)  # answers "finish"
        except (EOFError, OSError):
            return
        except Exception as error:
            known = isinstance(error, ValueError)
            text = str(error) if known else "".join(traceback.format_exception_only(error))
            pipe.send(error if isinstance(error, Unable) else ValueError(f"{side}, {part}: {text}"))


def _answer(work: Work, setting: Setting, memory: Memory, pipe: Connection) -> None:
    """Answer requests of the parent process about this work until it sends "finish"."""
    device = setting.device
    pipe.send(None if work.check is None else work.check().detach().float().cpu().numpy())
    last = 0.0
    sizes: tuple[int, ...] = ()
    while (message := pipe.recv())[0] != "finish":
        match message:
            case ("seconds", at_least):
                if setting.follow:
                    follow(work.run, setting.threads)
                calls = max(1, round(at_least / last)) if last else 1
                last = timed(work.run, calls, device)
                pipe.send(last)
            case ("matmul", dtype):
                fastest, n = matmul_flops(getattr(torch, dtype), device, sizes)
                sizes = (n,)
                pipe.send(fastest)
            case ("peak",):
                pipe.send(memory.peak())


def follow(run: Callable[[], Any], threads: int) -> None:
    """Run until the number of threads, at most `threads`, has been chosen by the load of the machine."""
    torch.set_num_threads(threads)
    started = Reading.now()
    follow_load(started)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is a smaller number
        while started is not None and time.monotonic() < started.when + FIRST:
            run()
        adapt_threads()


def timed(run: Callable[[], Any], calls: int, device: str) -> float:
    """Return the mean time of several consecutive calls in seconds."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _wait(device)
    return (time.perf_counter() - start) / calls


def matmul_flops(dtype: torch.dtype, device: str, sizes: Sequence[int] = ()) -> tuple[float, int]:
    """Return the highest FLOP/s of a square matrix product over several sizes, and its size."""
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
    """Load the code and buffers of the libraries, so that they do not count as memory of a part."""
    network = torch.nn.Conv2d(32, 32, 3, padding=1).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.randn(2, 32, 16, 16, device=device)).flatten(1).square().mean().backward()
    optimizer.step()
    torch.mm(*torch.randn(2, 256, 256, device=device))


class Memory:
    """Peak memory of this process on its device between begin() and peak(), beyond what it uses at construction.

    On a CPU it counts resident pages, as reported by Linux. ru_maxrss would include the peak of the parent process.
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
            with suppress(OSError, AttributeError):  # no permission, or a C library other than glibc
                ctypes.CDLL(None).malloc_trim(0)  # memory that is free already does not count
                Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int | None:
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated(self.device)
        most = _status("VmHWM")
        return None if most is None or self.before is None else most - self.before


def _status(name: str) -> int | None:
    """Return an entry of /proc/self/status in bytes; None on systems other than Linux."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None
