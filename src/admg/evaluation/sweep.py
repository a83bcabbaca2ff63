"""`sweep`: samples and metrics over guides, samplers and steps. An interrupted sweep continues."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from admg.checkpoints.loading import as_model, name_of
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.weights import cached_digests
from admg.config import check_integer
from admg.data.arrays import Split
from admg.data.value_range import ValueRange
from admg.engine.compiling import Compile
from admg.engine.device import Processes, choose_device
from admg.engine.precision import Precision
from admg.files import check_output_folder, remove
from admg.generation import Job, JobOptions, Recipe
from admg.generation.acceleration import networks_of
from admg.generation.generate import plan as plan_stage
from admg.generation.labels import LabelsArgument, uses_labels
from admg.generation.progress import OnProgress
from admg.generation.sampler_specs import parse_sampler_options, sampler_options, set_options, with_options
from admg.generation.shards import Shards
from admg.generation.stage import Stage
from admg.generation.starts import TrainedReading
from admg.guidance import Guide
from admg.samplers import Sampler

from . import features as networks
from .cells import Cell, Row, SweepGuide, cells_of, guides_over, kind_of, named_guides, number, pairs_of
from .evaluate import MIN_SAMPLES, Comparison, MetricFunction, choose_metrics, compare_channels, warn_if_few
from .features import FeatureNetwork
from .features.extraction import Extractor, cache_path
from .label_classifier import load_label_classifier
from .metrics import Metric
from .metrics_cache import METRICS_FILE, MetricsCache, fingerprint_source
from .opening import ImageSource, as_source, source_from_array
from .report import source_text
from .sources import Fit, Source
from .table import SweepTable

METRICS = ("fid", "is", "precision", "recall", "accuracy")  # those of the paper, and of the labels
MAX_CELLS = 2000

OnCell = Callable[[int, int, Cell | None], Any]
"""on_cell(position, cells, cell) is called before each cell, and first with the number of finished cells and None."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Options for evaluating the cells of a sweep; see `evaluate`."""

    metrics: Sequence[str | MetricFunction | Metric] | None = None
    features: str | nn.Module | FeatureNetwork = "inception"
    label_classifier: Any = None
    num_reference: int | None = None
    fit: Fit | None = None
    split: Split = "test"
    value_range: ValueRange | None = None
    interval: bool = True
    weights: str | None = None
    batch_size: int = 50
    cache: Path | str | bool = True


def sweep(
    model: Model | str | Path,
    *,
    reference: ImageSource,
    out: Path | str = "sweep",
    guides: Sequence[Guide | None] | Mapping[str, Guide | None] | None = None,
    scales: Iterable[float] | None = None,
    cfgs: Iterable[float] | None = None,
    classifier: Classifier | str | Path | None = None,
    guide_specs: Sequence[str] = (),
    guide_interval: str | None = None,
    guide_reuse: int = 1,
    samplers: Sequence[str | tuple[str | Sampler, int | str]] = (),
    steps: Sequence[str] | None = None,
    sampler_options: Sequence[str] = (),
    labels: LabelsArgument = None,
    num: int = 10_000,
    seed: int = 0,
    unconditional: bool = False,
    bound_guidance: bool = True,
    sample_batch_size: int | None = None,
    precision: Precision = "auto",
    compile: Compile = "auto",
    device: str | torch.device = "auto",
    options: JobOptions | None = None,
    progress: bool | OnProgress = True,
    on_cell: OnCell | None = None,
    metrics: Sequence[str | MetricFunction | Metric] | None = None,
    features: str | nn.Module | FeatureNetwork = "inception",
    label_classifier: Any = None,
    num_reference: int | None = None,
    fit: Fit | None = None,
    split: Split = "test",
    value_range: ValueRange | None = None,
    interval: bool = True,
    weights: str | None = None,
    batch_size: int = 50,
    cache: Path | str | bool = True,
) -> SweepTable:
    """Sample and evaluate all combinations of guides, samplers and steps, each into a folder of `out`.

    The same call continues an interrupted sweep, and longer lists only add cells. Several processes can share one.
    out/sweep.csv, table.md and curves.png hold the finished cells of this call, and are written after each of them.

    >>> table = admg.sweep(
    ...     "fashion-mnist", reference=images, out=folder, scales=[0, 4], samplers=["ddim:2"], num=10,
    ...     features=network, metrics=["precision"], progress=False,
    ... )
    >>> [(row.cell.name, row["precision"] >= 0) for row in table]
    [('ddim-2-scale-0', True), ('ddim-2-scale-4', True)]

    model: a model, its name or its folder
    reference: reference images, see `evaluate`
    out: folder of the cells and results
    guides: guides, None for no guidance; a dictionary names them
    scales, cfgs: guidance scales of the classifier and of classifier-free guidance, instead of guides; all combinations
        are sampled, since the two kinds can be added
    classifier: the classifier of `scales`; by default the model's own
    guide_specs, guide_interval, guide_reuse: further guides and noise levels, as texts, and the number of steps per
        evaluation of the guides; see `generation.guide_specs.load_guides`
    samplers: names of samplers, or pairs with their steps, "ddim:25" or ("ddim", 25); by default the model's own
    steps: respacings of the schedule, for samplers without steps of their own; by default the model's own, or 25
    sampler_options: options of samplers, "eta=0.5"; each applies to the samplers that have it
    labels, num, seed, unconditional, bound_guidance, precision, compile: see `generate`; num is the number of samples
        per cell
    sample_batch_size: number of images per batch of sampling; by default as many as fit in memory
    device: "auto", "cpu", "cuda" or a device
    options: shards, processes and overwriting, see `JobOptions`
    progress: True for bars, False for none, or a function that is called with the progress of each sampling job
    on_cell: a function that is called before each cell, see OnCell
    metrics: see `evaluate`; by default fid, is, precision, recall and accuracy, where possible
    features, label_classifier, num_reference, fit, split, value_range, interval, weights, batch_size, cache: see
        `evaluate`; by default, image files of the reference are read as in the training of the model, if that is known
    Raises ValueError before anything is written if a cell cannot be sampled or evaluated.
    """
    planned = plan_sweep(
        model, out=out, guides=guides, scales=scales, cfgs=cfgs, classifier=classifier, guide_specs=guide_specs,
        guide_interval=guide_interval, guide_reuse=guide_reuse, samplers=samplers, steps=steps,
        sampler_options=sampler_options, labels=labels, num=num, seed=seed, unconditional=unconditional,
        bound_guidance=bound_guidance, sample_batch_size=sample_batch_size, precision=precision, compile=compile,
        device=device, options=options,
    )  # fmt: skip
    evaluation = Metrics(
        metrics=metrics, features=features, label_classifier=label_classifier, num_reference=num_reference, fit=fit,
        split=split, value_range=value_range, interval=interval, weights=weights, batch_size=batch_size, cache=cache,
    )  # fmt: skip
    return planned.run(reference, evaluation, progress, on_cell)


