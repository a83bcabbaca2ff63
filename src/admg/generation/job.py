"""Jobs: stages in shards, shared by processes, continued after an interruption, merged, and drawn."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from admg.config import check, setting
from admg.data.generated import BASE, IMAGES, RUN, SHEET
from admg.disk import when_there_is_space
from admg.engine.device import Processes
from admg.files import LockError, check_output_folder, locked, remove, remove_leftovers, shared, unshared
from admg.warn import warn

from .fonts import label_title
from .images import check_only_samples, save_images, save_png
from .labels import as_tensor
from .progress import Activity, JobProgress, OnProgress, reporting
from .run_record import RunMismatchError, find_run, open_run, run_files
from .shards import NpzImages, Shards
from .stage import Stage

MAX_PNGS = 1000
SHARD_TIMEOUT = 3600.0
"""Seconds without a new shard after which a process stops waiting for others."""


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Output. An interrupted run continues when the same command is started again.

    The processes of torchrun or srun share the images, and the first one merges them; it waits as long as the others
    write a shard at least once an hour. Processes that are started one by one need a rank and a world_size, and the
    last one merges.

    overwrite: remove an existing run in the folder, and start again
    images: write a PNG file per image
    shard_size: images per file in OUT/shards
    keep_shards: keep OUT/shards after merging
    disk_wait: minutes to wait for space when the disk is full before the run fails, with a message every minute
    rank: index of this process, from 0; it makes every WORLD_SIZE-th shard
    world_size: number of processes that share the work
    """

    overwrite: bool = False
    images: bool | None = setting(None, default_text=f"for up to {MAX_PNGS:,} images")
    shard_size: int | None = setting(None, min=1, default_text="from the number and size of the images")
    keep_shards: bool = False
    disk_wait: float = setting(0.0, min=0, metavar="MINUTES")
    rank: int | None = setting(None, min=0, default_text="that of torchrun or srun, or 0")
    world_size: int | None = setting(None, min=1, default_text="that of torchrun or srun, or 1")

    def __post_init__(self) -> None:
        check(self)
        if not 0 <= self.process < self.processes:
            raise ValueError(f"rank must be from 0 to {self.processes - 1}, below world_size, got {self.process}")
        if self.overwrite and self.processes > 1:
            raise ValueError("overwrite requires a single process: it would remove the shards of the others")

    @property
    def process(self) -> int:
        """Index of this process, from 0."""
        return Processes.from_environment().rank if self.rank is None else self.rank

    @property
    def processes(self) -> int:
        """Number of processes."""
        return Processes.from_environment().count if self.world_size is None else self.world_size

    @property
    def together(self) -> bool:
        """Whether a launcher started the processes together; then the first one waits for the others and merges."""
        return self.processes > 1 and self.rank is None and self.world_size is None

    @property
    def merges(self) -> bool:
        """Whether this process may merge the shards: the first one of a launcher, or whichever finishes last."""
        return self.process == 0 or not self.together


@dataclass(frozen=True)
class Generated:
    """The result of a job.

    folder: run directory
    num: number of images
    npz: merged file of images and labels; it exists once all processes have finished
    sheet: contact sheet, or None if another process draws it
    images: folder of PNG files, or None
    missing: shards that other processes have not finished
    resumed: whether the run had been finished before
    """

    folder: Path
    num: int
    npz: Path
    sheet: Path | None = None
    images: Path | None = None
    missing: int = 0
    resumed: bool = False

    @property
    def finished(self) -> bool:
        """Whether this process wrote or found the merged file and its pictures."""
        return self.sheet is not None

    def read(self) -> NpzImages:
        """Return the images of the merged file, to be read in slices."""
        return NpzImages(self.npz)


