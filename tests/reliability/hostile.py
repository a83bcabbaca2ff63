"""Fuzz the commands with changed files of every kind, guided by coverage.

python tests/reliability/hostile.py --num 2000
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import sandbox  # noqa: E402
from corpus import KINDS, Kind, build  # noqa: E402


@dataclass(frozen=True)
class Trial:
    """A changed file, the command that read it, and what was wrong."""

    kind: str
    number: int
    result: sandbox.Result
    problems: list[str]


def trials(
    num: int, seed: int, base: Path, work: Path, *, names: str = "", coverage: bool = False, keep: Path | None = None
) -> Iterator[Trial]:
    """Change files and run commands on them.

    coverage: whether a changed file by which a command came to lines of admg that no other reached is changed further
    keep: folder that gets the files of trials that went wrong
    """
    kinds = [kind for kind in KINDS if names in kind.name]
    seen: set[tuple[str, int]] = set()
    pools: defaultdict[str, list[bytes]] = defaultdict(list)
    for number in range(num):
        kind = kinds[number % len(kinds)]
        rng = random.Random(f"{seed} {kind.name} {number // len(kinds)}")
        folder = work / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        target = prepare(kind, base, folder, rng, pools[kind.name])
        changed = target.read_bytes()
        costly = [0.1 if command[0].startswith("train") else 1 for command in kind.commands]
        command = [word.replace("{target}", target.name) for word in rng.choices(kind.commands, costly)[0]]
        result = sandbox.run(command, folder, coverage=coverage)
        if result.lines - seen and len(pools[kind.name]) < 50:
            pools[kind.name].append(changed)
        seen |= result.lines
        problems = sandbox.problems(result, folder)
        if problems and keep is not None:
            shutil.copytree(folder, keep / f"{number:05d}", symlinks=True, dirs_exist_ok=True)
        yield Trial(kind.name, number, result, problems)
    shutil.rmtree(work / "trial", ignore_errors=True)


def prepare(kind: Kind, base: Path, folder: Path, rng: random.Random, pool: list[bytes]) -> Path:
    """Copy the files of a kind to a folder, change one, and return its path."""
    folder.mkdir(parents=True)
    files = sorted(base.glob(kind.target))
    target = folder / rng.choice(files).relative_to(base)
    for name in {
        "net.py",
        *kind.needed,
        kind.target.split("/")[0] if "*" in kind.target else str(target.relative_to(folder)),
    }:
        _copy(base / name, folder / name)
    content = target.read_bytes()
    if pool and rng.random() < 0.3:
        content = rng.choice(pool)
    try:
        changed = kind.mutation(rng, content)
    except Exception:  # a file of the pool need not be valid any more
        changed = kind.mutation(rng, target.read_bytes())
    target.write_bytes(changed)
    if kind.after is not None:
        kind.after(target)
    return target


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=2000, help="number of changed files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="only kinds of file whose name contains this")
    parser.add_argument("--no-coverage", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for the files of trials that go wrong")
    options = parser.parse_args()
    sandbox.preload()
    start, codes, slowest, largest, wrong = time.perf_counter(), Counter(), 0.0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        build(Path(folder) / "trial")  # where the trials run, since indices depend on the path
        (Path(folder) / "trial").rename(base)
        found = trials(
            options.num,
            options.seed,
            base,
            Path(folder),
            names=options.kind,
            coverage=not options.no_coverage,
            keep=options.keep,
        )
        for trial in found:
            result = trial.result
            codes[result.code] += 1
            slowest, largest = max(slowest, result.seconds), max(largest, result.peak)
            if trial.problems:
                wrong.append(trial)
                print(
                    f"{trial.number:05d} {trial.kind}: {'; '.join(trial.problems)}\n      admg {' '.join(result.argv)}",
                    flush=True,
                )
    print(
        f"{options.num} files, {len(wrong)} with problems; exit codes {dict(codes)}; at most {slowest:.1f} s and "
        f"{largest / 2**30:.2f} GiB; {time.perf_counter() - start:.0f} s in all"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