def plan_sweep(
    model: Model | str | Path,
    *,
    out: Path | str = "sweep",
    guides: Sequence[Guide | None] | Mapping[str, Guide | None] | None = None,
    scales: Iterable[float] | None = None,
    cfgs: Iterable[float] | None = None,
    classifier: Classifier | str | Path | None = None,
    guide_specs: Sequence[str] = (),
    guide_interval: str | None = None,
    guide_reuse: int = 1,
    samplers: Sequence[str | tuple[str | Sampler, int | str]] = (),
    steps: Sequence[str] | None = None,
    sampler_options: Sequence[str] = (),
    labels: LabelsArgument = None,
    num: int = 10_000,
    seed: int = 0,
    unconditional: bool = False,
    bound_guidance: bool = True,
    sample_batch_size: int | None = None,
    precision: Precision = "auto",
    compile: Compile = "auto",
    device: str | torch.device = "auto",
    options: JobOptions | None = None,
) -> Sweep:
    """Return the cells that `sweep` would sample, without running or writing anything; `print` lists what is missing.

    The arguments and errors are those of `sweep`.
    """
    check_integer("num", num, 2)
    name = str(model) if isinstance(model, str | Path) else name_of(model)
    pairs = pairs_of(samplers, steps, name)
    network = as_model(model)
    if guides is not None and (scales is not None or cfgs is not None or guide_specs):
        raise ValueError("guides cannot be combined with scales, cfgs or guide_specs")
    found = named_guides(guides) if guides is not None else guides_over(
        network, scales=scales, cfgs=cfgs, classifier=classifier, specs=guide_specs, interval=guide_interval,
        reuse=guide_reuse,
    )  # fmt: skip
    if (count := len(found) * len(pairs)) > MAX_CELLS:
        raise ValueError(
            f"a sweep must have at most {MAX_CELLS:,} cells, got {count:,} from {len(found):,} guides and "
            f"{len(pairs):,} samplers with their steps"
        )
    out, chosen = Path(out).expanduser(), choose_device(device)
    for module in (part for guide in found for part in networks_of(network, guide.guide)):
        module.to(chosen)
    check_options(pairs, sampler_options)
    recipe = Recipe(
        seed=seed, unconditional=unconditional, bound_guidance=bound_guidance, batch_size=sample_batch_size,
        precision=precision, compile=compile,
    )  # fmt: skip
    stages: dict[Cell, Stage] = {}
    for cell, (sampler, guide) in cells_of(pairs, found).items():
        own = parse_sampler_options(sampler, options_of(sampler, sampler_options))
        of_cell = dataclasses.replace(recipe, guide=guide, sampler=with_options(sampler, own), steps=cell.steps)
        used = labels if uses_labels(network, guide, unconditional) else None
        stages[cell] = plan_stage(network, used, of_cell, out=out / cell.name, num=num)
    job = options or JobOptions()
    job = dataclasses.replace(job, images=bool(job.images))  # by default no PNG files
    return Sweep(out, {cell: Job((stage,), job) for cell, stage in stages.items()}, job, describe_guides(found))


