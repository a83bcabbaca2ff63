"""The figures of a set of samples against a reference: which there can be, and each with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .features import Activations, FeatureNetwork
from .metrics.fid import frechet_distance, frechet_estimate, frechet_infinite, group_moments
from .metrics.inception_score import inception_score
from .metrics.intervals import GROUPS, Estimate, wilson
from .metrics.kid import kid
from .metrics.precision_recall import Manifold, prdc
from .metrics.statistics import Gaussian, Moments
from .sources import Source, Stored

METRICS = ("fid", "sfid", "is", "kid", "precision", "recall", "density", "coverage", "accuracy")


@dataclass(frozen=True)
class Figure:
    """A figure, with all that must be said with it.

    metric: one of METRICS; name: what it is called, which tells FID from FD-<network>
    low, high: its 95 % interval, or None
    network: whose features it is in; of the accuracy, which classifier's
    note: what else belongs to it
    """

    metric: str
    name: str
    value: float
    low: float | None
    high: float | None
    network: str
    note: str = ""


@dataclass(frozen=True)
class Options:
    """interval: with 95 % intervals; infinite: FID also at infinitely many samples; seed: of random draws"""

    interval: bool = True
    infinite: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Judged:
    """Samples or a reference, as the figures see them: features, stored statistics, or both."""

    activations: Activations | None = None
    stored: Stored | None = None


@dataclass(frozen=True)
class Formulas:
    """Each figure of METRICS but the accuracy; what several need is computed once."""

    samples: Judged
    reference: Judged
    network: FeatureNetwork
    options: Options

    def __call__(self, metric: str) -> list[Figure]:
        if metric in ("fid", "sfid"):
            return self.frechet(metric)
        if metric == "is":
            assert self.network.probabilities is not None
            return [self.figure(metric, inception_score(self.network.probabilities(features_of(self.samples))))]
        if metric == "kid":
            return [self.figure(metric, kid(features_of(self.samples), features_of(self.reference)))]
        return [self.figure(metric, getattr(self.manifold, metric))]

    @cached_property
    def manifold(self) -> Manifold:
        groups = GROUPS if self.options.interval else 0
        return prdc(features_of(self.samples), features_of(self.reference), seed=self.options.seed, groups=groups)

    def frechet(self, metric: str) -> list[Figure]:
        """The distance, and with `infinite` that of endlessly many samples; stored statistics have neither interval."""
        reference, own = (stored_or_computed(judged, metric) for judged in (self.reference, self.samples))
        reference = reference if isinstance(reference, Gaussian) else Gaussian.of(reference)
        if isinstance(own, Gaussian):
            return [self.figure(metric, Estimate(frechet_distance(own, reference)), "of stored statistics")]
        parts = group_moments(own, self.options.seed)
        if self.options.interval:
            estimate = frechet_estimate(parts, reference)
        else:
            estimate = Estimate(frechet_distance(Moments.join(parts).gaussian(), reference))
        figures = [self.figure(metric, estimate)]
        if self.options.infinite:
            endless = frechet_infinite(parts, reference, estimate.error)
            figures.append(self.figure(metric, endless, "at infinitely many samples, extrapolated"))
        return figures

    def figure(self, metric: str, estimate: Estimate, note: str = "") -> Figure:
        known = self.options.interval and math.isfinite(estimate.low) and math.isfinite(estimate.high)
        low, high = (estimate.low, estimate.high) if known else (None, None)
        return Figure(metric, figure_name(metric, self.network), estimate.value, low, high, self.network.name, note)


def features_of(judged: Judged) -> np.ndarray:
    assert judged.activations is not None
    return judged.activations.features


def stored_or_computed(judged: Judged, metric: str) -> Gaussian | np.ndarray:
    """Stored statistics, as the published evaluator takes them before it looks at images; else the features."""
    spatial = metric == "sfid"
    if judged.stored is not None:
        found = judged.stored.spatial if spatial else judged.stored.features
        if found is not None:
            return found
    assert judged.activations is not None
    features = judged.activations.spatial if spatial else judged.activations.features
    assert features is not None
    return features


def evaluate(
    samples: Judged, reference: Judged, network: FeatureNetwork, metrics: Sequence[str], options: Options
) -> list[Figure]:
    """The figures, in the order of the metrics; accuracy, which needs no features, is `accuracy`."""
    formulas = Formulas(samples, reference, network, options)
    return [figure for metric in metrics if metric != "accuracy" for figure in formulas(metric)]


def accuracy(right: int, count: int, classifier: str) -> Figure:
    """The share of labelled samples that a classifier takes for their label."""
    name, (low, high) = figure_name("accuracy", None), wilson(right, count)
    return Figure("accuracy", name, right / count, low, high, classifier, f"{right}/{count}")


def figure_name(metric: str, network: FeatureNetwork | None) -> str:
    """FID, sFID, IS and KID are Inception's; in other features the distances are called otherwise."""
    if network is None or metric not in ("fid", "sfid", "is", "kid"):
        return metric.capitalize()
    own = "" if network.is_inception else f"-{network.name}"
    names = {"fid": network.distance, "sfid": "sFID", "is": f"IS{own}", "kid": "KID" if not own else f"KD{own}"}
    return names[metric]


