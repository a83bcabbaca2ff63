"""Schedules that end in pure noise (ᾱ_T = 0): every guidance with every sampler, against the limit ᾱ_T -> 0.

The model is exact, and x0 or v is predicted. Below the highest level the two processes are the same, so that it is the
first step that is compared, in float64; the whole run must be finite.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import exact
import numpy as np
import pytest
import torch
from exact import Mixture, betas_of

import admg
from admg import guidance, samplers
from admg.checkpoints.model import Model
from admg.diffusion import Diffusion, DiffusionConfig, NoiseSchedule
from admg.models import UNet, UNetConfig

rng = np.random.default_rng(0)
SHAPE = (1, 4, 4)
BELOW = np.array([0.95, 0.6, 0.2, 0.02])
LIMIT = 1e-12  # errors of the limit are of the order of its root, and so are those of rounding, 1e-16 over its root
MIXTURE = Mixture.of(SHAPE, [20, 10, 25, 15], rng.uniform(-0.5, 0.5, (4, *SHAPE)), rng.uniform(0.1, 0.3, (4, *SHAPE)),
                     [0, 1, 1, 2])  # fmt: skip
WORSE = replace(MIXTURE, means=0.7 * MIXTURE.means, variances=1.5 * MIXTURE.variances)
Y = torch.tensor([0, 1, 2])
X_T, KNOWN = (torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1))
KNOWN = KNOWN.clamp(-1, 1)

SAMPLERS = {
    "ddpm": samplers.ddpm,
    "ddim": samplers.ddim,
    "ddim_eta": functools.partial(samplers.ddim, eta=0.7),
    "heun": samplers.heun,
    "heun_churn": functools.partial(samplers.heun, s_churn=2.0),
    "dpmpp_2m": samplers.dpmpp_2m,
    "dpmpp_2m_sde": samplers.dpmpp_2m_sde,
    "dpmpp_3m": samplers.dpmpp_3m,
    "unipc": functools.partial(samplers.unipc, order=3),
    "repaint": samplers.repaint(KNOWN, torch.eye(4) > 0, jump_length=2, resamplings=2),
}

CFG = guidance.ClassifierFreeGuidance(3.0)


def predictions(alpha_bars: np.ndarray) -> dict[str, guidance.Guidance]:
    """The guides that modify the prediction."""
    mixture = replace(MIXTURE, alpha_bars=alpha_bars)
    return {
        "none": 0.0 * CFG,
        "cfg": CFG,
        "cfg_plus_plus": guidance.CFGPlusPlus(0.6),
        "apg": guidance.APG(4.0, eta=0.3, max_norm=1.0),
        "cfg_zero_star": guidance.CFGZeroStar(3.0),
        "rescaled": guidance.Rescaled(CFG, 0.7),
        "auto": guidance.AutoGuidance(model_of(replace(WORSE, alpha_bars=alpha_bars)), 2.0),
        "gradient_free": guidance.GradientFreeGuidance(mixture.classifier, 4.0),
        "gradient_free_null": guidance.GradientFreeGuidance(mixture.classifier, 4.0, reference="null"),
        "interval": guidance.Interval(CFG, low=0.2),
        "scaled": 1.5 * CFG,
        "sum": CFG + guidance.Rescaled(CFG, 0.5) + guidance.AutoGuidance(model_of(mixture), 2.0),
        "ilvr": guidance.ILVR(KNOWN, 2),
    }


def gradients(alpha_bars: np.ndarray) -> dict[str, guidance.Guide]:
    """The guides that add a gradient, which are silent at pure noise."""
    classifier = replace(MIXTURE, alpha_bars=alpha_bars).classifier
    mask = guidance.Mask(torch.eye(4) > 0)
    clean = lambda x0: MIXTURE.classifier(x0, torch.tensor([700]))  # noqa: E731
    return {
        "classifier": guidance.ClassifierGuidance(classifier, 2.0),
        "extended": guidance.ExtendedClassifierGuidance(classifier, 2.0, labels={0: 1.0, 1: -0.5}, entropy=0.5),
        "normalised": guidance.ExtendedClassifierGuidance(classifier, 2.0, normalise=True),
        "divergence": guidance.ExtendedClassifierGuidance(classifier, 2.0, divergence=guidance.Divergence()),
        "clean classifier": guidance.ExtendedClassifierGuidance(clean, 2.0, at="x0"),
        "loss": guidance.LossGuidance(lambda x0: x0.square().sum((1, 2, 3))),
        "loss at x": guidance.LossGuidance(lambda x: x.square().sum((1, 2, 3)), at="x"),
        "embedding": guidance.LossGuidance(guidance.EmbeddingDistance(lambda x: x.flatten(1), torch.ones(16))),
        "linear_inverse": guidance.LinearInverse(mask, mask(KNOWN), 0.3, prior_std=0.5),
        "dps": guidance.DPS(mask, mask(KNOWN), 0.5),
        "function": lambda state: 0.2 - state.x,
        "both": guidance.ClassifierGuidance(classifier, 2.0) + CFG,
    }


def model_of(mixture: Mixture, predict: str = "v") -> Model:
    return exact.model_of(mixture, "fixed_large", predict, conditional=True)


def run(sampler, guide, top: float, predict: str = "v", clip: bool = False, model=None) -> list[samplers.Step]:
    model = model or model_of(replace(MIXTURE, alpha_bars=np.array([*BELOW, top])), predict)
    noise = lambda x, i: torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=x.dtype)  # noqa: E731
    return list(sampler(model, X_T, y=Y if model.conditional else None, guide=guide, clip=clip, noise_sampler=noise))


def assert_same_first_step(name: str, pure: list[samplers.Step], limit: list[samplers.Step]) -> None:
    """Of Heun's method, which evaluates the model a second time from the limit, x0 alone is compared."""
    assert all(step.x.isfinite().all() and step.x0.isfinite().all() for step in pure)
    torch.testing.assert_close(pure[0].x0, limit[0].x0, atol=1e-4, rtol=1e-4)
    if not name.startswith("heun"):
        torch.testing.assert_close(pure[0].x, limit[0].x, atol=1e-4, rtol=1e-4)


