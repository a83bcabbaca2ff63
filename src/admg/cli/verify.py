"""`admg verify`: read files again, and compare them with their checksums."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from admg.config import setting
from admg.verification import Verified, units, verified

EXAMPLES = """  admg verify runs/photos                  a run directory: checkpoints, model, log, pictures
  admg verify runs/photos/model            a model
  admg verify samples/samples_1000x64x64x3.npz
  admg verify ~/.cache/admg                downloaded models, cached features and tables"""
MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """Verify files against the checksums that were stored when they were written.

    The exit code is 0 if no file is damaged, and 1 otherwise. Damaged files are never changed or removed.

    path: model, run directory of training or sampling, folder of cached features or downloads, or a single file
    """

    path: Path = setting(positional=True)


def run(options: Options) -> None:
    results: list[Verified] = []
    for path, check in tqdm(units(options.path), desc="reading", unit=" files", delay=1, leave=False):
        results.append(verified(path, check))
    print("\n".join(lines(results)))
    if any(entry.state == "damaged" for entry in results):
        sys.exit(1)


def lines(found: list[Verified]) -> list[str]:
    """Return lines for damaged files, for files without a checksum, and the number of each."""
    count = Counter(entry.state for entry in found)
    damaged = [f"damaged      {entry.path}: {reason(entry)}" for entry in found if entry.state == "damaged"]
    unknown = [f"no checksum  {entry.path}" for entry in found if entry.state == "no checksum"]
    if len(unknown) > MAX_LISTED:
        unknown = [*unknown[:MAX_LISTED], f"no checksum  ... and {len(unknown) - MAX_LISTED} more"]
    total = f"{count['whole']} whole, {count['damaged']} damaged, {count['no checksum']} without a checksum"
    return [*damaged, *unknown, total]


def reason(entry: Verified) -> str:
    """Return the problem of a file, without repeating its name."""
    return entry.reason.removeprefix(f"{entry.path} ").removeprefix("is damaged: ")
