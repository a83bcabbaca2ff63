"""`evaluate`: the metrics of samples against a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from admg.config import check_integer, did_you_mean
from admg.data.arrays import Split
from admg.data.value_range import ValueRange
from admg.engine.device import Processes, choose_device
from admg.userfile import load_object
from admg.warn import warn

from . import features as networks
from .features import FeatureNetwork
from .features.base import check_channels
from .features.extraction import Extractor, cache_path
from .label_classifier import LabelClassifier, load_label_classifier
from .metrics import METRICS, Estimate, FeatureSet, Inputs, Metric
from .metrics.statistics import Gaussian
from .opening import ImageSource, as_source
from .progress import Show
from .report import MetricValue, Report
from .sources import Fit, Source

MIN_SAMPLES = 10_000

MetricFunction = Callable[[Any, Any], Estimate | float]
"""A user's metric: a function of the features (N, D) of samples and (M, D) of the reference."""


def evaluate(
    samples: ImageSource,
    reference: ImageSource,
    metrics: Sequence[str | MetricFunction | Metric] | None = None,
    features: str | nn.Module | FeatureNetwork = "inception",
    *,
    label_classifier: Any = None,
    num: int | None = None,
    num_reference: int | None = None,
    fit: Fit | None = None,
    value_range: ValueRange | None = None,
    background: int | None = None,
    split: Split = "test",
    interval: bool = True,
    infinite: bool = False,
    seed: int = 0,
    weights: str | None = None,
    batch_size: int = 50,
    device: str | torch.device = "auto",
    cache: Path | str | bool = True,
    processes: Processes | None = None,
    progress: Show = True,
) -> Report:
    """Return the metrics of samples against reference images, with 95 % confidence intervals.

    >>> rng = np.random.default_rng(0)
    >>> samples, reference = (rng.integers(0, 256, (64, 16, 16, 3), dtype=np.uint8) for _ in range(2))
    >>> report = admg.evaluate(samples, reference, ["precision", "recall"], features=network, progress=False)
    >>> report["precision"] > 0.5
    True

    samples, reference: uint8 arrays (N, H, W, C), float arrays or tensors (N, C, H, W) in [-1, 1], `Samples`, folders,
        .npz files or data sets; see `as_source` and `open_source`. Floats in [-1, 1] are truncated to 8 bits in
        samples, as for published metrics, and rounded in the reference
    metrics: names from METRICS, or functions of the features of samples and reference; by default all metrics that
        the network and the sources allow
    features: name of a feature network from features.NAMES, "file.py:name", or a module; see `features.load`
    label_classifier: a classifier for the label accuracy of samples with labels; see `load_label_classifier`
    num, num_reference: numbers of images, spread over all; by default all
    fit: how reference images of another size are fitted to that of the samples: "resize" or "pad"
    value_range: values of black and white in a folder of reference images; by default as `admg.data.open` finds them
    background: grey level behind transparent pixels of image files, and around padded reference images; by default
        white behind, and black around images if none is transparent, else white. A data set keeps its own
    split: "train" or "test", of data that have both
    interval: whether to compute confidence intervals over the draw of the samples
    infinite: whether to add FID extrapolated to infinitely many samples
    seed: seed of the random groups used for intervals
    weights: weight file of Inception, by default downloaded at first use
    batch_size: number of images per batch
    device: "auto", "cpu", "cuda" or a device
    cache: folder in which features are cached; True for the default folder, False for none
    processes: rank of this process and number of processes that share the work; reports of processes other than the
        first have no values
    progress: True for a bar, False for none, or a function that is called with a `Progress`
    Raises ValueError if a metric cannot be computed, or if sources, network and options do not fit together.
    """
    processes = processes or Processes()
    check_integer("seed", seed, 0)
    check_integer("batch_size", batch_size)
    if cache is False and processes.count > 1:
        raise ValueError("cache is required with several processes, which share features through it")
    reading: dict[str, Any] = {"split": split, "background": background}
    ours = one_size(as_source(samples, "the samples", labels=label_classifier is not None, **reading).subset(num))
    reading |= {"value_range": value_range, "real": True}
    theirs = as_source(reference, "the reference", **reading).subset(num_reference)
    if ours.size is not None:
        theirs = theirs.fitted(ours.size, fit)
    compare_channels(ours, theirs, features)
    network = networks.load(features, weights).to(choose_device(device, processes.local_rank))
    chosen, notes = choose_metrics(metrics, network, ours, theirs, label_classifier is not None, infinite)
    labels = any(metric.needs == "labels" for metric in chosen)
    if metrics is not None and label_classifier is not None and not labels:
        raise ValueError("label_classifier requires the metric accuracy")
    classifier = load_label_classifier(label_classifier, ours, network.device) if labels else None
    extractor = Extractor(network, cache_path(cache), batch_size, processes, progress)
    comparison = Comparison(theirs, extractor, tuple(chosen), interval, seed)
    values = comparison(ours, classifier)
    if values and ours.images is not None and any(metric.name in ("fid", "sfid") for metric in chosen):
        warn_if_few(len(ours))
    return comparison.report(ours, values, notes)


