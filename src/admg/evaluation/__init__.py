"""Metrics of samples against a reference, sweeps, likelihoods, nearest neighbours, and diagnosis of checkpoints."""

from __future__ import annotations

from .cells import Cell, Row
from .evaluate import evaluate
from .label_classifier import LabelClassifier
from .metrics import METRICS, Estimate, Metric
from .neighbours import Neighbours, neighbours
from .nll import NLLReport, nll
from .progress import Progress
from .report import MetricValue, Report
from .sweep import Sweep, plan_sweep, sweep
from .table import SweepTable

__all__ = [
    "METRICS",
    "Cell",
    "Estimate",
    "LabelClassifier",
    "Metric",
    "MetricValue",
    "NLLReport",
    "Neighbours",
    "Progress",
    "Report",
    "Row",
    "Sweep",
    "SweepTable",
    "evaluate",
    "neighbours",
    "nll",
    "plan_sweep",
    "sweep",
]
