"""`admg evaluate SAMPLES REFERENCE`: the figures that a paper quotes. `admg evaluate nll` is evaluate_nll.py."""

from __future__ import annotations

import argparse
import json
import math
import warnings
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from admg.evaluation.evaluate import (
    METRICS,
    Figure,
    Judged,
    Options,
    accuracy,
    chosen_metrics,
    evaluate,
    needs_features,
)
from admg.evaluation.features import FeatureNetwork
from admg.evaluation.sources import Source
from admg.files import atomic, check_output_folder

from .judging import Judge, Processes, add_network_arguments, extract, load_judge, load_network, one_size, open_images

FEW = 10_000

EPILOG = """examples:
  admg evaluate samples_50000x256x256x3.npz VIRTUAL_imagenet256_labeled.npz
  admg evaluate out data/fashion-mnist --fit pad --network efficientnet-lite0 --classifier fashion-mnist --json out.json
  torchrun --nproc-per-node 8 -m admg.cli.main evaluate samples.npz reference.npz
  admg evaluate nll --model fashion-mnist --data data/fashion-mnist --fit pad    (its options: evaluate nll --help)

SAMPLES and REFERENCE are each an .npz as the published batches have it (arr_0 images, arr_1 labels; mu, sigma, mu_s,
sigma_s statistics of Inception), a folder of images, or a data set (IDX files). Stored statistics of the reference are
used for FID and sFID; all other figures need its images. FID and sFID are said of the 2015 Inception only."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("samples", metavar="SAMPLES", help="an .npz, or a folder of images")
    add("reference", metavar="REFERENCE", help="an .npz, a folder of images, or a data set")
    add("--metrics", metavar="A,B,...", help=f"which figures: {', '.join(METRICS)} (default: all that there can be)")
    add("--classifier", metavar="NAME", help="label accuracy: a noisy classifier's name, or file.py:name (see docs)")
    add("--num", type=int, metavar="N", help="samples, spread evenly over all there are (default: all)")
    add("--num-reference", type=int, metavar="N", help="reference images, likewise (default: all)")
    add("--interval", action=argparse.BooleanOptionalAction, default=True, help="95 %% intervals (default: yes)")
    add("--infinite", action="store_true", help="FID also as extrapolated to infinitely many samples")
    add("--seed", type=int, default=0, help="of the intervals' random draws (default: 0)")
    add("--json", metavar="FILE", help="write the figures there too")
    add_network_arguments(parser, split="test")


def run(args: argparse.Namespace) -> None:
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, got {args.seed}")
    processes = Processes.of_environment()
    if args.json:
        check_output_folder(Path(args.json).parent)
    metrics = [m.strip() for m in args.metrics.split(",")] if args.metrics else None
    samples = one_size(open_images(args.samples, args.num, args.split, labels=args.classifier is not None))
    reference = open_images(args.reference, args.num_reference, args.split)
    if samples.size is not None:
        reference = reference.fitted(samples.size, args.fit)
    network = load_network(args, processes)
    chosen, notes = chosen_metrics(metrics, network, samples, reference, labels=args.classifier is not None)
    judge = load_judge(args.classifier, samples, network.device) if "accuracy" in chosen else None
    options = Options(args.interval, args.infinite, args.seed)
    figures = Comparison(reference, network, chosen, options, args, processes)(samples, judge)
    if figures is None:
        return
    if samples.images is not None:
        warn_if_few(len(samples))
    print(text(figures, samples, reference, notes))
    if args.json:
        write_json(figures, about(args, samples, reference, network), Path(args.json))
        print(args.json)


@dataclass(eq=False)
class Comparison:
    """With a reference, whose features are computed once; args: of judging.extract."""

    reference: Source
    network: FeatureNetwork
    metrics: list[str]
    options: Options
    args: argparse.Namespace
    processes: Processes

    @cached_property
    def theirs(self) -> Judged:
        return self.judged(self.reference, "the reference")

    def __call__(self, samples: Source, judge: Judge | None) -> list[Figure] | None:
        """The figures; None: this is not process 0, which alone has all features."""
        ours, theirs = self.judged(samples, "the samples"), self.theirs
        if self.processes.rank:
            return None
        figures = evaluate(ours, theirs, self.network, self.metrics, self.options)
        return figures + ([accuracy(*judge.right(samples, self.args.batch_size), judge.name)] if judge else [])

    def judged(self, source: Source, what: str) -> Judged:
        """Features, if any of the figures needs them, and stored statistics, if they are of this network."""
        needed = needs_features(self.metrics, self.network, source, is_reference=source is self.reference)
        activations = extract(source, self.network, self.args, self.processes, what) if needed else None
        return Judged(activations, source.statistics if self.network.is_inception else None)


def warn_if_few(num: int) -> None:
    if num < FEW:
        warnings.warn(
            f"{num:,} samples: a FID of fewer than {FEW:,} is far too high, and compares only with others of as many",
            stacklevel=1,
        )


# -- output ----------------------------------------------------------------------------------------------------------


def text(figures: list[Figure], samples: Source, reference: Source, notes: list[str]) -> str:
    width = max(len(figure.name) for figure in figures) + 2
    lines = [f"{described(samples)} against {described(reference)}", ""]
    lines.append(f"{'':<{width}}{'':>10}  {'95 % interval':<20}  features of")
    for figure in figures:
        span = "" if figure.low is None or figure.high is None else f"{shown(figure.low)} .. {shown(figure.high)}"
        note = f" ({figure.note})" if figure.note else ""
        lines.append(f"{figure.name:<{width}}{shown(figure.value):>10}  {span:<20}  {figure.network}{note}")
    return "\n".join([*lines, *([""] if notes else []), *notes])


def described(source: Source) -> str:
    if source.images is None:
        return f"statistics of {source.name}"
    assert source.size is not None
    return f"{len(source):,} images of {source.name} ({source.size[1]}x{source.size[0]})"


def shown(value: float) -> str:
    """Four figures that count, but not fewer than three decimals of small ones."""
    return f"{value:.5f}" if abs(value) < 0.1 else f"{value:.4f}" if abs(value) < 10 else f"{value:.3f}"


def about(args: argparse.Namespace, samples: Source, reference: Source, network: FeatureNetwork) -> dict[str, Any]:
    return {
        "samples": args.samples,
        "reference": args.reference,
        "images": len(samples),
        "reference_images": len(reference),
        "image_size": samples.size,
        "network": network.name,
        "network_identity": network.identity,
        "fit": args.fit,
        "seed": args.seed,
    }


def write_json(figures: list[Figure], about: dict[str, Any], path: Path) -> None:
    """Values that are not finite are null."""
    rows = [
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(f).items()
        }
        for f in figures
    ]
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(about | {"figures": rows}, indent=1) + "\n", encoding="utf-8")
