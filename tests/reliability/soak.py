"""Train and sample for as long as you like, with a random fault every 20 seconds, and show that nothing is lost.

    python tests/reliability/soak.py --minutes 60 --out /tmp/soak

Faults: a kill, SIGTERM, a flipped bit in the last checkpoint, a disk that is full for some seconds, gradients that are
infinite for so many steps that the run goes back (fewer would be skipped for good). A command that ends is started
again. At the end, the weights of all checkpoints that are kept must be those of a run without faults, bit by bit; every
sampling must have given the same images; and the memory of the processes must not grow.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from compare import content_of, difference, leftovers
from forks import Job, Operations
from kills import NETWORK, SAMPLE, load_everything, simple_pictures, write_data, write_model

KEEP = 50
"""Steps between checkpoints that are kept for the comparison."""
TRAIN = [*NETWORK, "--precision", "fp32", "--batch-size", "4", "--warmup", "2", "--steps", "1000000",
         "--checkpoint-every", "10", "--keep-every", str(KEEP), "--log-every", "5", "--preview-every", "40", "--log",
         "tensorboard", "--rollback-lr", "1", "--disk-wait", "1"]  # fmt: skip
FULL, INFINITE = "disk-is-full", "gradients-are-infinite"
"""Files whose presence makes the processes fail."""


def faulty(signs: Path, pause: float = 0.0) -> Any:
    """Return what prepares a process to fail while there are certain files in the folder `signs`.

    pause: seconds of each training step, so that the run without faults, which has none, is soon made
    """

    def prepare(operations: Operations) -> None:
        from admg import disk
        from admg.training import tasks
        from admg.training.loss_monitor import MAX_SKIPPED_STEPS

        simple_pictures(operations)
        disk.PAUSE = 1.0
        note, loss = operations.note, tasks.DiffusionTask.loss
        row: list[int] = []

        def checked(operation: str) -> None:
            if (signs / FULL).exists() and not operation.startswith(("os.remove", "os.rmdir")):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            note(operation)
            operations.seen.clear()

        def infinite(self: Any, *arguments: Any, **options: Any) -> Any:
            time.sleep(pause)
            terms = loss(self, *arguments, **options)
            if not (signs / INFINITE).exists():
                return terms
            row.append(1)
            if len(row) % MAX_SKIPPED_STEPS == 0:  # after which the run goes back; a step alone would only be skipped
                (signs / INFINITE).unlink()
            return terms | {"loss": terms["loss"] * float("inf")}

        operations.note = checked  # type: ignore[method-assign]
        tasks.DiffusionTask.loss = infinite

    return prepare


@dataclass
class Lane:
    """A command that is started again whenever it ends.

    finished: how often it has come to its end
    memory: resident memory in MiB, with the seconds since the start of the soak
    """

    name: str
    job: Job
    signs: Path
    pause: float = 0.0
    pid: int = 0
    started: int = 0
    finished: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)
    codes: Counter[int] = field(default_factory=Counter)

    def keep_running(self, now: float) -> bool:
        """Start the command if it has ended. Return whether it has come to its end."""
        ended = False
        if self.pid and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(found[1])
            self.codes[code] += 1
            self.pid, ended = 0, code == 0
            self.finished += ended
        if not self.pid and not ended:
            self.pid = self.job.start(faulty(self.signs, self.pause))
            self.started += 1
        with suppress(OSError, IndexError, ValueError):
            text = Path(f"/proc/{self.pid}/status").read_text().split("VmRSS:")[1]
            self.memory.append((now, int(text.split()[0]) / 1024))
        return ended

    def end(self, number: int) -> None:
        """Send a signal, and wait for the end: an infinite step while the run stops would be skipped for good."""
        if self.pid:
            os.kill(self.pid, number)
            self.codes[os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])] += 1
            self.pid = 0


def flip(path: Path, rng: random.Random) -> None:
    """Flip a bit of a file."""
    with path.open("r+b") as file:
        position = rng.randrange(path.stat().st_size)
        file.seek(position)
        value = file.read(1)[0] ^ (1 << rng.randrange(8))
        file.seek(position)
        file.write(bytes([value]))


class Soak:
    """Two commands, the faults that they meet, and what is found at the end."""

    def __init__(self, out: Path, seed: int, pause: float = 0.0):
        self.out, self.rng, self.signs = out, random.Random(seed), out / "signs"
        out.mkdir(parents=True)
        self.signs.mkdir()
        self.data, self.model = write_data(out / "data.npz"), write_model(out / "model")
        self.run, self.samples = out / "run", out / "samples"
        train = ["train", "--data", str(self.data), *TRAIN]
        sample = ["sample", "--model", str(self.model), *SAMPLE, "--steps", "15", "--disk-wait", "1"]
        self.train = Lane("train", Job([*train, "--out", str(self.run)], self.run, out / "run.log"), self.signs, pause)
        job = Job([*sample, "--out", str(self.samples)], self.samples, out / "samples.log")
        self.sample = Lane("sample", job, self.signs)
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.expected: dict[str, Any] | None = None
        self.argv = train

    def soak(self, seconds: float, every: float) -> None:
        self.start = start = time.monotonic()
        due = start + every
        while (now := time.monotonic()) < start + seconds:
            self.train.keep_running(now - start)
            if self.sample.keep_running(now - start):
                self.compare_samples()
            if now > due:
                due = now + every
                self.fault()
            time.sleep(0.05)
        for lane in (self.train, self.sample):
            lane.end(signal.SIGTERM)

    def fault(self) -> None:
        """Let something go wrong."""
        kind = self.rng.choice(["kill", "SIGTERM", "flipped bit", "full disk", "infinite gradients"])
        lane = self.rng.choice([self.train, self.train, self.sample])
        if kind in ("kill", "SIGTERM"):
            lane.end(signal.SIGKILL if kind == "kill" else signal.SIGTERM)
        elif kind == "flipped bit":
            lane = self.train
            saved = [path for path in sorted((self.run / "checkpoints").glob("*/state.pt")) if ".tmp" not in str(path)]
            if len(saved) < 2:
                return
            with suppress(FileNotFoundError):  # replaced meanwhile
                flip(saved[-1], self.rng)
            lane.end(signal.SIGKILL)  # so that it is read again
        else:
            sign = self.signs / (FULL if kind == "full disk" else INFINITE)
            sign.touch()
            if kind == "full disk":
                time.sleep(3.0)
                sign.unlink()
            while sign.exists():  # until the run has met it
                self.train.keep_running(time.monotonic() - self.start)
                time.sleep(0.05)
            lane = self.train
        self.faults[f"{kind}, {lane.name}"] += 1

    def compare_samples(self) -> None:
        found = content_of(self.samples)
        self.expected = self.expected or found
        if problem := difference(self.expected, found) or " ".join(leftovers(self.samples)):
            self.wrong.append(f"sampling: {problem}")
        shutil.rmtree(self.samples)

    def compare_weights(self, most: int) -> str:
        """Compare the checkpoints of at most so many steps that are kept with those of a run without faults."""
        from admg.training import checkpointing

        kept = [path for path in checkpointing.saved_checkpoints(self.run) if checkpointing.step_of(path) % KEEP == 0]
        kept = [path for path in kept if checkpointing.step_of(path) <= most and checkpointing.damage(path) is None]
        if not kept:
            self.wrong.append("no checkpoint to compare")
            return "nothing"
        steps = checkpointing.step_of(kept[-1])
        plain = self.out / "plain"
        argv = [str(steps) if word == "1000000" else word for word in self.argv]
        codes = Job([*argv, "--out", str(plain)], plain, self.out / "plain.log").run(
            prepare=simple_pictures, patience=7200.0
        )
        if codes != [0]:
            self.wrong.append(f"the run without faults ended with {codes}")
        for path in kept:
            a, b = content_of(plain / "checkpoints" / path.name), content_of(path)
            if problem := difference({"state.pt": a["state.pt"]}, {"state.pt": b["state.pt"]}):
                self.wrong.append(f"training, step {checkpointing.step_of(path)}: {problem}")
                break
        rows = [content_of(folder)["log.csv"][: steps // 5] for folder in (plain, self.run)]
        if [row["step"] for row in rows[0]] != [row["step"] for row in rows[1]]:
            self.wrong.append("training: the steps of the log differ")
        return f"{len(kept)} checkpoints, the last of step {steps}"

    def report(self, most: int) -> list[str]:
        compared = self.compare_weights(most)
        lines = [f"faults: {', '.join(f'{count} {name}' for name, count in sorted(self.faults.items()))}"]
        for lane in (self.train, self.sample):
            quarter = max(1, len(lane.memory) // 4)
            first, last = (max(m for _, m in part) for part in (lane.memory[:quarter], lane.memory[-quarter:]))
            lines.append(
                f"{lane.name}: started {lane.started} times, exit codes {dict(lane.codes)}, memory at most "
                f"{first:.0f} MiB in the first quarter of the time, {last:.0f} MiB in the last"
            )
            text = lane.job.log.read_text(errors="replace")
            if "Traceback" in text or "this is a bug" in text:
                self.wrong.append(f"a traceback in {lane.job.log}")
            if last > 1.1 * first:
                self.wrong.append(f"the memory of {lane.name} has grown")
        lines.append(f"{self.sample.finished} samplings finished; compared with a run without faults: {compared}")
        return [*lines, *self.wrong, f"{len(self.wrong)} wrong"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=20, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", type=int, default=5000, help="largest number of steps of the run without faults")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that each training step is made longer")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    load_everything()
    soak = Soak(options.out, options.seed, options.pause)
    soak.soak(60 * options.minutes, options.every)
    print("\n".join(soak.report(options.compare)), flush=True)
    sys.exit(bool(soak.wrong))


if __name__ == "__main__":
    main()
