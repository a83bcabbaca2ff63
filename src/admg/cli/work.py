"""Carrying stages out: missing shards, merging, pictures; shared by processes, and continued after a break."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..files import check_output_folder
from ..pictures import save_png
from ..shards import RUN, NpzImages, Shards, open_run
from .drawing import contact_sheet, save_images
from .stages import Stage


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
        if not 0 <= self.rank < self.processes:
            raise ValueError(f"--rank must be from 0 to {self.processes - 1}, below --world-size, got {self.rank}")
        if self.shard_size is not None and self.shard_size < 1:
            raise ValueError(f"--shard-size must be at least 1, got {self.shard_size}")
        if self.overwrite and self.processes > 1:
            raise ValueError("--overwrite is for one process: it would remove the shards of the others")


def carry_out(stages: Sequence[Stage], work: Work) -> None:
    """Each stage in turn, with what is there already left as it is; the last one gets its pictures.

    ValueError: the folder holds another run.
    """
    last = stages[-1]
    if work.overwrite:
        clear(last.out)
    check_output_folder(last.out)
    runs = begin(stages, work)
    if runs[-1].target.exists():
        print(f"{last.out} holds the finished run of these settings")
        return finish(last, runs[-1], work, redraw=False)
    for stage, shards in zip(stages, runs):
        produce(stage, shards, work)
        here = merge(shards)
        if stage is last:
            break
        while not shards.target.exists():
            wait(shards)
            here = merge(shards)
        if here:
            draw_sheet(stage, shards, redraw=True)
            discard(shards, work)
    if here or (work.processes == 1 and runs[-1].target.exists()):
        return finish(last, runs[-1], work, redraw=True)
    left = len(runs[-1].missing())
    print(f"process {work.rank} of {work.processes} is done, {left} shards are not: the last process merges them")


def begin(stages: Sequence[Stage], work: Work) -> list[Shards]:
    """The shards of each stage; the last stage's folder is looked at first."""
    runs = []
    for stage in reversed(stages):
        stage.out.mkdir(exist_ok=True)
        try:
            runs.append(open_run(stage.settings, stage.shards(work.shard_size)))
        except ValueError as error:
            raise ValueError(f"{error}; choose another --out, or --overwrite it") from None
    return runs[::-1]


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
    with progress(doing, total, total - left, show=work.rank == 0) as bar:
        for k in todo:
            images, labels = stage.make(shards.span(k), base, lambda part: bar.update(min(part, total - bar.n))), None
            if shards.labelled:
                wanted = stage.labels[shards.span(k).start : shards.span(k).stop]
                labels = np.array([-1 if label is None else label for label in wanted], np.int64)
            shards.write(k, images, labels)
            bar.n = round(bar.n)  # parts sum to a little more or less than a whole


def progress(doing: str, total: int, initial: int, show: bool):
    """A bar of images, which is told of parts of them."""
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} images [{elapsed}<{remaining}, {rate_fmt}]"
    return tqdm(total=total, initial=initial, desc=doing, unit=" images", bar_format=layout, disable=not show)


def merge(shards: Shards) -> bool:
    """Merge the shards if all are there and nobody has merged them; whether this process did."""
    missing = shards.missing()
    if missing or shards.target.exists():  # asked second, since shards are removed once it is there
        return False
    try:
        shards.merge()
    except FileNotFoundError:  # another process was sooner, and has removed them
        if not shards.target.exists():
            raise
        return False
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
        save_png(contact_sheet(NpzImages(shards.target), label_names(stage), stage.title), path)
    return path


def label_names(stage: Stage) -> list[str]:
    """Of each image; empty where it has no label."""
    return ["" if label is None else stage.names.name(label) for label in stage.labels]


def clear(folder: Path) -> None:
    """Remove a run, and nothing else, from a folder."""
    for run in (folder, folder / "base"):
        for part in (run / "shards", run / "images"):
            shutil.rmtree(part, ignore_errors=True)
        for path in (run / RUN, run / "sheet.png", *run.glob("samples_*x*x*x*.npz")):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # none there, or something else in it
        (folder / "base").rmdir()


def add_work(parser: argparse.ArgumentParser, out: str) -> None:
    """The options of Work, and --out."""
    group = parser.add_argument_group("output: interrupted runs continue when the same command is started again")
    add = group.add_argument
    add("--out", default=out, metavar="DIR", help=f"folder of samples_NxHxWxC.npz and pictures (default: {out})")
    add("--overwrite", action="store_true", help="remove the run that the folder holds, and start anew")
    add("--images", action=argparse.BooleanOptionalAction, help="a PNG of each (default: of up to 1,000)")
    add("--shard-size", type=int, metavar="N", help="images to a file of OUT/shards (default: by number and size)")
    add("--keep-shards", action="store_true", help="do not remove OUT/shards when they are merged")
    add("--rank", type=int, metavar="R", help="this process makes every WORLD_SIZE-th shard (default: torchrun's RANK)")
    add("--world-size", type=int, metavar="N", help="processes that share the work (default: torchrun's, or 1)")


def work_of(args: argparse.Namespace) -> Work:
    """As the options and torchrun's environment say."""
    return Work(
        rank=int(os.environ.get("RANK", 0)) if args.rank is None else args.rank,
        processes=int(os.environ.get("WORLD_SIZE", 1)) if args.world_size is None else args.world_size,
        shard_size=args.shard_size,
        keep_shards=args.keep_shards,
        images=args.images,
        overwrite=args.overwrite,
    )
