"""Carrying stages out: missing shards, merging, pictures; shared by processes, and continued after a break."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from admg.files import LockError, check_output_folder, locked, remove
from admg.generation.images import save_images, save_png
from admg.generation.run_record import OtherRun, find_run, open_run, run_files
from admg.generation.shards import NpzImages, Shards

from .stages import Stage, from_torchrun


@dataclass(frozen=True, kw_only=True)
class Work:
    """How the work is done, which does not change the images.

    rank, processes: this one makes every processes-th shard, from the rank on; shard_size: None: by number and size;
    images: whether to write a PNG of each, None: of up to 1,000; overwrite: remove the run that is there
    """

    rank: int = 0
    processes: int = 1
    shard_size: int | None = None
    keep_shards: bool = False
    images: bool | None = None
    overwrite: bool = False

    def __post_init__(self):
        if self.processes < 1:
            raise ValueError(f"--world-size must be at least 1, got {self.processes}")
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"--rank must be from 0 to {self.processes - 1}, below --world-size, got {self.rank}")
        if self.shard_size is not None and self.shard_size < 1:
            raise ValueError(f"--shard-size must be at least 1, got {self.shard_size}")
        if self.overwrite and self.processes > 1:
            raise ValueError("--overwrite is for one process: it would remove the shards of the others")


def carry_out(stages: Sequence[Stage], work: Work, together: bool = False) -> None:
    """Each stage in turn, with what is there already left as it is; the last one gets its pictures.

    together: also of the last stage, wait until the other processes have finished it
    ValueError: the folder holds another run, or files that are not of one; or the base images lie in it.
    """
    last = stages[-1]
    runs = begin(stages, work)
    if runs[-1].target.exists():
        print(f"{last.out} holds the finished run of these settings")
        return finish(last, runs[-1], work, redraw=False)
    for stage, shards in zip(stages, runs):
        produce(stage, shards, work)
        here = merge(shards)
        if stage is last and not together:
            break
        while not shards.target.exists():
            wait(shards)
            here = merge(shards)
        if here and stage is not last:
            draw_sheet(stage, shards, redraw=True)
            discard(shards, work)
    if here or (work.processes == 1 and runs[-1].target.exists()):
        return finish(last, runs[-1], work, redraw=True)
    if together:
        return
    left = len(runs[-1].missing())
    print(f"process {work.rank} of {work.processes} is done, {left} shards are not: the last process merges them")


def begin(stages: Sequence[Stage], work: Work) -> list[Shards]:
    """The shards of each stage. All folders are looked at, the last stage's first, before anything is changed."""
    planned = [(stage.settings, stage.shards(work.shard_size)) for stage in reversed(stages)]
    out, made = stages[-1].out, [shards.target for _, shards in planned]
    for stage in stages:
        if stage.base is not None and stage.base not in made:
            check_base(stage.base, out)
    for run in planned:
        check_run(*run, work.overwrite)
    if work.overwrite:
        clear(out)
    for stage in reversed(stages):
        check_output_folder(stage.out)
    return [open_run(*run) for run in planned][::-1]


def check_run(settings: Mapping[str, Any], shards: Shards, overwrite: bool) -> Shards:
    """The shards as the run to be continued has them, else as they are planned.

    ValueError: the folder holds another run, which may not be overwritten, or files that are not of one.
    """
    try:
        found = find_run(settings, shards)
    except OtherRun as error:
        if not overwrite:
            raise ValueError(f"{error}; choose another --out, or --overwrite it") from None
        return shards
    return shards if found is None or overwrite else found


def check_base(base: Path, out: Path) -> None:
    """ValueError: the base images are of a run that this one would have to replace."""
    path = base.resolve()
    for file in (*run_files(out), *run_files(out / "base")):
        if file.resolve() in (path, *path.parents):
            raise ValueError(f"{base} is of the run that {out} holds: choose another --out")


def produce(stage: Stage, shards: Shards, work: Work) -> None:
    """Make the shards that are missing of every processes-th, beginning with the rank."""
    mine = range(work.rank, len(shards), work.processes)
    missing = set() if shards.target.exists() else set(shards.missing())
    todo = [k for k in mine if k in missing]
    if not todo:
        return
    total, left = (sum(len(shards.span(k)) for k in part) for part in (mine, todo))
    if left < total and work.rank == 0:
        print(f"continuing {shards.folder}: {total - left:,} of {total:,} images are there")
    base = None if stage.base is None else NpzImages(stage.base)
    doing = "upsampling" if stage.model.upsamples else "sampling"
    with (
        progress(doing, total, total - left, show=work.rank == 0) as bar,
        stage.fast(),
        ThreadPoolExecutor(1) as writer,  # of a shard, while the next one is made
    ):
        writing: Future[None] | None = None
        for k in todo:
            images, labels = stage.make(shards.span(k), base, lambda part: bar.update(min(part, total - bar.n))), None
            if shards.labelled:
                wanted = stage.labels[shards.span(k).start : shards.span(k).stop]
                labels = np.array([-1 if label is None else label for label in wanted], np.int64)
            if writing is not None:
                writing.result()
            writing = writer.submit(shards.write, k, images, labels)
            bar.n = round(bar.n)  # parts sum to a little more or less than a whole
        if writing is not None:
            writing.result()


