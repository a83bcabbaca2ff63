"""Code shared by the commands that train: notes before the run, the progress bar, and the paths of the results."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from tqdm.auto import tqdm

from admg.checkpoints.transfer import initialisation_text
from admg.config import printable
from admg.data.classes import describe_classes, empty_classes
from admg.data.errors import listed
from admg.training import TrainingRun
from admg.training.choices import FROM_DATA
from admg.training.defaults import SMALL_DATASET_SIZE
from admg.training.recipes import Command, recipe_for
from admg.training.services import services_of
from admg.training.stopping import StopSignals

from .measure import note_missing_kernels
from .options import format_default

NOT_OPTIONS = (*FROM_DATA, "num_heads_upsample", "ddpm_layers")
"""Fields of a network that the data determine, or that only networks of other programs have."""
NEW_PROCESS = {"predict": "v", "noise_schedule": "cosine"}
NEW_NETWORK = {
    "channels": f"64, or 128 from {SMALL_DATASET_SIZE:,} images",
    "num_res_blocks": f"1, or 2 from {SMALL_DATASET_SIZE:,} images",
    "head_channels": "64, or less for fewer channels",
}
"""Defaults that are chosen for the data, for the help; a resumed run keeps its own."""
LEVEL = re.compile(r"_t\d+$")
"""End of the names of metrics at a single noise level, which are too many to print."""
PAUSE = 60.0
"""Minimum number of seconds between two messages about saved checkpoints."""


def provenance(recipe: str | None = None) -> dict[str, str]:
    """Return this command and its recipe, for the provenance of the model."""
    return {"command": shlex.join(["admg", *sys.argv[1:]])} | ({"recipe": recipe} if recipe else {})


def recipe_values(command: Command, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of the given recipe, or none. Raises ValueError if it is one of another command.

    A given number of heads replaces the width of the recipe's heads, which would otherwise determine their number.
    """
    if not (name := given.get("recipe")):
        return {}
    values = recipe_for(command, name).values
    replaced = {"head_channels"} if "num_heads" in given else set()
    return {key: value for key, value in values.items() if key not in replaced}


def train(run: TrainingRun[Any]) -> None:
    """Train to the end with a progress bar, and print the paths of the results. Of several processes, the first prints.

    Ctrl-C, SIGTERM and SIGUSR1 end the run after the current step, with a checkpoint, and the command with exit code
    128 plus the number of the signal: 130, 143 and 138.
    """
    if run.heartbeat is not None:
        run.heartbeat.on_stuck = end_process
    with closing(run), StopSignals(run.stop) as signals:
        if run.writes:
            train_and_print(run)
        else:
            deque(run, maxlen=0)
    if run.stopped:
        sys.exit(128 + (signals.received or signal.SIGTERM))


