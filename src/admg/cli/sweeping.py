"""The cells of a sweep, and their figures, which are kept beside the samples."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from admg import __version__
from admg.engine.device import Processes, choose_device, from_torchrun
from admg.evaluation import features as networks
from admg.evaluation.evaluate import Comparison, choose_metrics
from admg.evaluation.features.extraction import Extractor, cache_path
from admg.evaluation.label_classifier import LabelClassifier, load_label_classifier
from admg.evaluation.opening import of_array
from admg.evaluation.report import MetricValue, to_rows
from admg.evaluation.sources import Source, open_source
from admg.files import atomic
from admg.generation.shards import NpzImages, Shards

from .stages import Stage
from .work import Work

KEPT = "metrics.json"
NEIGHBOURS = {"samples": 4, "reference images": 6}  # that figures of k-th neighbours need: prdc's k + 1
FIGURES = ("fid", "is", "precision", "recall", "accuracy")  # those of the paper, and of the labels


@dataclass(frozen=True)
class Cell:
    """One combination of the lists. scale: of the classifier's guidance; cfg: of classifier-free guidance; None: there
    is no list of it"""

    sampler: str
    steps: str
    scale: float | None
    cfg: float | None

    @property
    def name(self) -> str:
        """Of its folder: ddim-25-scale-4."""
        parts = [self.sampler, self.steps]
        parts += [f"{key}-{number(value)}" for key, value in self.scales.items()]
        return "-".join(parts)

    @property
    def title(self) -> str:
        return ", ".join([f"{self.sampler} {self.steps}", *(f"{k} {number(v)}" for k, v in self.scales.items())])

    @property
    def scales(self) -> dict[str, float]:
        return {k: v for k, v in (("scale", self.scale), ("cfg", self.cfg)) if v is not None}


def number(value: float) -> str:
    """As short as it can be told from all others."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


@dataclass(frozen=True)
class Row:
    """A finished cell. guidance: its kind; seconds: per image, None: not known"""

    cell: Cell
    guidance: str
    num: int
    figures: list[MetricValue]
    seconds: float | None = None


@dataclass(frozen=True)
class Keeper:
    """Figures of finished stages, each kept beside its samples under all that decides it.

    comparison: with the reference; judge: of the labels, or None
    """

    comparison: Comparison
    judge: LabelClassifier | None
    reference: str  # as it was named
    origin: str  # the reference's fingerprint

    def kept(self, stage: Stage, shards: Shards) -> tuple[list[MetricValue], float | None] | None:
        """The figures of the stage's samples as they are, and seconds per image; None: they are not there."""
        record = read_json(stage.out / KEPT)
        if record is None or not shards.target.is_file():
            return None
        wanted = json.loads(json.dumps(self.about(stage, shards)))
        if any(record.get(key) != value for key, value in wanted.items() if key != "reference"):
            return None
        try:
            figures = [MetricValue(**row | {"value": nan(row["value"])}) for row in record["metrics"]]
        except (KeyError, TypeError):  # not written by this version
            return None
        return figures, record.get("seconds_per_image")

    def make(self, stage: Stage, shards: Shards, seconds: float | None) -> None:
        """Compute the figures, and keep them; by process 0, which the others help."""
        labelled = shards.labelled and self.judge is not None
        samples = open_source(shards.target, labels=labelled)
        figures = self.comparison(samples, self.judge if labelled else None)
        if figures:
            if seconds is None:
                seconds = (read_json(stage.out / KEPT) or {}).get("seconds_per_image")
            about = self.about(stage, shards) | {"seconds_per_image": seconds}
            content = about | {"metrics": to_rows(figures)}
            with atomic(stage.out / KEPT) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def about(self, stage: Stage, shards: Shards) -> dict[str, Any]:
        """What decides the figures."""
        c = self.comparison
        return {
            "samples": fingerprint_npz(NpzImages(shards.target)),
            "images": shards.num,
            "reference": self.reference,
            "reference_images": len(c.reference),
            "reference_identity": self.origin,
            "network": c.network.name,
            "network_identity": c.network.identity,
            "label_classifier": self.judge and self.judge.name,
            "label_classifier_identity": self.judge and self.judge.identity,
            "chosen": [metric.name for metric in c.metrics],
            "interval": c.interval,
            "seed": c.seed,
            "admg": __version__,
        }


