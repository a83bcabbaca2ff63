"""Training runs: views of run directories, and runs that the studio starts as separate processes."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from admg.config import check, setting
from admg.data.sources import is_image
from admg.training import log, run_settings
from admg.training.run_directory import LOCK

from .settings import whole_number

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
"""Valid names of new runs. Without dots and separators, they cannot leave the folder of the runs."""
HOLDER = re.compile(r"process (\d+) on (.+), since ")
"""Content of the lock file of a run directory, see files.locked_nowait."""


@dataclass(frozen=True)
class RunView:
    """The state of a training run.

    name: of the directory
    step: number of steps done
    steps: total number of steps
    rate: images per second; None if unknown
    seconds_left: estimated remaining time; None if unknown
    running: whether a process is training it
    rows: of log.csv
    preview: path of the latest preview, or None
    """

    name: str
    step: int
    steps: int
    rate: float | None
    seconds_left: float | None
    running: bool
    rows: Sequence[Mapping[str, str]]
    preview: Path | None

    @property
    def status(self) -> str:
        """The state in one line of text."""
        if not self.steps:
            return f"{self.name}: no training has started here"
        parts = [f"step {self.step:,} of {self.steps:,}"]
        if self.rate is not None:
            parts.append(f"{self.rate:.3g} images/s")
        if self.running and self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        state = "running" if self.running else "finished" if self.step >= self.steps else "not running"
        return f"{self.name}: {state}, {', '.join(parts)}"


def duration(seconds: float) -> str:
    """Return a duration as text.

    >>> duration(75), duration(7500), duration(12)
    ('1 min 15 s', '2 h 5 min', '12 s')
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


class RunFolder:
    """The folder whose run directories are shown. Nothing outside it is read."""

    def __init__(self, root: Path | str):
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"{root} is not a folder of run directories")

    def names(self) -> list[str]:
        """Return the names of the run directories, newest first."""
        found = [path for path in self.root.iterdir() if self._is_run(path)]
        return [path.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)]

    def _is_run(self, path: Path) -> bool:
        files = (run_settings.FILE, log.CSV, LOCK)
        return path.is_dir() and not path.is_symlink() and any((path / file).is_file() for file in files)

    def path(self, name: Any) -> Path:
        """Return the path of a run. Raises ValueError for an unknown name."""
        if not isinstance(name, str) or name not in self.names():
            raise ValueError(f"there is no run {str(name)[:80]!r} here")
        return self.root / name

    def view(self, name: Any) -> RunView:
        """Return the state of a run. Raises ValueError for an unknown name."""
        out = self.path(name)
        rows, record = log.read_rows(out / log.CSV), run_settings.read(out) or {"options": {}}
        options = record["options"]
        step = int(rows[-1]["step"]) if rows else 0
        steps = int(options.get("steps") or 0)
        rate = float(rows[-1]["images_per_second"]) if rows and rows[-1].get("images_per_second") else None
        batch, left = options.get("batch_size"), None
        if rate and isinstance(batch, int):
            left = max(0, steps - step) * batch / rate
        return RunView(str(name), step, steps, rate, left, is_running(out), rows, latest_preview(out))


def is_running(out: Path) -> bool:
    """Whether a process is training in the run directory. Reads its lock file without locking it.

    A process on another computer counts as running, because it cannot be checked.
    """
    try:
        match = HOLDER.match((out / LOCK).read_text(errors="replace"))
    except OSError:
        return False
    if match is None or match[2] != platform.node():
        return match is not None
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return True


