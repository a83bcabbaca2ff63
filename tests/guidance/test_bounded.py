"""Bounded: gradients that no images in [-1, 1] make possible are replaced, and all others stay as they are."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import exact
import numpy as np
import pytest
import torch
from exact import LINEAR, Mixture
from helpers import randomised

import admg
from admg import guidance, samplers
from admg.checkpoints.model import Model
from admg.diffusion import NoiseSchedule
from admg.diffusion.config import DiffusionConfig
from admg.evaluation.sweep import plan_sweep
from admg.guidance.bounded import bounded_by_x0
from admg.guidance.state import State
from admg.models import SuperResConfig, SuperResUNet

rng = np.random.default_rng(0)
SHAPE = (1, 4, 4)
COSINE = NoiseSchedule.cosine(1000).alpha_bar.numpy()
SCHEDULES = {"cosine": COSINE, "linear": LINEAR, "zero terminal": np.array([*LINEAR[:-1], 0.0])}
IMAGES = Mixture.of(SHAPE, [3, 2, 1, 2], rng.uniform(-0.8, 0.8, (4, *SHAPE)), [0.03] * 4, [0, 1, 1, 2])
"""Images around four pictures, none of which has a pixel near -1 or 1: 0.2 is seven standard deviations."""

SAMPLERS = {
    "ddpm": samplers.ddpm,
    "ddim": samplers.ddim,
    "heun": samplers.heun,
    "dpmpp_2m": samplers.dpmpp_2m,
    "dpmpp_2m_sde": samplers.dpmpp_2m_sde,
    "dpmpp_3m": samplers.dpmpp_3m,
    "unipc": samplers.unipc,
}
N = 60
Y = torch.arange(N) % 3


def model_of(mixture: Mixture) -> Model:
    return exact.model_of(mixture, predict="v")


def almost_blind(mixture: Mixture, error: float = 0.03):
    """The exact classifier, whose logits also depend a little on x_t where x_t has no signal, as a network's do."""
    directions = torch.from_numpy(np.random.default_rng(1).normal(size=(16, 3)))

    def classifier(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return mixture.classifier(x, t) + error * x.double().flatten(1) @ directions

    return classifier


def draw(mixture: Mixture, classifier, sampler: str, scale: float = 1.0, bound: bool = True, steps=20) -> torch.Tensor:
    guide = guidance.ClassifierGuidance(classifier, scale)
    found = admg.sample(model_of(mixture), Y, guide=guide, sampler=SAMPLERS[sampler], steps=steps, seed=1,
                        bound_guidance=bound, progress=False)  # fmt: skip
    return found.x


def accuracy(x: torch.Tensor) -> float:
    """Share of the images that are nearest to a picture of their target label."""
    nearest = torch.cdist(x.double().flatten(1), IMAGES.means.flatten(1)).argmin(1)
    return (IMAGES.labels[nearest] == Y).double().mean().item()


def beyond(x: torch.Tensor) -> float:
    """Share of the pixels at -1, at 1 or beyond, which are 0 and 255 in 8 bits."""
    return (x.abs() > 1 - 1 / 255).double().mean().item()


def test_the_formula():
    """x0 + (1 - ᾱ)/sqrt(ᾱ) g is ±1 for the entries that were beyond the bound, and the others keep their bits."""
    for alpha_bar in (1e-8, 0.01, 0.5, 0.99):
        unit = math.sqrt(alpha_bar) / (1 - alpha_bar)
        x0, g = 2 * torch.rand(50, 1, 4, 4) - 1, unit * 6 * (torch.rand(50, 1, 4, 4) - 0.5)
        found = bounded_by_x0(g, x0, alpha_bar)
        far = g.abs() > 2 * unit
        assert 0.2 < far.double().mean() < 0.5 and torch.equal(found[~far], g[~far])
        torch.testing.assert_close((x0 + found / unit)[far], g[far].sign())
    assert bounded_by_x0(torch.tensor([math.inf, -math.inf]), torch.zeros(2), 0.5).tolist() == pytest.approx(
        [math.sqrt(2), -math.sqrt(2)]
    )


@pytest.mark.thorough
@pytest.mark.parametrize("alpha_bars", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_exact_classifier_is_never_touched(sampler, alpha_bars):
    """Its gradient is sqrt(ᾱ)/(1 - ᾱ) times a difference of means of images: the samples are the same bit for bit."""
    mixture = replace(IMAGES, alpha_bars=alpha_bars)
    free, bounded = (draw(mixture, mixture.classifier, sampler, bound=bound) for bound in (False, True))
    assert torch.equal(free, bounded) and accuracy(bounded) > 0.95


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_almost_blind_classifier_destroys_nothing(sampler):
    """As no pixel of the data is saturated, next to none of the guided images is; larger scales reach more labels.

    Without the bound, the error is magnified 1/sqrt(ᾱ) = 20,000 times in the first steps of a cosine schedule.
    """
    mixture = replace(IMAGES, alpha_bars=COSINE)
    classifier = almost_blind(mixture)
    images = {scale: draw(mixture, classifier, sampler, scale) for scale in (0.1, 0.5, 1.0, 4.0)}
    assert all(beyond(x) < 0.01 for x in images.values())
    rates = [accuracy(x) for x in images.values()]
    assert rates == sorted(rates) and rates[0] < 0.7 and rates[-1] == 1.0
    if not sampler.endswith(("ddpm", "sde")):  # whose noise covers the error
        assert beyond(draw(mixture, classifier, sampler, 1.0, bound=False)) > 0.05


def test_sums_plain_functions_and_unclipped_samplers():
    mixture = replace(IMAGES, alpha_bars=COSINE)
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    index = 900
    state = State(x, index, Y[:4], None, model_of(mixture))
    huge = lambda state: torch.full_like(state.x, 1e6)  # noqa: E731
    unit = math.sqrt(COSINE[index]) / (1 - COSINE[index])
    for guide in (huge, guidance.guide(huge) + huge, 2 * guidance.guide(huge), guidance.Interval(huge, 0.1)):
        g = guidance.Bounded(guide)(state)
        torch.testing.assert_close(state.prediction.x0 + g / unit, torch.ones_like(x))
    cancelling = guidance.guide(huge) + (lambda state: -huge(state))
    assert guidance.Bounded(cancelling)(state).abs().max() == 0  # the sum is bounded, not its parts
    assert torch.equal(guidance.Bounded(huge)(replace(state, clip=False)), huge(state))
    assert guidance.Bounded(lambda state: None)(state) is None
    unclipped = functools.partial(samplers.ddim, clip=False)
    guide = guidance.ClassifierGuidance(almost_blind(mixture), 1.0)
    run = functools.partial(admg.sample, model_of(mixture), Y, guide=guide, sampler=unclipped, steps=5, progress=False)
    assert torch.equal(run().x, run(bound_guidance=False).x)


@pytest.mark.thorough
def test_every_function_that_samples_takes_the_option(tmp_path):
    """With it, none of them gives the images that it gives without."""
    mixture = replace(IMAGES, alpha_bars=COSINE)
    model, images = model_of(mixture), mixture.means[Y.numpy() % 4][:3].float()
    how = {"guide": guidance.ClassifierGuidance(almost_blind(mixture)), "steps": 10}
    folders = (tmp_path / str(number) for number in itertools.count())
    low_res = torch.zeros(2, 1, 4, 4)
    enlarge = {"guide": lambda state: torch.full_like(state.x, 1e6), "sampler": "ddpm", "steps": 4, "progress": False}
    trunk = {"image_size": 8, "image_channels": 1, "channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1,
             "attention_resolutions": (), "head_channels": 32, "learn_variance": False}  # fmt: skip
    unet = randomised(SuperResUNet(SuperResConfig(**trunk, small_size=4)), 0)
    process = DiffusionConfig(noise_schedule="cosine", predict="v", variance="fixed_small")
    upsampler = Model(unet, process.build(), (1, 8, 8), config=process)

    def generated(**bound: bool) -> torch.Tensor:
        found = admg.generate(model, [0, 1, 2], out=next(folders), **how, **bound, precision="fp32", progress=False)
        return torch.from_numpy(found.read()[:])

    def swept(**bound: bool) -> torch.Tensor:
        planned = plan_sweep(model, out=next(folders), guides=[how["guide"]], steps=["10"], num=3, **bound)
        (job,) = planned.jobs.values()
        return torch.from_numpy(job.run(progress=False).read()[:])

    calls = {
        "sample": lambda **bound: admg.sample(model, Y, **how, **bound, progress=False).x,
        "edit": lambda **bound: admg.edit(model, images, [0, 1, 2], strength=1.0, **how, **bound, progress=False).x,
        "interpolate": lambda **bound: admg.interpolate(model, (0, 1), 1, frames=3, **how, **bound, progress=False).x,
        "upsample": lambda **bound: admg.upsample(upsampler, low_res, **enlarge, **bound).x,
        "generate": generated,
        "sweep": swept,
    }
    for call in calls.values():
        assert torch.equal(call(), call(bound_guidance=True)) and not torch.equal(call(), call(bound_guidance=False))
