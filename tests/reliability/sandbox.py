"""Run a command in a forked child with limits, and say what is wrong with how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from admg.cli import main as cli
from admg.files import LEFTOVER

CPU_SECONDS = 10
"""Of processor time that a small file may take."""
MAX_SECONDS = 240
"""After which a command is killed: it waits for something."""
MEMORY = 2 << 30
"""Bytes of memory that a small file may take."""
ADDRESSES = 16 << 30
"""Bytes of address space beyond those of this process, so that a mistake does not fill the machine."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
CANARY = "canary"
"""Name of the file that hostile payloads create."""


@dataclass
class Result:
    """How a command ended.

    code: its exit code, negative for a signal
    peak: largest memory in bytes
    lines: what it ran of admg, for fuzzing by coverage
    """

    argv: list[str]
    code: int
    out: str
    err: str
    seconds: float
    wall: float
    peak: int
    lines: frozenset[tuple[str, int]] = field(default=frozenset(), repr=False)


def preload(networks: bool = True) -> None:
    """Import what commands import, so that forked children need not. networks: what running networks imports, too"""
    for name in cli.COMMANDS:
        importlib.import_module(f"admg.cli.{name.replace('-', '_').replace(' ', '_')}")
    more = ("matplotlib.backends.backend_agg", "torch._dynamo", "coverage") if networks else ()
    for name in ("tqdm.auto", *more):
        importlib.import_module(name)
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    Image.init()


def run(argv: Sequence[str], cwd: Path, *, coverage: bool = False, stdin: bytes = b"") -> Result:
    """Run a command in a folder, and return how it ended. It gets a cache folder of its own within this folder."""
    sys.stdout.flush(), sys.stderr.flush()
    give_back_freed_memory()  # the child begins with the memory of this process, in which many tests may have run
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as seen:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = _child(list(argv), cwd, out.fileno(), err.fileno(), seen.fileno() if coverage else -1, stdin)
            finally:
                os._exit(code)
        with contextlib.closing(_Process(child)) as process:
            status, usage = process.wait(MAX_SECONDS)
        texts = []
        for file in (out, err, seen):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    lines = frozenset((name, line) for name, line in json.loads(texts[2])) if texts[2] else frozenset()
    return Result(
        list(argv),
        os.waitstatus_to_exitcode(status),
        texts[0],
        texts[1],
        usage.ru_utime + usage.ru_stime,
        time.perf_counter() - start,
        usage.ru_maxrss * 1024,
        lines,
    )


def give_back_freed_memory() -> None:
    """Give memory that this process has freed, and that admg lets it keep, back to the system."""
    with contextlib.suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


class _Process:
    def __init__(self, pid: int):
        self.pid, self.descriptor = pid, os.pidfd_open(pid)

    def wait(self, seconds: float) -> tuple[int, resource.struct_rusage]:
        """Wait for the process, and kill it after so many seconds."""
        if not select.select([self.descriptor], [], [], seconds)[0]:
            os.kill(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        return status, usage

    def close(self) -> None:
        os.close(self.descriptor)


def _child(argv: list[str], cwd: Path, out: int, err: int, seen: int, stdin: bytes) -> int:
    os.setpgid(0, 0)
    os.chdir(cwd)
    reader, writer = os.pipe()
    os.write(writer, stdin)
    os.close(writer)
    for source, target in ((reader, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (3 * CPU_SECONDS, 3 * CPU_SECONDS))
    os.environ |= {"ADMG_HOME": str(cwd / "home"), "TMPDIR": str(cwd), "ADMG_OFFLINE": "1"}
    tempfile.tempdir = None
    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):  # as in a new process
        warnings.simplefilter("ignore", kind)
    measured = None
    if seen >= 0:
        import coverage

        measured = coverage.Coverage(data_file=None, include=[f"{Path(cli.__file__).parents[1]}/*"])
        measured.start()
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    finally:
        if measured is not None:
            measured.stop()
            data = measured.get_data()
            lines = [
                (os.path.basename(name), line) for name in data.measured_files() for line in data.lines(name) or ()
            ]
            os.write(seen, json.dumps(lines).encode())
        sys.stdout.flush(), sys.stderr.flush()
    return code


def problems(result: Result, folder: Path, codes: Sequence[int] = (0, 2)) -> list[str]:
    """Return what is wrong with how a command ended: [] if it did what it should, or refused with one clear line."""
    found = []
    err = result.err
    errors = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("admg")]
    if "this is a bug" in err:
        found.append("unforeseen: " + errors[-1].partition("this is a bug in admg, not in your input: ")[2][:160])
    elif "Traceback" in err or "Error:" in err.replace("error:", "").partition("admg")[0]:
        found.append(f"a traceback: {err.strip().splitlines()[-1][:160]}")
    elif result.code not in codes:
        found.append(f"exit code {result.code}")
    elif result.code and (len(errors) != 1 or not err.endswith(f"{errors[0]}\n") or len(errors[0]) > 2000):
        found.append(f"not one line: {len(errors)} lines, {len(err)} characters")
    elif "out of memory" in err:
        found.append("out of memory")
    if "Warning: " in err:
        found.append(f"a warning of Python: {err[: err.index('Warning: ') + 80].splitlines()[-1]}")
    if CONTROL.search(re.sub(r"\x1b\[A|\r", "", result.out + err)):  # tqdm moves the cursor
        found.append("control characters")
    if result.seconds > CPU_SECONDS:
        found.append(f"{result.seconds:.0f} s of processor time")
    if result.wall > MAX_SECONDS:
        found.append(f"hangs: {result.wall:.0f} s")
    if result.peak > MEMORY:
        found.append(f"{result.peak / 2**30:.1f} GiB")
    files = [path for path in folder.rglob("*") if path.name == CANARY or LEFTOVER.fullmatch(path.name)]
    found += [f"code ran or files were left: {path.name}" for path in files]
    return found