@dataclass(eq=False)
class Comparison:
    """Compares sets of samples with one reference, whose features are computed once.

    reference: the reference images
    extractor: computes the features
    metrics: the metrics to compute
    interval, seed: see `evaluate`
    """

    reference: Source
    extractor: Extractor
    metrics: tuple[Metric, ...]
    interval: bool = True
    seed: int = 0
    _computed: dict[str, FeatureSet] = field(default_factory=dict, init=False, repr=False)

    @property
    def network(self) -> FeatureNetwork:
        """The network that computes the features."""
        return self.extractor.network

    @cached_property
    def reference_features(self) -> FeatureSet:
        """The features of the reference."""
        return self._features(self.reference, "the reference")

    def __call__(self, samples: Source, classifier: LabelClassifier | None = None) -> list[MetricValue]:
        """Return the metrics of samples; none in processes other than the first, since only that one has all features.

        classifier: classifier for the label accuracy; None leaves the accuracy out
        """
        ours, theirs = self._features(samples, "the samples"), self.reference_features
        if self.extractor.processes.rank:
            return []
        correct = classifier.count_correct(samples, self.extractor.batch_size) if classifier else None
        name = classifier.name if classifier else ""
        inputs = Inputs(ours, theirs, self.network, self.interval, self.seed, correct, name)
        return compute(inputs, [m for m in self.metrics if m.needs != "labels" or classifier])

    def report(self, samples: Source, values: Sequence[MetricValue], notes: Sequence[str] = ()) -> Report:
        """Return the report of these values of samples."""
        return Report(
            values=tuple(values),
            samples=samples.name,
            reference=self.reference.name,
            images=len(samples),
            reference_images=len(self.reference),
            image_size=samples.size,
            reference_size=self.reference.size,
            network=self.network.name,
            network_identity=self.network.identity,
            fit=self.reference.fit,
            background=self.reference.decoding.background,
            seed=self.seed,
            notes=tuple(notes),
        )

    def _features(self, source: Source, name: str) -> FeatureSet:
        """Return the features if a metric needs them, and the stored statistics if they belong to this network."""
        needed = needs_features(self.metrics, self.network, source, is_reference=source is self.reference)
        activations = self.extractor(source, name) if needed else None
        return FeatureSet(activations, source.statistics if self.network.is_inception else None)


def compute(inputs: Inputs, metrics: Sequence[Metric]) -> list[MetricValue]:
    """Return the metrics of features, in their order."""
    return [value_of(metric, metric.compute(inputs), inputs) for metric in metrics]


def value_of(metric: Metric, estimate: Estimate, inputs: Inputs) -> MetricValue:
    """Return an estimate with the names that belong to it."""
    known = math.isfinite(estimate.low) and math.isfinite(estimate.high)
    known &= inputs.interval or metric.needs == "labels"
    low, high = (estimate.low, estimate.high) if known else (None, None)
    network = inputs.label_classifier if metric.needs == "labels" else inputs.network.name
    name = metric.display_name(inputs.network)
    return MetricValue(metric.name, name, estimate.value, low, high, network, metric.note(inputs))


def one_size(source: Source) -> Source:
    """Return the source. Raises ValueError if its images have several sizes."""
    if source.images is not None and source.size is None:
        raise ValueError(f"{source.name} has images of different sizes: samples must have one size")
    return source


def compare_channels(samples: Source, reference: Source, network: str | nn.Module | FeatureNetwork) -> None:
    """Raise ValueError if the channels of the images do not fit the reference or the feature network.

    Comparing grey images with colour ones is allowed, with a warning.
    """
    with_images = [source for source in (samples, reference) if source.images is not None]
    for source in with_images:
        check_channels(network, source.channels, f"the images of {source.name}")
    if {source.channels for source in with_images} == {1, 3}:
        grey, colour = sorted(with_images, key=lambda source: source.channels)
        warn(f"{grey.name} is grey and {colour.name} is in colour: comparing both as RGB")
    elif len({source.channels for source in with_images}) > 1:
        raise ValueError(
            f"{samples.name} has images of {samples.channels} channels, and {reference.name} of {reference.channels}"
        )


def warn_if_few(num: int) -> None:
    """Warn that distances of few samples are biased."""
    if num < MIN_SAMPLES:
        warn(
            f"{num:,} samples: the Fréchet distance of fewer than {MIN_SAMPLES:,} samples is far too high, and "
            f"comparable only with that of as many"
        )


# -- which metrics ---------------------------------------------------------------------------------------------------


