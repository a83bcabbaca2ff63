"""Whole classifier-guided sampling runs against OpenAI's, from the same noise (tests/openai/guided.npz)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from admg import guidance, samplers
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.generation.sample import sample

LABELS, SHAPE = [3, 877], (3, 64, 64)
RUNS = {  # sampler, respacing, scale, largest error of any pixel
    "ddpm10_s20": (samplers.ddpm, "10", 20.0, 5e-3),
    "ddim10_s50": (samplers.ddim, "ddim10", 50.0, 1e-4),
}
"""The ancestral run begins at t = 999, where 1 / sqrt(ᾱ) is 20,000: there a pixel whose x0 needs no clipping has an x0
with an error of thousandths, in the reference too (1.6e-4 at the end, when it runs on another number of threads). Of
its pixels 97.7 % to all are within 1e-4, by the processor, the number of threads, and whose convolutions compute."""


@pytest.fixture(scope="module")
def model() -> Model:
    case = reference.table("forward.json")["adm64-small"]
    diffusion = reference.diffusion_config(case["flags"]).build()
    return Model(reference.fill(reference.build(case["kind"], case["flags"])), diffusion, SHAPE, Labels(1000))


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    case = reference.table("forward.json")["classifier64-attention"]
    return reference.fill(reference.build(case["kind"], case["flags"]))


def drawn_noise() -> tuple[Tensor, Callable[[Tensor, int], Tensor]]:
    """x_T and then the noise of every step, in the order in which the reference draws them; DDIM leaves it unused."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, *SHAPE), generator=generator), lambda x, index: torch.randn(x.shape, generator=generator)


def check(run: str, images: Tensor) -> None:
    expected = reference.arrays("guided.npz")[run]
    wrong = np.abs(images.numpy() - expected) / np.abs(expected).max()
    assert wrong.shape == (2, *SHAPE) and wrong.max() < RUNS[run][-1]
    assert (wrong < 1e-4).mean() > 0.95


@pytest.mark.thorough
@pytest.mark.parametrize("run", RUNS)
def test_sampler_equals_the_reference(run, model, classifier):
    sampler, respacing, scale, _ = RUNS[run]
    x_T, noise_sampler = drawn_noise()
    guide = guidance.ClassifierGuidance(classifier, scale)
    *_, last = sampler(model.respace(respacing), x_T, y=torch.tensor(LABELS), guide=guide, noise_sampler=noise_sampler)
    assert (last.index, last.t) == (0, 0)
    check(run, last.x)


@pytest.mark.thorough
@pytest.mark.parametrize("run", RUNS)
def test_sample_equals_the_reference(run, model, classifier):
    sampler, respacing, scale, _ = RUNS[run]
    x_T, noise_sampler = drawn_noise()
    samples = sample(
        model,
        LABELS,
        guide=guidance.ClassifierGuidance(classifier, scale),
        sampler=sampler.__name__,
        steps=respacing,
        x_T=x_T,
        noise_sampler=noise_sampler,
        bound_guidance=False,  # guided-diffusion has no bound
        progress=False,
    )
    assert samples.labels.tolist() == LABELS
    check(run, samples.x)
