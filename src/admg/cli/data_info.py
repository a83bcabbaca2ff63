"""`admg data info`: the contents of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from admg.config import setting
from admg.data import Survey, survey
from admg.data.arrays import Split
from admg.data.labelling import LabelSource

EXAMPLES = """  admg data info photos
  admg data info imagenet-256.zip --verify full      # decodes every image
  admg data info "shards/train-{000..099}.tar\""""
MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show the contents of a data set: kind, image sizes and modes, classes, and files that are not images.

    path: data set, in any form that admg train --data accepts
    labels: labels of a folder or archive, see --labels of admg train
    split: part of the data to read, if there are both a train and a test part
    verify: headers (read the headers of the images) or full (decode them, which also finds damaged ones)
    all: list all classes and all files that are not images, instead of the first 20
    """

    path: str = setting(positional=True)
    labels: LabelSource = "auto"
    split: Split = "train"
    verify: Literal["headers", "full"] = "headers"
    all: bool = False


def run(options: Options) -> None:
    found = survey(options.path, labels=options.labels, split=options.split, verify=options.verify)
    print("\n".join(lines(found, options.path, options.verify, None if options.all else MAX_LISTED)))


def lines(found: Survey, path: str, verify: str, most: int | None) -> Iterator[str]:
    """Yield the lines of a description. most: largest number of lines of a list, or None"""
    yield f"{path}: {found.kind}, {found.count} images"
    yield f"sizes: {counted({f'{width}x{height}': n for (width, height), n in found.sizes.items()})}"
    if len(found.sizes) > 1:
        sides = [min(size) for size in found.sizes]
        yield f"shorter side: {min(sides)} to {max(sides)} pixels"
    yield f"pixels: {counted(found.modes)}"
    if found.frames:
        yield f"frames and pages of files with several: {found.frames} (training uses the first, or --frames all)"
    counts = list(found.classes.values())
    if not counts:
        yield "labels: none"
    else:
        kind = "numbered classes" if found.numbered else "classes"
        fewest, largest = min(counts), max(counts)
        each = f"{fewest}" if fewest == largest else f"{fewest} to {largest}"
        yield f"labels: {len(counts)} {kind}, {each} images each"
        width = len(str(max(counts)))
        yield from (f"  {n:{width}}  {name}" for name, n in list(found.classes.items())[:most])
        if most is not None and len(counts) > most:
            yield f"  ... and {len(counts) - most} more (--all lists them)"
    decoded = "" if verify == "full" else "; only headers were read, --verify full decodes every image"
    yield f"not readable as images: {len(found.skipped)} files{decoded}"
    yield from (f"  {file}: {reason}" for file, reason in found.skipped[:most])
    if most is not None and len(found.skipped) > most:
        yield f"  ... and {len(found.skipped) - most} more (--all lists them)"


def counted(numbers: Mapping[str, int], most: int = 8) -> str:
    """Return 'RGB 120, L 3', the most frequent first; of many some, and how many there are."""
    shown = ", ".join(f"{name} {number}" for name, number in Counter(numbers).most_common(most))
    return shown + (f", ... ({len(numbers)} in all)" if len(numbers) > most else "")
