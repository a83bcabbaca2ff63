"""Several processes of a command on this machine, one per GPU: `--gpus`."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 30.0
"""Seconds after the failure of one process until the others are killed."""


ADMG = sys.executable, "-P", "-m", "admg"
"""This program. Without -P, modules in the current directory would hide those of the same name that it imports."""


def without_gpus(argv: list[str]) -> list[str]:
    """Return the words of a command without `--gpus N`, for the processes that it starts."""
    words = iter(argv)
    kept = []
    for word in words:
        if word == "--gpus":
            next(words, None)
        elif not word.startswith("--gpus="):
            kept.append(word)
    return kept


def refuse_launcher(text: str, count: int) -> None:
    """Raise ValueError if torchrun or srun has started this process, one of `count`: the launcher sets the number."""
    if count > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError(f"--gpus {text} starts processes itself: use either it or a launcher (torchrun, srun)")


def gpu_count(text: str) -> int:
    """Return the number of GPUs that "all" or a number stands for. Raises ValueError if there are fewer."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there == 0:
        raise ValueError(f"--gpus {text}: torch finds no GPU on this machine")
    if text == "all":
        return there
    if not text.isdecimal() or not 1 <= int(text) <= there:
        raise ValueError(f"--gpus must be 'all' or a number from 1 to {there}, the GPUs of this machine, got {text!r}")
    return int(text)


def launch(count: int, argv: list[str], command: tuple[str, ...] = ADMG) -> int:
    """Run a command in several processes that share its work, and return its exit code: that of the first to fail.

    The first process prints and shows the progress. What another one prints is shown if it fails first; the others are
    then sent SIGTERM, and killed if they still run after GRACE_SECONDS. Ctrl-C and SIGTERM reach all of them, and so
    does SIGTERM when this process is killed.
    """
    port = free_port()
    with ExitStack() as stack:
        logs = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(count - 1))]
        processes = [
            subprocess.Popen(
                [*command, *argv],
                env=environment(rank, count, port),
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent,
            )
            for rank, log in enumerate(logs)
        ]
        stack.callback(end, processes, 0.0)
        with forward_signals(processes):
            failed = first_failure(processes)
            if failed is None:
                return 0
            end([process for process in processes if process is not processes[failed]], GRACE_SECONDS)
            show(logs[failed])
            code = processes[failed].returncode
            if code < 0:
                name = signal.Signals(-code).name
                print(f"admg: error: process {failed} of {count} was ended by {name}", file=sys.stderr)
            return exit_code(code)


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Return the variables of torchrun for a process of a launch on this machine."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return os.environ | {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}


def end_with_parent() -> None:
    """Request SIGTERM from the kernel when the parent process ends for any reason. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """Return a port of this machine that no program uses at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def first_failure(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait until one process has failed, and return its rank, or until all have succeeded, and return None."""
    while True:
        codes = [process.poll() for process in processes]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None or None not in codes:
            return failed
        time.sleep(0.05)


def end(processes: list[subprocess.Popen[bytes]], grace: float) -> None:
    """End processes that still run: SIGTERM, and SIGKILL after a grace period in seconds."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    until = time.monotonic() + grace
    for process in running:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def forward_signals(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Context manager that passes SIGTERM on to the processes; a terminal sends them Ctrl-C on its own."""

    def forward(number: int, frame: Any) -> None:
        for process in processes:
            process.send_signal(number)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(log: IO[bytes] | None) -> None:
    """Print what a process wrote to its file."""
    if log is not None:
        log.seek(0)
        sys.stderr.write(log.read().decode(errors="replace"))


def exit_code(code: int) -> int:
    """Return the exit code of a process as a shell does: 128 plus the signal if one has ended it."""
    return 128 - code if code < 0 else code
