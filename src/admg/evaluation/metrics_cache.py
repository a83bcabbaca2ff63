"""Metrics of a run, stored beside its samples together with everything that determines them."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from admg.checkpoints.provenance import installed_version
from admg.checksums import read_json, write_json
from admg.data.decoding import Decoding
from admg.data.members import stamp
from admg.files import atomic
from admg.generation.shards import NpzImages, Shards

from .evaluate import Comparison
from .label_classifier import LabelClassifier
from .report import MetricValue, to_rows
from .sources import Source, open_source

METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class MetricsCache:
    """Computes the metrics of finished runs, and stores them in metrics.json beside the samples.

    comparison: the comparison with the reference
    classifier: classifier for the label accuracy, or None
    reference: name of the reference
    identity: fingerprint of the reference
    """

    comparison: Comparison
    classifier: LabelClassifier | None
    reference: str
    identity: str

    def load(self, shards: Shards) -> tuple[list[MetricValue], float | None] | None:
        """Return the metrics of the samples as they are now, and seconds per image; None if they are not stored."""
        record = read_record(shards.folder / METRICS_FILE)
        if record is None or not shards.target.is_file():
            return None
        about = json.loads(json.dumps(self.about(shards)))
        if any(record.get(key) != value for key, value in about.items() if key != "reference"):
            return None
        try:
            rows = [row | {"value": nan(row["value"])} for row in record["metrics"]]
            values = msgspec.convert(rows, list[MetricValue])
            seconds = msgspec.convert(record.get("seconds_per_image"), float | None)
        except (KeyError, TypeError, msgspec.ValidationError):  # not written by this version
            return None
        return values, seconds

    def compute(self, shards: Shards, seconds: float | None) -> None:
        """Compute and store the metrics; process 0 writes them, and the others compute their share of the features."""
        classifier = self.classifier if shards.labelled else None
        samples = open_source(shards.target, labels=classifier is not None)
        values = self.comparison(samples, classifier)
        if not values and self.comparison.extractor.processes.rank:
            return
        if seconds is None:
            seconds = (read_record(shards.folder / METRICS_FILE) or {}).get("seconds_per_image")
        content = self.about(shards) | {"seconds_per_image": seconds, "metrics": to_rows(values)}
        with atomic(shards.folder / METRICS_FILE) as temporary:
            write_json(temporary, content)

    def about(self, shards: Shards) -> dict[str, Any]:
        """Return everything that determines the metrics."""
        c = self.comparison
        functions = {metric.name: metric.identity for metric in c.metrics if metric.identity}
        return {
            "samples": NpzImages(shards.target).fingerprint,
            "images": shards.num,
            "reference": self.reference,
            "reference_images": len(c.reference),
            "reference_identity": self.identity,
            "background": c.reference.decoding.background,
            "network": c.network.name,
            "network_identity": c.network.identity,
            "label_classifier": self.classifier and self.classifier.name,
            "label_classifier_identity": self.classifier and self.classifier.identity,
            "chosen": [metric.name for metric in c.metrics],
            **({"functions": functions} if functions else {}),
            "interval": c.interval,
            "seed": c.seed,
            "admg": installed_version(),
        }


def fingerprint_source(source: Source) -> str:
    """Return a fingerprint of a reference, without reading its images if file metadata reveal a change."""
    digest = hashlib.sha256(f"{source.size} {source.channels} {source.fit}{source.before}".encode())
    digest.update(np.asarray(source.numbers, np.int64).tobytes())
    if source.decoding != Decoding():
        digest.update(str(source.decoding).encode())
    if source.frames is not None:
        digest.update(np.asarray(source.frames, np.int64).tobytes())
    if isinstance(source.images, NpzImages):
        digest.update(source.images.fingerprint.encode())
    elif isinstance(source.images, np.ndarray):
        digest.update(np.ascontiguousarray(source.images).data)
    elif source.images is not None:
        for path in source.images:
            name, size, changed = stamp(path)
            digest.update(f"{name} {size} {changed}".encode())
    if source.statistics is not None:
        for gaussian in (source.statistics.features, source.statistics.spatial):
            if gaussian is not None:
                digest.update(np.ascontiguousarray(gaussian.mean).data)
                digest.update(np.ascontiguousarray(gaussian.cov).data)
    return digest.hexdigest()[:24]


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file, or None if it cannot be read or is damaged."""
    with suppress(OSError, ValueError):
        return read_json(path)
    return None


def nan(value: float | None) -> float:
    """Return a number of a JSON file, in which NaN is null."""
    return float("nan") if value is None else value