def find_metric(metric: str | MetricFunction | Metric) -> Metric:
    """Return a metric from its name in METRICS, from "file.py:name" of a function, or from a function.

    Raises ValueError if there is no such metric.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        return Metric.of(metric)
    if ".py:" in metric:
        function, _ = load_object(metric)
        if not isinstance(function, Metric) and not callable(function):
            raise ValueError(f"{metric} is not a function of the features of samples and reference")
        return function if isinstance(function, Metric) else Metric.of(function, spec=metric)
    if metric not in METRICS:
        hint = did_you_mean(metric, METRICS)
        raise ValueError(f"unknown metric {metric!r}: {hint or 'choose from ' + ', '.join(METRICS)}")
    return METRICS[metric]


def choose_metrics(
    metrics: Sequence[str | MetricFunction | Metric] | None,
    network: FeatureNetwork,
    samples: Source,
    reference: Source,
    labels: bool,
    infinite: bool = False,
    default: Sequence[str] | None = None,
) -> tuple[list[Metric], list[str]]:
    """Return the metrics to compute, in the order of METRICS, and the reasons why others cannot be computed.

    metrics: the chosen ones; None for all of `default` that can be computed
    labels: whether there is a classifier for the label accuracy
    infinite: whether to add distances that are extrapolated to infinitely many samples
    default: names of the metrics for None; by default all of METRICS except the extrapolated ones
    Raises ValueError if a metric is unknown, if a chosen one cannot be computed, or if none can be.
    """
    requested = None if metrics is None else list(dict.fromkeys(find_metric(metric) for metric in metrics))
    default = [name for name, metric in METRICS.items() if metric.by_default] if default is None else default
    candidates = [METRICS[name] for name in default] if requested is None else requested

    def reason(metric: Metric) -> str:
        return reason_against(metric, network, samples, reference, labels)

    if requested is not None:
        names = [metric.name for metric in requested]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"metrics must have different names, but two are {twice!r}")
        for metric in requested:
            if reason(metric):
                raise ValueError(f"{metric.display_name(network)} cannot be computed: {reason(metric)}")
    chosen = [metric for metric in candidates if not reason(metric)]
    if not chosen:
        raise ValueError(f"no metric can be computed: {reason(METRICS['fid'])}")
    if infinite:
        more = [METRICS[f"{m.name}_infinite"] for m in chosen if f"{m.name}_infinite" in METRICS]
        if requested is not None and not more:
            raise ValueError("infinite requires the metric fid or sfid")
        candidates = [*candidates, *(metric for metric in more if metric not in candidates)]
        chosen += [metric for metric in more if metric not in chosen and not reason(metric)]
    order = list(METRICS.values())
    chosen.sort(key=lambda metric: order.index(metric) if metric in order else len(order))
    missing: dict[str, list[str]] = {}
    for metric in candidates:
        if reason(metric) and metric.needs != "labels":  # the accuracy is enabled by passing a classifier
            missing.setdefault(reason(metric), []).append(metric.display_name(network))
    return chosen, [f"no {', '.join(names)}: {reason}" for reason, names in missing.items()]


def reason_against(metric: Metric, network: FeatureNetwork, samples: Source, reference: Source, labels: bool) -> str:
    """Return why a metric cannot be computed, or "" if it can."""
    if metric.needs == "labels" and not labels:
        return "it needs a classifier"
    if metric.needs == "spatial" and not network.is_inception:
        return f"it is defined for the features of Inception, not for those of {network.name}"
    if metric.needs == "probabilities" and network.probabilities is None:
        return f"{network.name} does not predict classes"
    if metric.name.endswith("_infinite") and stored_statistics_for(samples, network, metric) is not None:
        return f"the stored statistics of the samples {samples.name} cannot be extrapolated"
    for source in (samples, reference) if metric.compares else (samples,):
        if source.images is None and stored_statistics_for(source, network, metric) is None:
            if metric.needs == "spatial":
                return f"{source.name} has no mu_s and sigma_s"
            of = "of Inception's features, " if metric.stored else ""
            return f"{source.name} holds statistics {of}and no images"
    for source, images, k in zip((samples, reference), ("samples", "reference images"), metric.neighbours):
        if source.images is not None and len(source) <= k:
            return f"{k} nearest neighbours need at least {k + 1} {images}, got {len(source)}"
    return ""


def needs_features(metrics: Sequence[Metric], network: FeatureNetwork, source: Source, is_reference: bool) -> bool:
    """Whether a metric needs the images of a source, because stored statistics are not enough."""
    if source.images is None:
        return False
    needed = [metric for metric in metrics if metric.needs != "labels" and (metric.compares or not is_reference)]
    return any(stored_statistics_for(source, network, metric) is None for metric in needed)


def stored_statistics_for(source: Source, network: FeatureNetwork, metric: Metric) -> Gaussian | None:
    """Return the stored statistics that are enough for a metric, or None."""
    if source.statistics is None or not network.is_inception or not metric.stored:
        return None
    return source.statistics.spatial if metric.needs == "spatial" else source.statistics.features
