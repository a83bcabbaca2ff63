"""Kill training and sampling again and again, resume, and compare with runs that were not disturbed.

    python tests/reliability/kills.py train --trials 500 --out /tmp/kills
    python tests/reliability/kills.py sample --trials 200 --out /tmp/kills

A trial kills a command before one of its file operations, or at a random moment; a third of the trials kill the resumed
command once more. Then the same command runs to its end. Weights, optimiser, logs, events and images must be those of
the undisturbed run, bit by bit, and no temporary file may be left.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from compare import content_of, difference, leftovers
from forks import Job, Operations

NETWORK = ["--image-size", "8", "--channels", "32", "--channel-mult", "1", "--num-res-blocks", "1", "--head-channels",
           "32", "--attention-resolutions", "", "--diffusion-steps", "20"]  # fmt: skip
TRAIN = [*NETWORK, "--precision", "fp32", "--batch-size", "4", "--warmup", "2", "--steps", "5", "--checkpoint-every",
         "2", "--keep-checkpoints", "2", "--log-every", "2", "--preview-every", "3", "--ema-snapshots", "2", "--log",
         "tensorboard"]  # fmt: skip
SAMPLE = ["--num", "10", "--shard-size", "3", "--batch-size", "3", "--steps", "3", "--precision", "fp32"]


@dataclass
class Kind:
    """A command that is killed.

    name: name in the report
    argv: its arguments, without --out
    processes: number of processes
    notices: whether the others end if one is killed, rather than to wait for it
    """

    name: str
    argv: Sequence[str]
    processes: int = 1
    notices: bool = True

    def job(self, out: Path) -> Job:
        return Job([*self.argv, "--out", str(out)], out, out.with_name(out.name + ".log"), self.processes)


class Reference:
    """A run that is not disturbed: its content, its file operations, and the seconds that it takes."""

    def __init__(self, kind: Kind, out: Path):
        job = kind.job(out)
        start = time.monotonic()
        codes = job.run(prepare=simple_pictures)
        assert set(codes) == {0}, f"{kind.name}: {codes}, see {job.log}"
        self.seconds = time.monotonic() - start
        self.content, self.operations = content_of(out), job.operations()


@dataclass
class Outcome:
    """What became of a trial: kills that hit, the difference to the reference, temporary files that are left."""

    kills: int
    difference: str
    leftovers: list[str]


def trial(kind: Kind, reference: Reference, out: Path, at: int | None, rng: random.Random) -> Outcome:
    """Kill a command once or twice, run it to its end, and compare. `at` is the operation of the first kill."""
    job, kills = kind.job(out), 0
    for again in range(1 + (rng.random() < 1 / 3)):
        if again:
            at = rng.randrange(1, reference.operations + 1) if rng.random() < 0.5 else None
        after = rng.uniform(0, reference.seconds) if at is None else None
        victim = rng.randrange(kind.processes) if at is None else 0
        codes = job.run(
            at=at, after=after, victim=victim, alone=kind.notices and rng.random() < 0.3, prepare=simple_pictures
        )
        kills += -signal.SIGKILL in codes
    codes = job.run(prepare=simple_pictures)
    if set(codes) != {0}:
        return Outcome(kills, f"exit codes {codes}: see {job.log}", [])
    return Outcome(kills, difference(reference.content, content_of(out)), leftovers(out))


def trials(kind: Kind, out: Path, count: int, seed: int) -> Iterator[tuple[str, Outcome]]:
    """Run so many trials: at file operations, spread evenly, and at random moments, in turn."""
    reference = Reference(kind, out / "reference")
    rng = random.Random(seed)
    half = -(-count // 2)
    for number in range(count):
        at = 1 + (number // 2) * reference.operations // half if number % 2 == 0 else None
        folder = out / f"{number:04d}"
        what = f"{kind.name} {number}: " + ("at a random moment" if at is None else f"at operation {at}")
        outcome = trial(kind, reference, folder, at, rng)
        yield what, outcome
        if not outcome.difference and not outcome.leftovers:
            shutil.rmtree(folder)
            folder.with_name(folder.name + ".log").unlink()


def simple_pictures(operations: Operations) -> None:
    """Draw empty curves, cards and previews, each with the file operations of the real ones, which take far longer."""
    from admg.files import atomic
    from admg.training import run_models, tasks, trackers

    def draw(path: Path) -> None:
        with atomic(path) as temporary:
            temporary.touch()

    def preview(task: object, network: object, folder: Path, step: int) -> dict[str, float]:
        draw(folder / f"step_{step:07d}.png")
        return {"preview": 0.5 * step}

    trackers.plot_log = lambda rows, path: draw(path)
    run_models.write_card = lambda folder, *arguments: draw(folder / "README.md")
    trackers.Tracker.add_pictures = lambda self, folder, step: None
    tasks.DiffusionTask.preview = preview


def training_kinds(data: Path) -> list[Kind]:
    argv = ["train", "--data", str(data), *TRAIN]
    return [
        Kind("1 process", argv),
        Kind("1 process, loader processes", [*argv, "--workers", "1"]),
        Kind("2 processes", argv, 2),
        Kind("2 processes, loader processes", [*argv, "--workers", "1"], 2),
    ]


def sampling_kinds(model: Path) -> list[Kind]:
    argv = ["sample", "--model", str(model), *SAMPLE]
    return [Kind("sampling, 1 process", argv), Kind("sampling, 2 processes", argv, 2, False)]


def write_data(path: Path) -> Path:
    """Write 24 images of noise in three classes."""
    rng = np.random.default_rng(0)
    np.savez(path, arr_0=rng.integers(0, 256, (24, 8, 8, 1), dtype=np.uint8), arr_1=np.arange(24) % 3)
    return path


def write_model(folder: Path) -> Path:
    """Write a small model with random weights and three labels."""
    import torch

    from admg.checkpoints.labels import Labels
    from admg.checkpoints.model import Model
    from admg.diffusion.config import DiffusionConfig
    from admg.models import UNet, UNetConfig

    torch.manual_seed(0)
    config = DiffusionConfig(diffusion_steps=20, predict="v")
    fields = {"image_size": 8, "image_channels": 1, "channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    network = UNet(UNetConfig(**fields, attention_resolutions=(), head_channels=32, num_classes=3))
    for parameter in network.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape))
    Model(network, config.build(), (1, 8, 8), Labels(3), config, {"label_dropout": 0.1}).save(folder)
    return folder


def load_everything() -> None:
    """Import what the forks need, so that each of them need not."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import tensorboard.backend.event_processing.event_accumulator
    import torch._dynamo
    import torch.utils.tensorboard

    import admg
    import admg.cli.sample
    import admg.cli.train

    _ = matplotlib, tensorboard, torch, admg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "sample"])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    load_everything()
    options.out.mkdir(parents=True)
    if options.what == "train":
        kinds = training_kinds(write_data(options.out / "data.npz"))
    else:
        kinds = sampling_kinds(write_model(options.out / "model"))
    kinds = [kind for kind in kinds if options.only in kind.name]
    total: Counter[str] = Counter()
    for kind in kinds:
        start = time.monotonic()
        found: Counter[str] = Counter()
        (options.out / kind.name).mkdir()
        for what, outcome in trials(kind, options.out / kind.name, options.trials // len(kinds), options.seed):
            found += Counter(
                trials=1, kills=outcome.kills, unequal=bool(outcome.difference), leftovers=bool(outcome.leftovers)
            )
            if outcome.difference or outcome.leftovers:
                print(f"{what}: {outcome.difference} {outcome.leftovers}", flush=True)
        total += found
        print(f"{kind.name}: {text(found)} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"all: {text(total)}")
    sys.exit(bool(total["unequal"] or total["leftovers"]))


def text(found: Counter[str]) -> str:
    return ", ".join(f"{found[name]} {name}" for name in ("trials", "kills", "unequal", "leftovers"))


if __name__ == "__main__":
    main()
