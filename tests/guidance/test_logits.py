"""Classifiers that cannot guide get one line that says why."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from admg import guidance, samplers
from admg.guidance.logits import check_logits


def few(x, timesteps):
    return x.flatten(1)[:, :3]


def clean(x):
    return x.flatten(1)[:, :3]


@pytest.mark.parametrize(
    "guide",
    [
        guidance.ClassifierGuidance(few),
        guidance.ExtendedClassifierGuidance(few),
        guidance.ExtendedClassifierGuidance(clean, at="x0"),
        guidance.GradientFreeGuidance(few),
    ],
    ids=lambda guide: type(guide).__name__,
)
def test_a_label_that_the_classifier_lacks(tiny_model, guide):
    model, x = tiny_model.respace(2), torch.zeros(2, 1, 8, 8)
    list(samplers.ddim(model, x, y=torch.tensor([2, -1]), guide=guide))
    with pytest.raises(ValueError, match=r"labels must be from 0 to 2, .* logits of 3 classes, got 3"):
        list(samplers.ddim(model, x, y=torch.tensor([0, 3]), guide=guide))


def test_labels_that_are_not_the_samplers_are_not_compared(tiny_model):
    guide = guidance.ExtendedClassifierGuidance(few, labels={1: 1.0})
    list(samplers.ddim(tiny_model.respace(1), torch.zeros(1, 1, 8, 8), y=torch.tensor([4]), guide=guide))


@pytest.mark.parametrize("kind", [guidance.ClassifierGuidance, guidance.ExtendedClassifierGuidance,
                                  guidance.GradientFreeGuidance])  # fmt: skip
def test_a_classifier_that_takes_no_timesteps(kind):
    message = r"called with \(x_t, timesteps\), but (clean|Linear) takes .*: a classifier of clean images guides with"
    for classifier in (clean, nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=message):
            kind(classifier)
    kind(torch.add)  # whose signature is not known


def test_a_noisy_classifier_is_none_of_clean_images():
    with pytest.raises(ValueError, match=r"called with \(x0\), but few takes \(x, timesteps\)"):
        guidance.ExtendedClassifierGuidance(few, at="x0")


def test_results_that_are_no_logits():
    y = torch.tensor([0, 1])
    for logits, found in (
        (torch.zeros(2), r"shape \(2,\)"),
        (torch.zeros(3, 5), r"shape \(3, 5\)"),
        ((), "type tuple"),
    ):
        with pytest.raises(ValueError, match=rf"must return logits \(2, K\) of K classes, got {found}"):
            check_logits(logits, y)
