"""`admg ema`: averages of other lengths from the snapshots of a run, and their comparison."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from admg.checkpoints import native
from admg.config import check, check_used, group, setting
from admg.evaluation.cells import Row
from admg.evaluation.report import format_value
from admg.evaluation.sweep import METRICS, Metrics, Sweep, plan_sweep
from admg.files import atomic, check_output_folder
from admg.generation import JobOptions
from admg.training.posthoc import Reconstruction, as_length, reach, steps_until

from .feature_options import FeatureOptions
from .sampling_options import SamplingOptions, ShowProgress
from .tables import table

EXAMPLES = """\
  admg train --data photos --image-size 64 --ema-snapshots 1000 --out runs/photos
  admg ema runs/photos --length 5%,10%,15% --out lengths
  admg sample --model lengths/length-0.15 --out samples
  admg ema runs/photos --length 3%,5%,7%,10%,15%,20% --reference photos --num 2000 --out lengths    compare them
  admg ema runs/photos --length 10% --step 50000 --out earlier"""

LENGTHS = ("5%", "10%", "15%", "20%")


@dataclass(frozen=True, kw_only=True)
class Options:
    __doc__ = f"""Make averages of any length from the snapshots of a run, and compare them with a reference.

    The length of an average is the share of the run that it covers: the standard deviation of its weights over time,
    relative to the step (sigma_rel in Karras et al. 2024). Training with --ema-snapshots makes it possible to choose it
    afterwards. Each model is written to OUT/length-LENGTH/model. With --reference, images are sampled with each model
    and compared with the reference, as admg sweep does; OUT/lengths.csv holds the metrics.

    run: run directory of a training run with --ema-snapshots
    length: lengths, such as 10% or 0.1
    step: step of the averages, one that has a snapshot (default: the last)
    out: folder of the models
    overwrite: replace models of other runs or steps in OUT, and their samples
    reference: an .npz, a folder of images, or a data set to compare samples with (default: no comparison)
    num: number of samples per length
    num_reference: number of reference images, spread over all (default: all)
    metrics: metrics as for admg evaluate (default: {",".join(METRICS)}, where possible)
    no_interval: do not compute 95 % intervals
    split: part of the reference data, if there are both a train and a test part
    """

    run: Path = setting(positional=True, metavar="RUN")
    length: tuple[str, ...] | None = setting(
        None, metavar="L1,L2,...", default_text=f"{','.join(LENGTHS)}, as far as the snapshots allow"
    )
    step: int | None = setting(None, min=1)
    out: Path = setting(metavar="DIR")
    overwrite: bool = False
    reference: str | None = setting(None, metavar="DATA")
    num: int = setting(2000, min=2)
    num_reference: int | None = setting(None, min=2)
    metrics: tuple[str, ...] | None = None
    no_interval: bool = False
    split: Literal["train", "test"] = "test"
    sampling: SamplingOptions = group(SamplingOptions, omit=("no_bound_guidance",))
    features: FeatureOptions = group(FeatureOptions, omit=("batch_size", "device", "background"))

    def __post_init__(self) -> None:
        check(self)
        if self.length == ():
            raise ValueError("length must be a list such as 5%,10%,15%")
        for length in self.length or ():
            as_length(length)
        check_used(self, "reference", "num", "num_reference", "metrics", "no_interval", "split")
        for given, default in ((self.sampling, SamplingOptions()), (self.features, FeatureOptions())):
            for field in dataclasses.fields(given):
                if self.reference is None and getattr(given, field.name) != getattr(default, field.name):
                    raise ValueError(f"{field.name} requires --reference")

    def plans(self) -> dict[float, Reconstruction]:
        """Return the averages to make, by their length."""
        lengths: Sequence[str] = self.length or ()
        if self.length is None:
            shortest, longest = reach(steps_until(self.run, self.step))
            lengths = [length for length in LENGTHS if shortest <= as_length(length) <= longest]
        found = (Reconstruction.plan(self.run, length, self.step) for length in lengths)
        return {plan.length: plan for plan in found}

    def sweep(self, model: Path, out: Path) -> Sweep:
        """Return the sampling of a model as a sweep of a single cell."""
        sampling = self.sampling
        return plan_sweep(
            str(model),
            out=out,
            samplers=[sampling.sampler] if sampling.sampler else (),
            steps=[sampling.steps] if sampling.steps else None,
            num=self.num,
            options=JobOptions(overwrite=self.overwrite),
            **sampling.of_sweep,
        )

    def evaluation(self) -> Metrics:
        """Return the options for comparing samples with the reference."""
        return Metrics(
            metrics=self.metrics,
            num_reference=self.num_reference,
            split=self.split,
            interval=not self.no_interval,
            **self.features.of_sweep,
        )


def run(options: Options) -> None:
    """Write the models, and print a table of the lengths with the metrics of their samples."""
    plans = options.plans()
    folders = {length: options.out / f"length-{length:.10g}" for length in plans}
    there = {x for x in plans if not options.overwrite and plans[x].is_at(folders[x] / "model")}
    if options.reference is not None:
        check_reference(options, options.reference)
    check_output_folder(options.out)
    for length, plan in plans.items():
        if length not in there:
            plan.model().save(folders[length] / "model")
    rows: dict[float, Row] = {}
    names: dict[str, str] = {}
    if options.reference is not None:
        for length, folder in folders.items():
            print(f"length {length:g}: {folder}")
            result = options.sweep(folder, folder).run(
                options.reference, options.evaluation(), ShowProgress(JobOptions())
            )
            rows[length], names = result[0], names | result.names
            write_csv(options.out / "lengths.csv", plans, rows, names)
    print(table_of(plans, rows, names))
    print(f"models: {options.out / 'length-*'}" + (f"   metrics: {options.out / 'lengths.csv'}" if rows else ""))


def check_reference(options: Options, reference: str) -> None:
    """Raise ValueError, before anything is written, if samples of the run cannot be made or compared."""
    kind = native.read_about(options.run / "model").kind
    if kind != "diffusion":
        raise ValueError(f"--reference requires a diffusion model, but {options.run} is a run of a {kind}")
    planned = options.sweep(options.run, options.out)
    planned.keeper(reference, options.evaluation(), next(iter(planned.jobs)), show=False)


def table_of(plans: Mapping[float, Reconstruction], rows: Mapping[float, Row], names: Mapping[str, str]) -> str:
    """Return a table of the lengths: the error of the fit, and the metrics if there are any."""
    lines = []
    for length, plan in plans.items():
        values = [rows[length].get(name) for name in names] if length in rows else []
        lines.append([f"{length:g}", f"{plan.fit.error:.2%}", *(format_value(v.value) if v else "" for v in values)])
    return table(["length", "error of the fit", *names.values()], lines)


def write_csv(
    path: Path, plans: Mapping[float, Reconstruction], rows: Mapping[float, Row], names: Mapping[str, str]
) -> None:
    """Write the metrics of the lengths that are done, with all digits and 95 % intervals."""
    ends = ("", " low", " high")
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["length", "error of the fit", *(name + end for name in names.values() for end in ends)])
        for length, row in rows.items():
            values = [row.get(name) for name in names]
            numbers = [number for v in values for number in ((v.value, v.low, v.high) if v else ("", "", ""))]
            writer.writerow([length, plans[length].fit.error, *numbers])