@functools.cache
def unguided(sampler: str) -> torch.Tensor:
    return run(SAMPLERS[sampler], None, 0.0)[-1].x


def works(sampler: str, guide: str) -> bool:
    return guide != "cfg_plus_plus" or sampler in ("ddim", "ddim_eta")


PURE = np.array([*BELOW, 0.0])
PREDICTIONS = [pair for pair in itertools.product(SAMPLERS, predictions(PURE)) if works(*pair)]


@pytest.mark.thorough
@pytest.mark.parametrize("sampler, name", PREDICTIONS)
def test_a_modified_prediction_is_the_limit_of_vanishing_signal(sampler, name):
    pure, limit = (
        run(SAMPLERS[sampler], predictions(np.array([*BELOW, top]))[name], top, predict)
        for top, predict in ((0.0, "v"), (LIMIT, "x0"))
    )
    assert_same_first_step(sampler, pure, limit)


@pytest.mark.thorough
@pytest.mark.parametrize("sampler, name", [*itertools.product(SAMPLERS, gradients(PURE))])
def test_a_gradient_is_silent_at_pure_noise(sampler, name):
    """x_T says nothing about x_0 there: the run is that of a process with a vanishing signal, guided below the top."""
    pure = run(SAMPLERS[sampler], gradients(PURE)[name], 0.0)
    guide = gradients(np.array([*BELOW, LIMIT]))[name]
    below = guidance.Interval(guide, high=10.0)  # between the noise levels of ᾱ = 0.02 and of the limit
    if name == "both":  # classifier-free guidance continues
        below = guidance.Interval(guide.guides[0], high=10.0) + guide.guides[1]  # type: ignore[union-attr]
    assert_same_first_step(sampler, pure, run(SAMPLERS[sampler], below, LIMIT))
    assert (pure[-1].x - unguided(sampler)).abs().max() > 1e-3  # the guide is used at the other levels
    assert all(step.x.isfinite().all() for step in run(SAMPLERS[sampler], gradients(PURE)[name], 0.0, clip=True))


