"""`Report`: the values of metrics with their intervals, as a table or as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from admg.files import atomic

from .sources import Source


@dataclass(frozen=True)
class MetricValue:
    """The value of a metric.

    metric: name in options, such as "fid"
    name: display name, which includes the feature network: FID, or FD-<network>
    value: the value
    low, high: its 95 % interval, or None
    network: the feature network, or the classifier of the accuracy
    note: a remark about the value
    """

    metric: str
    name: str
    value: float
    low: float | None
    high: float | None
    network: str
    note: str = ""

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Report:
    """The values of the metrics of samples against a reference.

    `report["fid"]` is a value, `report.get("fid")` has its interval too, and `print(report)` shows a table.

    values: the values, in the order of the metrics
    samples, reference: names of the sources
    images, reference_images: numbers of images, 0 if only statistics were used
    image_size, reference_size: heights and widths, or None
    network, network_identity: name and checksum of the feature network
    fit: how the reference was fitted to the size of the samples, or None
    background: grey level behind transparent pixels and around padded images of the reference, if stated or found
    seed: seed of the random groups used for intervals
    notes: reasons why some metrics could not be computed
    """

    values: tuple[MetricValue, ...]
    samples: str = ""
    reference: str = ""
    images: int = 0
    reference_images: int = 0
    image_size: tuple[int, int] | None = None
    reference_size: tuple[int, int] | None = None
    network: str = ""
    network_identity: str = ""
    fit: str | None = None
    background: int | None = None
    seed: int = 0
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, metric: str) -> float:
        """Return the value of a metric. Raises KeyError if the report does not have it."""
        return self.get(metric).value

    def __contains__(self, metric: object) -> bool:
        return any(value.metric == metric for value in self.values)

    def get(self, metric: str) -> MetricValue:
        """Return the value of a metric with its interval. Raises KeyError if the report does not have it."""
        for value in self.values:
            if value.metric == metric:
                return value
        raise KeyError(f"no {metric!r} in this report: it has {', '.join(v.metric for v in self.values) or 'nothing'}")

    def __repr__(self) -> str:
        """The table of values, with intervals where available."""
        width = max((len(value.name) for value in self.values), default=0) + 2
        samples = images_text(self.samples, self.images, self.image_size)
        reference = images_text(self.reference, self.reference_images, self.reference_size)
        lines = [f"{samples} against {reference}", "", f"{'':<{width}}{'':>10}  {'95 % interval':<20}  features of"]
        for value in self.values:
            span = (
                ""
                if value.low is None or value.high is None
                else f"{format_value(value.low)} .. {format_value(value.high)}"
            )
            note = f" ({value.note})" if value.note else ""
            lines.append(f"{value.name:<{width}}{format_value(value.value):>10}  {span:<20}  {value.network}{note}")
        return "\n".join([*lines, *([""] if self.notes else []), *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, with None for numbers that are not finite."""
        content = {name: value for name, value in asdict(self).items() if name not in ("values", "notes")}
        return content | {"metrics": to_rows(self.values)}

    def to_json(self, path: Path | str | None = None) -> str:
        """Return the report as JSON, and write it to `path` if given."""
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        if path is not None:
            with atomic(Path(path).expanduser()) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return text


def to_rows(values: tuple[MetricValue, ...] | list[MetricValue]) -> list[dict[str, Any]]:
    """Return the values as dictionaries for JSON, with None for numbers that are not finite."""
    return [
        {
            key: None if isinstance(item, float) and not math.isfinite(item) else item
            for key, item in asdict(value).items()
        }
        for value in values
    ]


def images_text(name: str, images: int, size: tuple[int, int] | None) -> str:
    """Return `12 images of samples.npz (8x8)`."""
    if not images or size is None:
        return f"statistics of {name}"
    return f"{images:,} images of {name} ({size[1]}x{size[0]})"


def source_text(source: Source) -> str:
    """Return `12 images of samples.npz (8x8)`."""
    return images_text(source.name, len(source), source.size)


def format_value(value: float) -> str:
    """Return a number with about four significant digits, and at least three decimals if it is small."""
    return f"{value:.5f}" if abs(value) < 0.1 else f"{value:.4f}" if abs(value) < 10 else f"{value:.3f}"
