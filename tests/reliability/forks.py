"""Run commands of admg in forks of this process, which has imported torch already, and kill them.

A fork is killed at a moment, or before one of its file operations: opening a file for writing, renaming, linking,
removing, making a folder, waiting for the disk. The fork counts those on paths below the folder of the run. Files that
C++ and Rust write are counted when torch.save and safetensors are called.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from admg.cli.launch import free_port

AUDITED = {
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.link": (1,),
    "os.truncate": (0,),
}
"""Events of Python that change files, and which of their arguments are paths."""

ALONE = 30.0
"""Seconds after which a launcher ends the others if one process was killed. Before they have met, they wait for it."""


@dataclass
class Operations:
    """Counts the file operations of this process on paths below a folder, and calls `act` before one of them.

    at: number of that operation, from 1; None for none
    act: called with the operation
    """

    folder: Path
    at: int | None = None
    act: Callable[[str], None] = lambda operation: os.kill(os.getpid(), signal.SIGKILL)
    count: int = 0
    seen: list[str] = field(default_factory=list)

    def install(self) -> None:
        """Begin to count. It cannot be undone: this is for a process that ends soon."""
        import safetensors.torch
        import torch

        from admg import files
        from admg.checkpoints import native
        from admg.training import snapshots

        self.place = str(self.folder.resolve())
        sys.addaudithook(self._audit)
        os.fsync = self._before(os.fsync, "fsync")
        files._exchange = self._before(files._exchange, "exchange")
        torch.save = self._before(torch.save, "torch.save")
        saved = self._before(safetensors.torch.save_file, "save_file")
        native.save_file = snapshots.save_file = saved

    def note(self, operation: str) -> None:
        self.count += 1
        self.seen.append(operation)
        if self.count == self.at:
            self.act(operation)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if writes and self._is_below(path):
                self.note(f"open {os.path.basename(os.fspath(path))}")
        elif event in AUDITED and any(self._is_below(arguments[i]) for i in AUDITED[event]):
            self.note(f"{event} {os.path.basename(os.fspath(arguments[AUDITED[event][-1]]))}")

    def _is_below(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        found = os.path.abspath(os.fsdecode(path))
        return found == self.place or found.startswith(self.place + os.sep)

    def _before(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.note(name)
            return function(*arguments, **options)

        return call


@dataclass
class Job:
    """A command, in one or several processes that a launcher would start.

    argv: arguments of admg
    folder: folder that the command writes to
    processes: number of processes
    log: file with what the processes print
    """

    argv: Sequence[str]
    folder: Path
    log: Path
    processes: int = 1

    def run(
        self,
        at: int | None = None,
        after: float | None = None,
        number: int = signal.SIGKILL,
        victim: int = 0,
        alone: bool = False,
        prepare: Callable[[Operations], None] = lambda operations: None,
        patience: float = 600.0,
    ) -> list[int]:
        """Run the command, and return how each process ended, as `os.waitstatus_to_exitcode` says it.

        at: number of the file operation before which a process is killed
        after: seconds after which a process gets a signal
        number: that signal
        victim: rank of the process that is killed
        alone: whether the other processes are left to find it out, for some seconds, rather than killed at once
        prepare: called in each process before the command
        """
        environment = self._environment()
        pids = []
        for rank in range(self.processes):
            where = at if rank == victim else None
            pids.append(self._fork({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, where, prepare))
        if after is not None:
            time.sleep(after)
            with suppress(ProcessLookupError):
                os.kill(pids[victim], number)
        try:
            return self._wait(pids, victim, alone, patience)
        finally:
            for pid in pids:  # and loader processes, whose group it is
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)

    def start(self, prepare: Callable[[Operations], None] = lambda operations: None) -> int:
        """Start the command in one process, without waiting for it, and return the number of the process."""
        return self._fork({}, None, prepare)

    def _wait(self, pids: list[int], victim: int, alone: bool, patience: float) -> list[int]:
        ended: dict[int, int] = {}
        lost = 0.0
        until = time.monotonic() + patience
        while len(ended) < len(pids):
            for pid in pids:
                if pid not in ended and (found := os.waitpid(pid, os.WNOHANG))[0]:
                    ended[pid] = os.waitstatus_to_exitcode(found[1])
            if ended.get(pids[victim]) == -signal.SIGKILL:
                lost = lost or time.monotonic()
            if lost and (not alone or time.monotonic() > lost + ALONE):
                for pid in set(pids) - ended.keys():
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > until:
                raise TimeoutError(f"{self.argv[:1]} did not end: see {self.log}")
            time.sleep(0.005)
        return [ended[pid] for pid in pids]

    def _environment(self) -> dict[str, str]:
        if self.processes == 1:
            return {}
        return {"WORLD_SIZE": str(self.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def _fork(self, environment: Mapping[str, str], at: int | None, prepare: Callable[[Operations], None]) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            os.setpgid(0, 0)
            target = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(target, 1)
            os.dup2(target, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            if self.processes > 1:
                os.environ.update(environment)
            code = self._main(Operations(self.folder, at), prepare)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
            os._exit(code)

    def _main(self, operations: Operations, prepare: Callable[[Operations], None]) -> int:
        from admg.cli.main import main
        from admg.training import heartbeat

        heartbeat.HEARTBEAT_SECONDS = 0.05
        os.environ.setdefault(
            "OMP_NUM_THREADS", "1"
        )  # a number that does not follow the load, so that weights are equal
        prepare(operations)
        operations.install()
        try:
            code = main(list(self.argv))
        except SystemExit as stop:
            code = int(stop.code or 0)
        with builtins.open(self.counted, "w") as file:
            file.write("\n".join(operations.seen))
        return code

    @property
    def counted(self) -> Path:
        """File with the operations of a command that was not killed."""
        return self.log.with_suffix(".operations")

    def operations(self) -> int:
        """Return the number of file operations of the first process, after the command has run to its end."""
        return len(self.counted.read_text().splitlines())
