"""Fill the disk at every write of training and sampling, make space, start the command again, and compare.

    python tests/reliability/full_disk.py --out /tmp/disk                   an error of a full disk at each operation
    sudo python tests/reliability/full_disk.py --out /tmp/disk --sizes 60   real disks (tmpfs) of so many sizes

Each time, the command must end with exit code 0 or with 2 and one line, and nothing that was saved before may be lost:
the same command, started again with space, ends with the files of a run that was not disturbed. Read-only folders and
odd paths are tried as well.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from compare import content_of, difference, leftovers
from forks import Job, Operations
from kills import (
    Kind,
    Reference,
    load_everything,
    sampling_kinds,
    simple_pictures,
    training_kinds,
    write_data,
    write_model,
)

ODD = ("with space", "quote'\"", "-dash", "a%20b", "[x]*?", "ünï-日本", "new\nline", "dot.", "x" * 200, ".hidden", "~",
       "$HOME")  # fmt: skip
"""Names of run directories."""


def message(log: Path) -> str:
    """Return the last line of a command that failed."""
    lines = [line for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def problem(job: Job, codes: list[int], kind: Kind) -> str:
    """Return what is wrong with how a command ended, "" for nothing."""
    text = job.log.read_text(errors="replace")
    if codes == [0]:
        return ""
    if codes != [2] or "Traceback" in text or "this is a bug" in text:
        return f"exit codes {codes}: {message(job.log)}"
    lines = text.replace("\r", "\n").splitlines()  # the order of what goes to stdout and stderr is not fixed
    errors = [line for line in lines if line.startswith(f"admg {kind.argv[0]}: error: ")]
    return "" if errors else f"no message: {message(job.log)}"


def at_each_operation(kind: Kind, out: Path, every: int = 1) -> Iterator[str]:
    """Let each file operation in turn fail as on a full disk. Yield what is wrong, "" for nothing, for each."""
    reference = Reference(kind, out / "reference")
    for at in range(1, reference.operations + 1, every):
        found = at_operation(kind, reference, out / f"{at:04d}", at)
        yield f"{kind.name}, operation {at}: {found}" if found else ""


def at_operation(kind: Kind, reference: Reference, folder: Path, at: int) -> str:
    """Let a file operation fail as on a full disk, start the command again, and return what is wrong, "" for nothing.

    TensorBoard may lack events: it gets none after its first error, as a note says.
    """
    job = kind.job(folder)

    def fail(operation: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def prepare(operations: Operations) -> None:
        simple_pictures(operations)
        operations.at, operations.act = at, fail

    found = problem(job, job.run(prepare=prepare), kind)
    codes = job.run(prepare=simple_pictures)
    found = (
        found
        or problem(job, codes, kind)
        or difference(without_events(reference.content), without_events(content_of(folder)))
    )
    found = found or " ".join(leftovers(folder))
    if not found:
        shutil.rmtree(folder)
    return found


def without_events(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "tensorboard"}


def on_disks(kind: Kind, out: Path, count: int) -> Iterator[str]:
    """Run on disks of different sizes, each too small, then make it large enough and start again."""
    reference = Reference(kind, out / "reference")
    need = sum(path.stat().st_size for path in (out / "reference").rglob("*") if path.is_file())
    disk = out / "disk"
    disk.mkdir()
    for number in range(count):
        size = 4096 + int(1.3 * need) * number // count
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "admg-test", disk], check=True)
        try:
            job = Job([*kind.argv, "--out", str(disk / "run")], disk / "run", out / f"{number}.log")
            found = problem(job, job.run(prepare=simple_pictures), kind)
            subprocess.run(["mount", "-o", f"remount,size={20 * need}", disk], check=True)
            found = found or problem(job, job.run(prepare=simple_pictures), kind)
            found = (
                found
                or difference(without_events(reference.content), without_events(content_of(disk / "run")))
                or " ".join(leftovers(disk))
            )
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
        yield f"{kind.name}, a disk of {size} bytes: {found}" if found else ""


def on_read_only_disks(kind: Kind, out: Path) -> Iterator[str]:
    """Run where nothing can be written: on a disk that is read-only, below a file, and in folders of the system."""
    disk = out / "read-only"
    disk.mkdir()
    (out / "file").touch()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "admg-test", disk], check=True)
    try:
        for folder in (disk, disk / "run", out / "file", out / "file" / "run", Path("/proc/admg"), Path("/dev/null")):
            job = Job([*kind.argv, "--out", str(folder)], folder, out / "read-only.log")
            codes = job.run(prepare=simple_pictures)
            found = problem(job, codes, kind) if codes != [0] else "it succeeded"
            yield f"{kind.name}, {folder}: {found}" if found else ""
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def at_odd_paths(kind: Kind, out: Path) -> Iterator[str]:
    """Run in folders with unusual names, and compare."""
    reference = Reference(kind, out / "reference")
    for name in ODD:
        folder = out / name
        job = Job([*kind.argv, f"--out={folder}"], folder, out / "odd.log")
        codes = job.run(prepare=simple_pictures)
        found = problem(job, codes, kind) if codes != [0] else difference(reference.content, content_of(folder))
        yield f"{kind.name}, {name!r}: {found}" if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="every so many file operations")
    parser.add_argument("--only", default="", help="parts whose name contains this")
    parser.add_argument("--sizes", type=int, default=0, help="number of disks of different sizes; needs root")
    options = parser.parse_args()
    load_everything()
    options.out.mkdir(parents=True)
    data, model = write_data(options.out / "data.npz"), write_model(options.out / "model")
    bad = 0
    for kind in (training_kinds(data)[0], sampling_kinds(model)[0]):
        parts = {"operations": lambda out, kind=kind: at_each_operation(kind, out, options.every)}
        parts["odd paths"] = lambda out, kind=kind: at_odd_paths(kind, out)
        if options.sizes:
            parts["sizes"] = lambda out, kind=kind: on_disks(kind, out, options.sizes)
            parts["read-only"] = lambda out, kind=kind: on_read_only_disks(kind, out)
        for name, part in parts.items():
            if options.only not in f"{kind.argv[0]} {name}":
                continue
            folder = options.out / f"{kind.argv[0]} {name}"
            folder.mkdir()
            count: Counter[bool] = Counter()
            for found in part(folder):
                count[bool(found)] += 1
                if found:
                    print(found, flush=True)
            bad += count[True]
            print(f"{kind.argv[0]}, {name}: {count.total()} tried, {count[True]} wrong", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