def chosen_metrics(
    wanted: Sequence[str] | None, network: FeatureNetwork, samples: Source, reference: Source, labels: bool
) -> tuple[list[str], list[str]]:
    """The figures to compute, in the order of METRICS, and why others cannot be (if all were wanted).

    wanted: None: all that there can be; labels: whether there is a classifier for the label accuracy
    ValueError: an unknown figure, one that was asked for and cannot be, or none at all.
    """
    unknown = [metric for metric in wanted or () if metric not in METRICS]
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}: {', '.join(METRICS)}")
    reasons = {metric: reason_against(metric, network, samples, reference, labels) for metric in METRICS}
    if wanted is not None:
        for metric in wanted:
            if reasons[metric]:
                raise ValueError(f"{figure_name(metric, network)} cannot be had: {reasons[metric]}")
        return [metric for metric in METRICS if metric in wanted], []
    chosen = [metric for metric in METRICS if not reasons[metric]]
    if not chosen:
        raise ValueError(f"no figure can be had: {reasons['fid']}")
    missing: dict[str, list[str]] = {}
    for metric in METRICS:
        if reasons[metric] and metric != "accuracy":  # that nobody asked for without naming a classifier
            missing.setdefault(reasons[metric], []).append(figure_name(metric, network))
    return chosen, [f"no {', '.join(names)}: {reason}" for reason, names in missing.items()]


def reason_against(metric: str, network: FeatureNetwork, samples: Source, reference: Source, labels: bool) -> str:
    """Why there can be no such figure; "": there can."""
    if metric == "accuracy" and not labels:
        return "it needs a classifier"
    if metric == "sfid" and not network.is_inception:
        return f"it is said of Inception's features, not of {network.name}"
    if metric == "is" and network.probabilities is None:
        return f"{network.name} tells no classes"
    seen = (samples,) if metric in ("is", "accuracy") else (samples, reference)
    for source in seen:
        if source.images is None and stored(source, network, metric) is None:
            if metric == "sfid":
                return f"{source.name} has no mu_s and sigma_s"
            of = "of Inception's features, " if metric == "fid" else ""
            return f"{source.name} holds statistics {of}and no images"
    return ""


def needs_features(metrics: Sequence[str], network: FeatureNetwork, source: Source, is_reference: bool) -> bool:
    """Whether the figures need the source's images, or its stored statistics are enough."""
    if source.images is None:
        return False
    needed = [metric for metric in metrics if metric != "accuracy" and not (is_reference and metric == "is")]
    return any(stored(source, network, metric) is None for metric in needed)


def stored(source: Source, network: FeatureNetwork, metric: str) -> Gaussian | None:
    """The statistics that are stored for FID or sFID, as the published evaluator takes them; None: there are none."""
    if source.statistics is None or not network.is_inception:
        return None
    return {"fid": source.statistics.features, "sfid": source.statistics.spatial}.get(metric)
