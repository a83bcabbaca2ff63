"""Metrics of samples against a reference, likelihoods, nearest neighbours, and diagnosis of checkpoints."""

from __future__ import annotations

from .evaluate import evaluate
from .metrics import METRICS, Estimate, Metric
from .report import MetricValue, Report

__all__ = ["METRICS", "Estimate", "Metric", "MetricValue", "Report", "evaluate"]