@dataclass(frozen=True)
class Job:
    """Stages that follow each other, in one run directory.

    stages: each may enlarge the images of the one before it; the folder of the last one is the run directory
    """

    stages: tuple[Stage, ...]
    options: JobOptions = field(default_factory=JobOptions)

    @property
    def folder(self) -> Path:
        return self.stages[-1].out

    def try_out(self) -> None:
        """Run one step of the first stage. Raises ValueError if model, sampler and guide do not fit together."""
        self.stages[0].try_out()

    def check(self) -> list[Shards]:
        """Return the shards of each stage, according to the run in the folder, without changing anything.

        Raises ValueError if the folder holds a run with other settings and `overwrite` is False, or other files.
        """
        return [check_run(stage.record, self._shards(stage), self.options.overwrite) for stage in self.stages]

    def missing(self) -> list[int]:
        """Return the number of missing images of each stage."""
        if self.options.overwrite:
            return [shards.num for shards in self.check()]
        return [0 if shards.target.exists() else sum(len(shards.span(k)) for k in shards.missing())
                for shards in self.check()]  # fmt: skip

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from making the run in the folder. Raises ValueError if one is making it.

        Nothing is kept on Windows, nor where the file system does not support locks.
        """
        with ExitStack() as stack:
            for folder in (self.folder, self.folder / BASE):
                stack.enter_context(unshared(folder / RUN, f"the run in {folder}"))
            yield

    def clear(self) -> None:
        """Remove the run in the folder, and nothing else."""
        clear(self.folder)

    def run(self, progress: bool | OnProgress = True, wait: bool = False) -> Generated:
        """Make the missing images of each stage, merge them, and draw the last stage.

        progress: True shows a bar; a function is called with a JobProgress after each step
        wait: also wait for other processes to finish the last stage
        Raises ValueError if the folder holds another run or other files, if it holds the base images, or if it is to
        be overwritten while another process is making it.
        """
        runs = self._begin()
        with ExitStack() as stack:
            for shards in runs:
                stack.enter_context(shared(shards.folder / RUN, partial(remove_unfinished_files, shards)))
            return self._run(runs, progress, wait)

    def _run(self, runs: list[Shards], progress: bool | OnProgress, wait: bool) -> Generated:
        last = self.stages[-1]
        if runs[-1].target.exists():
            if not self.options.merges:  # the first process draws what is missing
                return Generated(last.out, runs[-1].num, runs[-1].target, resumed=True)
            return finish(last, runs[-1], self.options, redraw=False)
        wait = wait or (self.options.together and self.options.merges)
        with reporting(progress, self.options.process == 0) as report:
            merged = self._produce(runs, report, wait)
        if merged or (self.options.processes == 1 and runs[-1].target.exists()):
            return finish(last, runs[-1], self.options, redraw=True)
        return Generated(last.out, runs[-1].num, runs[-1].target, missing=len(runs[-1].missing()))

    def _produce(self, runs: list[Shards], report: OnProgress, wait: bool) -> bool:
        """Make and merge each stage in turn. Return whether this process merged the last one."""
        merged = False
        for stage, shards in zip(self.stages, runs):
            produce(stage, shards, self.options, report)
            merged = self.options.merges and self._merge(shards)
            if stage is self.stages[-1] and not wait:
                break
            while not shards.target.exists():
                wait_for_others(shards, report, self.options.merges)
                merged = self.options.merges and self._merge(shards)
            if merged and stage is not self.stages[-1]:
                draw_sheet(stage, shards, redraw=True)
                discard(shards, self.options)
        return merged

    def _merge(self, shards: Shards) -> bool:
        return when_there_is_space(partial(merge, shards), self.options.disk_wait)

    def _begin(self) -> list[Shards]:
        """Return the shards of each stage. All folders are checked, the last stage's first, before any is changed."""
        planned = [(stage.record, self._shards(stage)) for stage in reversed(self.stages)]
        made = [shards.target for _, shards in planned]
        for stage in self.stages:
            if stage.base is not None and stage.base not in made:
                check_base_folder(stage.base, self.folder)
        for run in planned:
            check_run(*run, self.options.overwrite)
        with ExitStack() as stack:
            if self.options.overwrite:
                for stage in self.stages:
                    check_only_samples(stage.out / IMAGES)
                stack.enter_context(self.held())
                self.clear()
            for stage in reversed(self.stages):
                check_output_folder(stage.out)
            return [open_run(*run, stage.table.names) for run, stage in zip(planned, reversed(self.stages))][::-1]

    def _shards(self, stage: Stage) -> Shards:
        return stage.shards(self.options.shard_size, self.options.processes)


def check_run(record: Mapping[str, Any], shards: Shards, overwrite: bool) -> Shards:
    """Return the shards of the run in the folder, or the planned ones if there is no run.

    Raises ValueError if the folder holds another run and `overwrite` is False, or files that belong to no run.
    """
    try:
        existing = find_run(record, shards)
    except RunMismatchError as error:
        if not overwrite:
            raise ValueError(f"{error}; choose another --out, or --overwrite it") from None
        return shards
    return shards if existing is None or overwrite else existing


def remove_unfinished_files(shards: Shards) -> None:
    """Remove incomplete files of processes that were killed."""
    for folder in (shards.folder, shards.parts):
        remove_leftovers(folder)


def check_base_folder(base: Path, out: Path) -> None:
    """Raise ValueError if the base images belong to a run that this one would have to replace."""
    path = base.resolve()
    for file in (*run_files(out), *run_files(out / BASE)):
        if file.resolve() in (path, *path.parents):
            raise ValueError(f"{base} belongs to the run in {out}: choose another --out")


