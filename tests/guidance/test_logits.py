"""Classifiers that cannot guide get one line that says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from admg import Labels, guidance, samplers
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
    unnamed = replace(model, labels=Labels(0), takes_labels=True)
    list(samplers.ddim(unnamed, x, y=torch.tensor([2, -1]), guide=guide))
    with pytest.raises(ValueError, match=r"classifier has 3 classes, fewer than the 5 labels of the model"):
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


class Clean(nn.Module):
    """A classifier of clean images with five classes."""

    def __init__(self, *, probabilities: bool = False):
        super().__init__()
        self.linear, self.probabilities = nn.Linear(64, 5), probabilities

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return logits.softmax(1) if self.probabilities else logits


def guided(model, classifier, kind=guidance.ExtendedClassifierGuidance):
    guide = kind(classifier, 2.0, at="x0")
    return list(samplers.ddim(model.respace(3), torch.zeros(2, 1, 8, 8), y=torch.tensor([1, 2]), guide=guide))


@pytest.mark.parametrize("kind", [guidance.ExtendedClassifierGuidance, guidance.GradientFreeGuidance])
def test_probabilities_instead_of_logits_are_noted_once(tiny_model, kind, recwarn):
    guided(tiny_model, Clean(), kind)
    guided(tiny_model, lambda x: x.flatten(1)[:, :5].log_softmax(1), kind)
    assert not recwarn.list
    guided(tiny_model, Clean(probabilities=True), kind)
    (note,) = recwarn.list
    assert "the classifier returns probabilities" in str(note.message) and "log_softmax" in str(note.message)


def test_a_classifier_that_is_not_differentiable(tiny_model):
    own = Clean()
    message = "the classifier must depend on the image and be differentiable"
    for classifier in (torch.no_grad()(lambda x: own(x)), lambda x: own(x.detach())):
        with pytest.raises(ValueError, match=message):
            guided(tiny_model, classifier)
    with pytest.raises(ValueError, match=message):
        guidance.log_prob_gradient(lambda x, t: own(x.detach()), torch.zeros(1, 1, 8, 8), None, torch.tensor([1]))


def test_a_classifier_in_float64(tiny_model):
    with pytest.raises(ValueError, match=r"the guide's classifier must compute with images of torch.float32 on cpu"):
        guided(tiny_model, Clean().double())


def test_scales_are_numbers():
    with pytest.raises(ValueError, match="the guidance scale must be a finite number, got '4'"):
        guidance.ClassifierGuidance(few, "4")


def test_a_plain_module_for_by_classifier():
    with pytest.raises(ValueError, match=r"PretrainedNetwork\(module, Preprocessing\(...\)\), got Clean: a network of"):
        guidance.by_classifier(Clean(), None, 1.0, "mine")