def check_options(pairs: Sequence[tuple[str | Sampler, str]], given: Sequence[str]) -> None:
    """Raise ValueError for an option that no sampler has."""
    known = {name for sampler, _ in pairs for name in sampler_options(sampler)}
    for text in given:
        if text.partition("=")[0] not in known:
            parse_sampler_options(pairs[0][0], [text])


def options_of(sampler: str | Sampler, given: Sequence[str]) -> list[str]:
    """Return the options that this sampler has."""
    known = sampler_options(sampler)
    return [text for text in given if text.partition("=")[0] in known]


def describe_guides(guides: Sequence[SweepGuide]) -> list[str]:
    """Return the kinds of guidance, each once."""
    return list(dict.fromkeys(kind_of(guide.guide) for guide in guides))


@dataclass(frozen=True, repr=False)
class Sweep:
    """The cells of a sweep as jobs.

    out: folder of the cells and results
    jobs: the job of each cell
    options: options of the jobs
    guidance: the kinds of guidance in the sweep
    """

    out: Path
    jobs: dict[Cell, Job]
    options: JobOptions
    guidance: list[str]

    @cached_digests()
    def __repr__(self) -> str:
        lines, left = [], 0
        for cell, job in self.jobs.items():
            (missing,), stage = job.missing(), self.stage(cell)
            left += missing * stage.steps
            kind = kind_of(stage.recipe.guide)
            lines.append(f"{cell.name:<32} {missing:>9,} images to sample, {stage.steps} steps each; guidance: {kind}")
        return "\n".join([*lines, f"{len(self.jobs)} cells, {left:,} network evaluations to sample"])

    def stage(self, cell: Cell) -> Stage:
        """Return the stage of a cell."""
        return self.jobs[cell].stages[0]

    @property
    def num(self) -> int:
        """The number of samples per cell."""
        return len(self.stage(next(iter(self.jobs))).labels)

    @cached_digests()
    def run(
        self,
        reference: ImageSource,
        metrics: Metrics | None = None,
        progress: bool | OnProgress = True,
        on_cell: OnCell | None = None,
    ) -> SweepTable:
        """Sample and evaluate the missing cells, and return the table. See `sweep`.

        Raises ValueError before anything is written if a cell cannot be sampled or evaluated.
        """
        metrics, first = metrics or Metrics(), self.options.process == 0
        shards = {cell: job.check()[0] for cell, job in self.jobs.items()}
        labelled = [cell for cell in self.jobs if shards[cell].labelled]
        if metrics.label_classifier is not None and not labelled:
            raise ValueError("label_classifier needs labels, but neither the model nor a guide uses any")
        keeper, notes = self.keeper(reference, metrics, (labelled or [*self.jobs])[0], bool(progress) and first)
        self.try_out(shards)
        check_output_folder(self.out)
        jobs = self.cleared() if self.options.overwrite else self.jobs
        if first:
            warn_if_few(self.num)
        rows = {cell: row for cell in jobs if (row := self.row(cell, shards[cell], keeper)) is not None}
        todo = [cell for cell in jobs if cell not in rows]
        if on_cell and rows:
            on_cell(len(rows), len(jobs), None)
        if todo:
            _ = keeper.comparison.reference_features  # an unusable reference must fail before hours of sampling
        for cell in todo:
            if on_cell:
                on_cell(list(jobs).index(cell), len(jobs), cell)
            seconds = sample_cell(jobs[cell], progress)
            keeper.compute(shards[cell], seconds)
            if (row := self.row(cell, shards[cell], keeper)) is not None:
                rows[cell] = row
            if first:
                self.table(rows, keeper, notes).write(self.out)
        table = self.table(rows, keeper, notes)
        if first:
            table.write(self.out)
        return table

    def cleared(self) -> dict[Cell, Job]:
        """Remove the runs and the metrics of all cells, and return the jobs that make them again."""
        with ExitStack() as stack:
            for job in self.jobs.values():
                stack.enter_context(job.held())
            for job in self.jobs.values():
                job.clear()
                remove(job.folder / METRICS_FILE)
        options = dataclasses.replace(self.options, overwrite=False)
        return {cell: dataclasses.replace(job, options=options) for cell, job in self.jobs.items()}

    def row(self, cell: Cell, shards: Shards, keeper: MetricsCache) -> Row | None:
        """Return the row of a cell in the table, or None if it is not finished."""
        found = keeper.load(shards)
        guidance = cell.guide or kind_of(self.stage(cell).recipe.guide)
        return None if found is None else Row(cell, guidance, shards.num, *found)

    def try_out(self, shards: Mapping[Cell, Shards]) -> None:
        """Run one step of each sampler with each kind of guidance. Raises ValueError if they do not fit together."""
        stages = [self.stage(cell) for cell in self.jobs if not shards[cell].target.exists()]
        for stage in {(str(stage.recipe.sampler), kind_of(stage.recipe.guide)): stage for stage in stages}.values():
            stage.try_out()

    def keeper(
        self, reference: ImageSource, metrics: Metrics, cell: Cell, show: bool
    ) -> tuple[MetricsCache, list[str]]:
        """Return the evaluator of the cells, and the reasons why some metrics cannot be computed.

        cell: a cell, with labels if there is one
        Raises ValueError if a chosen metric, or any metric at all, cannot be computed.
        """
        check_integer("batch_size", metrics.batch_size)
        stage = self.stage(cell)
        channels, height, width = stage.model.shape
        samples = source_from_array(
            np.zeros((2, height, width, channels), np.uint8), "the samples"
        )  # stand for those of a cell
        samples.labels = np.array([0, max(0, stage.table.count - 1)])
        samples.names_of_numbers = stage.table.names
        reading = TrainedReading.from_model(stage.model).options(metrics.value_range)
        source = as_source(reference, "the reference", split=metrics.split, real=True, **reading)
        source = source.subset(metrics.num_reference)
        source = source.fitted((height, width), metrics.fit)
        compare_channels(samples, source, metrics.features)
        processes = Processes(self.options.process, self.options.processes, Processes.from_environment().local_rank)
        network = networks.load(metrics.features, metrics.weights).to(stage.model.device)
        labels = metrics.label_classifier is not None
        every = dataclasses.replace(samples, numbers=range(self.num))
        chosen, notes = choose_metrics(metrics.metrics, network, every, source, labels, default=METRICS)
        classifier = None
        if any(metric.needs == "labels" for metric in chosen):
            classifier = load_label_classifier(metrics.label_classifier, samples, network.device)
            classifier.count_correct(samples, 2)  # fail before hours of sampling
        extractor = Extractor(network, cache_path(metrics.cache), metrics.batch_size, processes, show)
        comparison = Comparison(source, extractor, tuple(chosen), metrics.interval)
        return MetricsCache(comparison, classifier, source.name, fingerprint_source(source)), notes

    def table(self, rows: Mapping[Cell, Row], keeper: MetricsCache, notes: Sequence[str]) -> SweepTable:
        """Return the table of these rows, in the order of the cells."""
        stage, comparison = self.stage(next(iter(self.jobs))), keeper.comparison
        name, num, network = stage.name or "the model", self.num, comparison.network.name
        caption = f"{num:,} samples of {name} per row ({', '.join(self.constants(stage))}) against "
        caption += f"{source_text(comparison.reference)}, in features of {network}"
        caption += f"; accuracy: of the labels, by {keeper.classifier.name}" if keeper.classifier else ""
        caption += ". Bold: best of each column. sweep.csv has all digits"
        caption += " and 95 % intervals." if comparison.interval else "."
        if num < MIN_SAMPLES:
            caption += f"\n\nFewer than {MIN_SAMPLES:,} samples: distances are far too high, and comparable only with "
            caption += "those of as many."
        model, data = (Path(n).name if Path(n).exists() else n for n in (name, comparison.reference.name))
        title = f"{model}: {num:,} samples per point against {data}, in features of {network}"
        return SweepTable([rows[cell] for cell in self.jobs if cell in rows], title, caption, tuple(notes))

    def constants(self, stage: Stage) -> list[str]:
        """Return a description of the settings that all cells share."""
        recipe = stage.recipe
        found = [f"seed {recipe.seed}", f"precision {recipe.precision}"]
        found += ["network not conditioned on the labels"] if recipe.unconditional else []
        found += [] if recipe.bound_guidance else ["gradients not bounded"]
        options = {k: v for job in self.jobs.values() for k, v in set_options(job.stages[0].recipe.sampler).items()}
        found += [f"{key} {number(value) if isinstance(value, float) else value}" for key, value in options.items()]
        return found


def sample_cell(job: Job, progress: bool | OnProgress) -> float | None:
    """Sample the missing images of a cell; return seconds per image, if one process sampled all of them."""
    (left,) = job.missing()
    start = time.perf_counter()
    job.run(progress, wait=True)
    return (time.perf_counter() - start) / left if left and job.options.processes == 1 else None


__all__ = ["Metrics", "Source", "Sweep", "plan_sweep", "sweep"]