def test_ancestral_sampling_needs_no_exception():
    """Algorithm 1 moves the mean by Σ g, and g vanishes with the signal: the classifier itself may be asked."""
    limit = run(samplers.ddpm, gradients(np.array([*BELOW, LIMIT]))["classifier"], LIMIT)
    assert_same_first_step("ddpm", run(samplers.ddpm, gradients(PURE)["classifier"], 0.0), limit)


@pytest.mark.thorough
def test_perturbed_attention():
    torch.manual_seed(0)
    config = UNetConfig(image_size=4, image_channels=1, channels=32, channel_mult=(1, 1), num_res_blocks=1,
                        attention_resolutions=(2,), head_channels=32, learn_variance=False)  # fmt: skip
    network = UNet(config).double().eval()
    for p in network.parameters():
        p.data = torch.randn_like(p) * 0.1
    models = [
        Model(
            network, Diffusion(NoiseSchedule.from_betas(betas_of(np.array([*BELOW, top]))), "v", "fixed_large"), SHAPE
        )
        for top in (0.0, LIMIT)
    ]
    guide = guidance.PerturbedAttentionGuidance(4.0)
    for name, sampler in SAMPLERS.items():
        pure, limit = (run(sampler, guide, 0.0, model=model) for model in models)
        assert_same_first_step(name, pure, limit)


@pytest.mark.parametrize("predict", ["x0", "v"])
def test_rescaled_and_zero_star_against_their_own_formulas_near_the_limit(predict):
    """The published formulas in ε, at a level with a small signal, differ by its root from those used at pure noise."""
    for name in ("rescaled", "cfg_zero_star"):
        at = {}
        for top in (0.0, 1e-6, 1e-8):
            at[top] = run(samplers.ddim, predictions(np.array([*BELOW, top]))[name], top, predict)[0].x0
        coarse, fine = ((at[top] - at[0.0]).abs().max().item() for top in (1e-6, 1e-8))
        assert 5 < coarse / fine < 20 and fine < 1e-3
        plain = run(samplers.ddim, CFG, 0.0, predict)[0].x0
        assert (at[0.0] - plain).abs().max() > 0.01  # the limit is not that of plain classifier-free guidance


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [2, torch.tensor([0, 2, 1])], ids=["int", "tensor"])
def test_eps_does_not_give_the_image_at_pure_noise(t):
    diffusion = Diffusion(NoiseSchedule.from_betas([0.2, 0.5, 1.0]), "eps", "fixed_small")
    x = torch.zeros(3, 1, 1, 1)
    assert diffusion.predict(x, x, 1).x0.isfinite().all()
    with pytest.raises(ValueError, match=r"ends in pure noise .* must predict x0 or v"):
        diffusion.predict(x, x, t)
    with pytest.raises(ValueError, match="ends in pure noise"):
        admg.sample(model_of(replace(MIXTURE, alpha_bars=PURE), "eps"), [0], steps=3, progress=False)


@pytest.mark.parametrize("steps", [1, 10, 19])
def test_the_linear_schedule_has_no_fewer_than_20_steps(steps):
    with pytest.raises(
        ValueError, match=rf"at least 21 diffusion_steps, .* got {steps}: its last β, 20/{steps}, would be"
    ):
        DiffusionConfig(diffusion_steps=steps).build()
    assert DiffusionConfig(noise_schedule="cosine", diffusion_steps=steps).build().schedule.alpha_bar[-1] > 0


def test_the_linear_schedule_of_20_steps_ends_in_pure_noise():
    with pytest.raises(
        ValueError, match=r"with 20 diffusion_steps ends in pure noise.* choose more steps, or predict v"
    ):
        DiffusionConfig(diffusion_steps=20).build()
    schedule = DiffusionConfig(diffusion_steps=20, predict="v").build().schedule
    assert schedule.alpha_bar[-1] == 0 and schedule.is_pure_noise(19) and not schedule.is_pure_noise(18)
    assert math.isinf(schedule.sigma(19)) and DiffusionConfig(diffusion_steps=21).build().schedule.alpha_bar[-1] > 0