def produce(stage: Stage, shards: Shards, options: JobOptions, report: OnProgress) -> None:
    """Make the missing shards of this process."""
    mine = range(options.process, len(shards), options.processes)
    missing = set() if shards.target.exists() else set(shards.missing())
    for k in mine:
        if k not in missing and not shards.target.exists() and shards.damaged(k):
            warn(f"{shards.path(k)} is damaged, and will be made again")
            missing.add(k)
    todo = [k for k in mine if k in missing]
    if not todo:
        return
    total, left = (sum(len(shards.span(k)) for k in part) for part in (mine, todo))
    done = total - left
    activity: Activity = "upsampling" if stage.model.upsamples else "sampling"

    def say(finished: float) -> None:
        report(JobProgress(shards.folder, activity, min(finished, total), total, total - left))

    say(done)
    ended = Event()  # by an exception: then the thread no longer waits for space
    with stage.maker() as maker, ThreadPoolExecutor(1) as writer, ExitStack() as stack:
        stack.callback(ended.set)
        writing: Future[None] | None = None
        for k in todo:  # a shard is written while the next one is made
            images = maker.make(shards.span(k), lambda n, before=done: say(before + n))  # type: ignore[misc]
            if writing is not None:
                writing.result()
            write = partial(shards.write, k, images, _labels(stage, shards, k))
            writing = writer.submit(when_there_is_space, write, options.disk_wait, ended.is_set)
            done += len(shards.span(k))
            say(done)
        if writing is not None:
            writing.result()


def _labels(stage: Stage, shards: Shards, k: int) -> np.ndarray | None:
    if not shards.labelled:
        return None
    span = shards.span(k)
    return as_tensor(stage.labels[span.start : span.stop]).numpy()


def merge(shards: Shards) -> bool:
    """Merge the shards if all are there and are not merged yet. Return whether this process did; only one does."""
    if shards.missing() or shards.target.exists():  # in this order, since shards are removed once the target exists
        return False
    try:
        with ExitStack() as stack:
            with suppress(LockError):  # without locks two processes may merge, into the same file
                stack.enter_context(locked(shards.parts / "merging"))
            if shards.target.exists():  # merged while this process waited for the lock
                return False
            shards.merge()
    except FileNotFoundError:  # another process was first, and has removed the shards
        if not shards.target.exists():
            raise
        return False
    (shards.parts / ".merging.lock").unlink(missing_ok=True)  # processes waiting for it will see the merged file
    return True


def wait_for_others(shards: Shards, report: OnProgress, merges: bool = True, seconds: float = 1.0) -> None:
    """Wait until the shards of the other processes are merged, or are complete if this process can merge them.

    Raises TimeoutError, an OSError, if no new shard appears for SHARD_TIMEOUT seconds: another process has ended.
    """
    total, before, since = len(shards), -1, 0.0
    while ((missing := shards.missing()) or not merges) and not shards.target.exists():
        if len(missing) != before:
            before, since = len(missing), time.monotonic()
        elif time.monotonic() - since > SHARD_TIMEOUT:
            raise TimeoutError(
                f"{total - before} of {total} shards are in {shards.folder}, and no new one appeared for "
                f"{SHARD_TIMEOUT / 60:g} minutes: another process has ended; run the same command again to continue"
            )
        report(JobProgress(shards.folder, "waiting", total - len(missing), total, 0))
        time.sleep(seconds)


def finish(stage: Stage, shards: Shards, options: JobOptions, redraw: bool) -> Generated:
    """Draw the pictures of a merged run, and return its result. Raises ValueError if the merged file is damaged."""
    if not redraw:
        check_merged(shards)
    sheet = draw_sheet(stage, shards, redraw)
    images = stage.out / IMAGES
    pngs = options.images or (options.images is None and shards.num <= MAX_PNGS)
    if pngs and (redraw or not images.exists()):
        save_images(NpzImages(shards.target), stage.labels, stage.label_names, images)
    discard(shards, options)
    return Generated(stage.out, shards.num, shards.target, sheet, images if pngs else None, resumed=not redraw)


def check_merged(shards: Shards) -> None:
    """Raise ValueError if the merged file of a run that was finished before is damaged."""
    try:
        shape = NpzImages(shards.target).verify().shape
        if shape != (shards.num, *shards.shape):
            raise ValueError(f"{shards.target} is damaged: it holds images {shape}")
    except ValueError as error:
        raise ValueError(f"{error}; remove the file and the command makes it again, or --overwrite the run") from None


def discard(shards: Shards, options: JobOptions) -> None:
    """Remove the shards unless `keep_shards` is set."""
    if not options.keep_shards:
        shards.discard()


def draw_sheet(stage: Stage, shards: Shards, redraw: bool) -> Path:
    """Write sheet.png from the merged file."""
    path = stage.out / SHEET
    if redraw or not path.exists():
        names = [label_title(name, label) for name, label in zip(stage.label_names, stage.labels)]
        save_png(stage.layout(NpzImages(shards.target), names, stage.title), path)
    return path


def clear(folder: Path) -> None:
    """Remove a run, and nothing else, from a folder."""
    for path in (*run_files(folder), *run_files(folder / BASE)):
        remove(path)
    with suppress(OSError):  # absent, or not empty
        (folder / BASE).rmdir()