def end_process(reason: str) -> None:
    """End this process, which waits for one that has ended."""
    print(f"admg: error: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def train_and_print(run: TrainingRun[Any]) -> None:
    print_summary(run)
    if run.step >= run.config.steps:
        deque(run, maxlen=0)  # which writes the model if a kill came before that
        print(f"nothing to do: {run.out} has been trained for {run.step} steps already; raise --steps to train on")
        return
    if run.first_step:
        changed = ", ".join(
            f"{name} {format_default(now)} (was {format_default(before)})"
            for name, (before, now) in run.changes.items()
        )
        print(f"resumed at step {run.first_step}" + (f"; changed: {changed}" if changed else ""))
    elif start := initialisation_text(run.provenance.get("init", {})):
        print(start)
    bar = tqdm(total=run.config.steps, initial=run.first_step, unit="step", smoothing=0.05, mininterval=1)
    saves = Saves(run)
    step: Mapping[str, float] = {}
    with bar:
        for step in run:
            bar.set_postfix_str(progress(step), refresh=False)
            bar.update(run.step - bar.n)  # which falls if the run goes back
            if line := saves.line():
                bar.write(line)
    if run.stopped:
        print(f"stopped after step {run.step}, which is saved; the same command resumes")
        return
    measured = {name: value for name, value in run.metrics.items() if name not in step and not LEVEL.search(name)}
    if measured:
        print("last measured: " + ", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
    print(f"model: {run.out / 'model'}   curves: {run.out / 'curves.png'}   samples: {run.out / 'samples'}")
    for folder in run.other_models:
        print(f"another average: {folder}")
    if run.config.ema_snapshots:
        print(f"snapshots of averages: {run.out / 'ema'}   other averages from them: admg ema {run.out} --out DIR")


def progress(step: Mapping[str, float]) -> str:
    """Return the measurements of a step that the progress bar shows."""
    parts = [f"loss {step['loss']:.4f}", f"grad {step['grad_norm']:.3g}", f"lr {step['lr']:.3g}"]
    parts += [f"{step['images_per_second']:.3g} images/s", f"{step['data_wait']:.0%} waiting for data"]
    return ", ".join([*parts, *([f"{step['memory_gib']:.1f} GiB"] if "memory_gib" in step else [])])


class Saves:
    """Reports saved checkpoints: the first, the last, and at most one per minute between them."""

    def __init__(self, run: TrainingRun[Any]):
        self.run, self.said, self.time = run, run.saved, -PAUSE

    def line(self) -> str:
        """Return the message about a checkpoint written since the last call, "" for none."""
        saved, now = self.run.saved, time.monotonic()
        finished = saved == self.run.config.steps
        if saved == self.said or not (finished or now - self.time >= PAUSE):
            return ""
        first = self.time < 0
        self.said, self.time = saved, now
        if finished:
            return f"saved step {saved}; the same command with more --steps trains on"
        return f"saved step {saved}" + ("; the same command resumes" if first else "")


def rounded(value: Any) -> str:
    """Return a value as it would be typed, a number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else format_default(value)


def attention(network: Any) -> str:
    """Return a description of the sides at which a network has attention."""
    sides = [str(network.image_size >> level) for level in range(network.levels) if network.attends(level)]
    return f"attention at {', '.join(sides)} pixels" if sides else "attention only in the middle block"


def print_summary(run: TrainingRun[Any]) -> None:
    """Print the size of the data and of the network, and notes on missing features."""
    data = run.dataset
    skipped = getattr(data, "skipped", [])
    for path, reason in skipped[:10]:
        print(printable(f"skipped {path}: {reason}"), file=sys.stderr)
    if skipped:
        print(f"skipped {len(skipped)} files that are not images; {len(data)} are", file=sys.stderr)
    parameters = f"{run.parameters / 1e6:.2f} M parameters, {attention(run.learner.network.config)}"
    labels = f"{len(data.label_names)} labels" if data.label_names else "no labels"
    size = f"{data.image_size}x{data.image_size} pixels"
    print(f"{len(data)} images of {size}, {labels}; {parameters}; run directory {run.out}")
    chosen = run.provenance.get("chosen", {})
    if chosen := {name: value for name, value in chosen.items() if getattr(run.config, name, value) == value}:
        values = ", ".join(f"--{name.replace('_', '-')} {rounded(value)}" for name, value in chosen.items())
        print(f"defaults chosen for this data: {values}")
    if data.label_names:
        print(f"classes: {describe_classes(data)}")
    if empty := empty_classes(data):
        print(
            printable(f"note: no images of the class{'es' if len(empty) > 1 else ''} {listed(empty)}"),
            file=sys.stderr,
        )
    count = run.processes.count
    if count > 1:
        graphs = "; steps run without CUDA graphs" if run.learner.device.type == "cuda" else ""
        print(f"{count} processes, each with {run.config.batch_size // count} images of every batch{graphs}")
    if run.config.shard:
        print("weights divided among the processes (FSDP2): steps run without the kernels of admg")
    if run.config.log == ("auto",) and not services_of(run.config.log):
        print(
            "no TensorBoard scalars: `pip install 'admg[train]'` adds them; log.csv and curves.png are always written"
        )
    note_missing_kernels(run.learner.device)