def load_keeper(args: argparse.Namespace, stage: Stage, how: Work) -> tuple[Keeper, list[str]]:
    """All that judges such a stage, and what figures cannot be had. ValueError: one that is asked for, or any at all.

    args: those of `admg sweep`
    """
    if args.feature_batch_size < 1:
        raise ValueError(f"--feature-batch-size must be at least 1, got {args.feature_batch_size}")
    args = argparse.Namespace(**vars(args) | {"batch_size": args.feature_batch_size})
    processes = Processes(how.rank, how.processes, from_torchrun("LOCAL_RANK", 0))
    channels, height, width = stage.model.shape
    samples = of_array(np.zeros((2, height, width, channels), np.uint8), "the samples")  # in the place of theirs
    samples.labels = np.array([0, max(0, stage.names.count - 1)])
    reference = open_source(args.reference, split=args.split).spread(args.num_reference)
    reference = reference.fitted((height, width), args.fit)
    network = networks.load(args.network, args.weights).to(choose_device(args.device, processes.local_rank))
    of = (network, samples, reference, args.label_classifier is not None)
    wanted = [m.strip() for m in args.metrics.split(",")] if args.metrics else None
    chosen, notes = choose_metrics(wanted, *of, default=FIGURES)
    check_neighbours([metric.name for metric in chosen], {"samples": args.num, "reference images": len(reference)})
    labels = any(metric.needs == "labels" for metric in chosen)
    judge = load_label_classifier(args.label_classifier, samples, network.device) if labels else None
    if judge:
        judge.count_correct(samples, 2)  # one that cannot judge such images must show now
    cache = cache_path(False if args.no_cache else args.cache or True)
    extractor = Extractor(network, cache, args.batch_size, processes, show=True)
    comparison = Comparison(reference, extractor, tuple(chosen), not args.no_interval)
    return Keeper(comparison, judge, args.reference, fingerprint(reference)), notes


def check_neighbours(metrics: Sequence[str], counts: Mapping[str, int]) -> None:
    """ValueError: too few images for one of the figures, which would show after hours of sampling."""
    found = [metric for metric in metrics if metric in ("precision", "recall", "density", "coverage")]
    for name, least in NEIGHBOURS.items():
        if found and counts[name] < least:
            raise ValueError(f"{counts[name]} {name}: {', '.join(found)} must have at least {least}; see --metrics")


def fingerprint_npz(images: NpzImages) -> str:
    """By the checksum that the file has of its images, so that they need not be read."""
    labels = b"" if images.labels is None else images.labels.tobytes()
    return f"{images.crc:08x} {hashlib.sha256(labels).hexdigest()[:12]} {images.shape}"


def fingerprint(source: Source) -> str:
    """Of a reference, without reading its images where there are other signs of a change."""
    digest = hashlib.sha256(f"{source.size} {source.channels} {source.fit}".encode())
    digest.update(np.asarray(source.numbers, np.int64).tobytes())
    if isinstance(source.images, NpzImages):
        digest.update(fingerprint_npz(source.images).encode())
    elif isinstance(source.images, np.ndarray):
        digest.update(np.ascontiguousarray(source.images).data)
    elif source.images is not None:
        for path in source.images:
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    if source.statistics is not None:
        for gaussian in (source.statistics.features, source.statistics.spatial):
            if gaussian is not None:
                digest.update(np.ascontiguousarray(gaussian.mean).data)
                digest.update(np.ascontiguousarray(gaussian.cov).data)
    return digest.hexdigest()[:24]


def read_json(path: Path) -> dict[str, Any] | None:
    """None: there is none that can be read."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else None
    return None


def nan(value: float | None) -> float:
    return float("nan") if value is None else value