def progress(doing: str, total: int, initial: int, show: bool):
    """A bar of images, which is told of parts of them."""
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} images [{elapsed}<{remaining}, {rate_fmt}]"
    return tqdm(total=total, initial=initial, desc=doing, unit=" images", bar_format=layout, disable=not show)


def merge(shards: Shards) -> bool:
    """Merge the shards if all are there and nobody has merged them; whether this process did, as one alone does."""
    if shards.missing() or shards.target.exists():  # asked second, since shards are removed once it is there
        return False
    try:
        with ExitStack() as stack:
            with suppress(LockError):  # then two may merge, into the same file
                stack.enter_context(locked(shards.parts / "merging"))
            if shards.target.exists():  # while we waited
                return False
            shards.merge()
    except FileNotFoundError:  # another process was sooner, and has removed them
        if not shards.target.exists():
            raise
        return False
    (shards.parts / ".merging.lock").unlink(missing_ok=True)  # whoever waits for it will see the merged file
    return True


def wait(shards: Shards, seconds: float = 1.0) -> None:
    """Until the other processes' shards are there, or are merged."""
    print(f"waiting for the other processes to finish {shards.folder} (Ctrl-C stops; the same command continues)")
    while shards.missing() and not shards.target.exists():
        time.sleep(seconds)


def finish(stage: Stage, shards: Shards, work: Work, redraw: bool) -> None:
    """The pictures, and a word of what there is."""
    there = [draw_sheet(stage, shards, redraw)]
    images = stage.out / "images"
    if work.images or (work.images is None and shards.num <= 1000):
        if redraw or not images.exists():
            save_images(NpzImages(shards.target), label_names(stage), images)
        there.append(images)
    discard(shards, work)
    print(f"{shards.num:,} images: {'   '.join(map(str, [*there, shards.target]))}")


def discard(shards: Shards, work: Work) -> None:
    """Remove the shards unless they are to be kept."""
    if not work.keep_shards:
        shards.discard()


def draw_sheet(stage: Stage, shards: Shards, redraw: bool) -> Path:
    """sheet.png, of the merged file."""
    path = stage.out / "sheet.png"
    if redraw or not path.exists():
        save_png(stage.draw(NpzImages(shards.target), label_names(stage), stage.title), path)
    return path


def label_names(stage: Stage) -> list[str]:
    """Of each image; empty where it has no label."""
    return ["" if label is None else stage.names.name(label) for label in stage.labels]


def clear(folder: Path) -> None:
    """Remove a run, and nothing else, from a folder."""
    for path in (*run_files(folder), *run_files(folder / "base")):
        remove(path)
    with suppress(OSError):  # none there, or something else in it
        (folder / "base").rmdir()


def add_work(parser: argparse.ArgumentParser, out: str, holds: str = "", images: str = "of up to 1,000") -> None:
    """The options of Work, and --out. holds: what that is a folder of; images: of what --images is the default"""
    group = parser.add_argument_group("output: interrupted runs continue when the same command is started again")
    add = group.add_argument
    holds = holds or "samples_NxHxWxC.npz and pictures"
    add("--out", default=out, metavar="DIR", help=f"folder of {holds} (default: {out})")
    add("--overwrite", action="store_true", help="remove the run that the folder holds, and start anew")
    add("--images", action=argparse.BooleanOptionalAction, help=f"a PNG of each (default: {images})")
    add("--shard-size", type=int, metavar="N", help="images to a file of OUT/shards (default: by number and size)")
    add("--keep-shards", action="store_true", help="do not remove OUT/shards when they are merged")
    add("--rank", type=int, metavar="R", help="this process makes every WORLD_SIZE-th shard (default: torchrun's RANK)")
    add("--world-size", type=int, metavar="N", help="processes that share the work (default: torchrun's, or 1)")


def work_of(args: argparse.Namespace) -> Work:
    """As the options and torchrun's environment say."""
    return Work(
        rank=from_torchrun("RANK", 0) if args.rank is None else args.rank,
        processes=from_torchrun("WORLD_SIZE", 1) if args.world_size is None else args.world_size,
        shard_size=args.shard_size,
        keep_shards=args.keep_shards,
        images=args.images,
        overwrite=args.overwrite,
    )