def latest_preview(out: Path) -> Path | None:
    """Return the path of the latest preview of a run, or None."""
    folder = out / "samples"
    found = [path for path in folder.iterdir() if path.suffix == ".png"] if folder.is_dir() else []
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def read_picture(path: Path | None) -> Image.Image | None:
    """Return a picture, or None if it cannot be read, for example while it is being replaced."""
    try:
        with Image.open(path) as image:  # type: ignore[arg-type]
            return image.convert("RGB")
    except (OSError, AttributeError, TypeError):
        return None


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """Settings of a new training run.

    name: name of the run directory
    data: name of a data set
    image_size: width and height of the images in pixels
    steps: number of steps
    batch_size: images per step
    """

    name: str
    data: str
    image_size: int = setting(32, min=8, max=512)
    steps: int = setting(2000, min=1, max=10_000_000)
    batch_size: int = setting(32, min=1, max=4096)

    def __post_init__(self) -> None:
        check(self)
        if not NAME.fullmatch(self.name):
            raise ValueError(
                "the name of a run must have 1 to 60 letters, digits, - or _, and start with a letter or a digit"
            )
        if self.image_size % 8:
            raise ValueError(f"image_size must be a multiple of 8, got {self.image_size}")

    @classmethod
    def read(cls, name: Any, data: Any, **numbers: Any) -> NewRun:
        """Return the settings from the values of a page. Raises ValueError for invalid values."""
        if not isinstance(data, str) or not data:
            raise ValueError("choose a data set")
        if not isinstance(name, str):
            raise ValueError("the run needs a name")
        return cls(name=name.strip(), data=data, **{key: whole_number(key, value) for key, value in numbers.items()})


class Trainer:
    """Starts training runs, one at a time, as separate processes.

    runs: folder of the run directories
    data: folder of data sets: the folders and archives in it, and the folder itself if it contains pictures
    """

    def __init__(self, runs: RunFolder, data: Path | str):
        self.runs, self.root = runs, Path(data).expanduser()
        if not self.root.is_dir():
            raise ValueError(f"{data} is not a folder of data sets")
        self.process: subprocess.Popen[str] | None = None
        self.name = ""
        self.lines: deque[str] = deque(maxlen=12)
        self.lock = threading.Lock()

    def data_sets(self) -> list[str]:
        """Return the names of the data sets. "." is the folder itself."""
        kinds = (".zip", ".npz", ".tar", ".parquet")
        inner = [path for path in self.root.iterdir() if not path.name.startswith(".") and not path.is_symlink()]
        names = sorted(path.name for path in inner if path.is_dir() or path.suffix in kinds)
        pictures = any(is_image(path.name) for path in inner)
        return [*(["."] if pictures else []), *names]

    def command(self, new: NewRun) -> list[str]:
        """Return the arguments of `admg` for a run. Raises ValueError for an unknown data set or a name in use."""
        if new.data not in self.data_sets():
            raise ValueError(f"unknown data set {new.data[:80]!r}: this studio has {', '.join(self.data_sets())}")
        out = self.runs.root / new.name
        if out.exists():
            raise ValueError(f"a run named {new.name!r} already exists: choose another name")
        every = max(1, min(500, new.steps // 10))
        rows = max(1, min(50, new.steps // 50))
        return [
            "train", "--data", str(self.root / new.data), "--image-size", str(new.image_size),
            "--steps", str(new.steps), "--batch-size", str(new.batch_size), "--log-every", str(rows),
            "--preview-every", str(every), "--checkpoint-every", str(every), "--log", "none", "--out", str(out),
        ]  # fmt: skip

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, new: NewRun) -> None:
        """Start a training run. Raises ValueError if one is running, or as `command` does."""
        with self.lock:
            if self.running:
                raise ValueError(f"{self.name} is still training: wait until it is finished, or stop it first")
            arguments = self.command(new)
            self.name = new.name
            self.lines.clear()
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "admg", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
            threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.replace("\r", "\n").strip().splitlines()
            if text and "%|" not in text[-1]:  # not a progress bar
                self.lines.append(text[-1].replace(str(self.root), "DATA").replace(str(self.runs.root), "RUNS"))

    def stop(self) -> bool:
        """Stop the training after its next step, with a checkpoint. Return whether it was running."""
        with self.lock:
            if not self.running or self.process is None:
                return False
            self.process.send_signal(signal.SIGINT)
            return True

    def message(self) -> str:
        """Return the last lines that the training has printed."""
        state = "" if self.process is None or self.running else f"\n(exit code {self.process.returncode})"
        return "\n".join(self.lines) + state

    def close(self, seconds: float = 30.0) -> None:
        """Stop the training, and wait for its checkpoint."""
        if self.stop() and self.process is not None:
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.terminate()
