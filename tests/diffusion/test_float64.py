"""Float64 images are computed in float64 throughout, for studies of convergence; all others in float32."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from exact import EVEN, Mixture, Network, betas_of

import admg
from admg import guidance, samplers
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.diffusion import Diffusion, NoiseSchedule, SeededNoise

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([1, 2, 0])
MIXTURE = Mixture.of((1, 2, 2), [1.0, 2.0, 1.0], [-0.5, 0.1, 0.6], [0.3, 0.2, 0.4], [0, 1, 2])


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("variance", ["learned_range", "fixed_small", "fixed_large"])
def test_predictions_have_the_dtype_of_x(predict, variance):
    d = Diffusion(NoiseSchedule.cosine(100), predict, variance)
    output = torch.cat([0.3 * X, 0.5 * X], 1) if d.learns_variance else 0.3 * X
    coarse, fine = d.predict(output, X, 50), d.predict(output.double(), X.double(), 50)
    for name in ("x0", "eps", "mean", "variance", "log_variance"):
        assert getattr(coarse, name).dtype == torch.float32 and getattr(fine, name).dtype == torch.float64
        torch.testing.assert_close(getattr(coarse, name), getattr(fine, name).float(), atol=1e-5, rtol=1e-5)
    assert d.predict(output.bfloat16(), X.bfloat16(), 50).x0.dtype == torch.float32
    noised = d.q_sample(X.double(), 99, X.double())
    exact = d.schedule.alpha_bar[99].sqrt() * X.double() + (1 - d.schedule.alpha_bar[99]).sqrt() * X.double()
    assert (noised - exact).abs().max() < 1e-15


def test_the_classifiers_score_has_the_dtype_of_x():
    t, shape = torch.tensor([40]), MIXTURE.shape
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fine, coarse = (guidance.log_prob_gradient(MIXTURE.classifier, a, t, Y) for a in (x, x.float()))
    assert fine.dtype == torch.float64 and coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, fine.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.ddim, samplers.heun, samplers.dpmpp_2m, samplers.unipc])
def test_a_whole_run_in_float64(sampler):
    """No step of a float64 run is rounded to float32, and it is near the float32 run."""
    d = Diffusion(NoiseSchedule.from_betas(betas_of(MIXTURE.alpha_bars)).respace(10), variance="fixed_small")
    model = Model(Network(MIXTURE, conditional=True), d, MIXTURE.shape, Labels(3))
    guide = guidance.ClassifierGuidance(MIXTURE.classifier, 2.0) + guidance.ClassifierFreeGuidance(1.5)
    x_T = torch.randn(3, *MIXTURE.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def steps(x: torch.Tensor) -> list[samplers.Step]:
        return list(sampler(model, x, y=Y, guide=guide, noise_sampler=SeededNoise(1, range(3)), clip=False))

    for fine, coarse in zip(steps(x_T), steps(x_T.float()), strict=True):
        assert fine.x.dtype == fine.x0.dtype == torch.float64 and coarse.x.dtype == torch.float32
        assert (fine.x.float().double() != fine.x).all()
        torch.testing.assert_close(coarse.x, fine.x.float(), atol=1e-4, rtol=1e-4)


# -- 1e-12 of a closed form: data N(0, v) with a classifier whose score is affine, so that every step is affine in x ---

V, TAU2, TARGET, SCALE = 0.3, 0.5, 0.8, 1.7
Affine = tuple[float, float]
"""(a, b), for x = a x_T + b."""


def levels_of(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """ᾱ and the timesteps of evenly spaced steps of 1000, the last one first."""
    kept = np.linspace(999, 0, steps).round().astype(int)
    return EVEN[kept], kept


def logits(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Of two labels with p(1 | x_0) = ½ exp(-½ |o - x_0|²/τ²): ∇ log p(1 | x_t) = γ (o - γ x)/(τ² + r)."""
    gain, r = posterior(EVEN[int(timesteps[0])])
    square = ((TARGET - gain * x) ** 2 / (TAU2 + r)).flatten(1).sum(1)
    log_p = math.log(0.5) - square / 2 - 8 * math.log((TAU2 + r) / TAU2) / 2
    return torch.stack([torch.log(-torch.expm1(log_p)), log_p], 1)


def posterior(alpha_bar: float) -> tuple[float, float]:
    """γ and r of p(x_0 | x_t) = N(γ x, r)."""
    return math.sqrt(alpha_bar) * V / (alpha_bar * V + 1 - alpha_bar), V * (1 - alpha_bar) / (
        alpha_bar * V + 1 - alpha_bar
    )


def plus(*terms: tuple[float, Affine]) -> Affine:
    return sum(c * a for c, (a, _) in terms), sum(c * b for c, (_, b) in terms)


def score(x: Affine, alpha_bar: float) -> Affine:
    """s ∇ log p(y | x_t)."""
    gain, r = posterior(alpha_bar)
    a, b = plus((-SCALE * gain**2 / (TAU2 + r), x))
    return a, b + SCALE * gain * TARGET / (TAU2 + r)


def guided_eps(x: Affine, alpha_bar: float) -> Affine:
    """ε(x) - sqrt(1 - ᾱ) g, Algorithm 2, with ε = sqrt(1 - ᾱ) x/(ᾱ v + 1 - ᾱ)."""
    noise = math.sqrt(1 - alpha_bar)
    return plus((noise / (alpha_bar * V + 1 - alpha_bar), x), (-noise, score(x, alpha_bar)))


def guided_x0(x: Affine, alpha_bar: float) -> Affine:
    return plus((1 / math.sqrt(alpha_bar), x), (-math.sqrt(1 / alpha_bar - 1), guided_eps(x, alpha_bar)))


def ddim(steps: int) -> Affine:
    x: Affine = (1.0, 0.0)
    now, _ = levels_of(steps)
    for alpha_bar, then in zip(now, [*now[1:], 1.0]):
        x = plus((math.sqrt(then), guided_x0(x, alpha_bar)), (math.sqrt(1 - then), guided_eps(x, alpha_bar)))
    return x


def ddpm(steps: int) -> Affine:
    """Algorithm 1, with Σ = β̃ and no noise."""
    x: Affine = (1.0, 0.0)
    now, _ = levels_of(steps)
    for c, p in zip(now, [*now[1:], 1.0]):
        beta, gain = 1 - c / p, posterior(c)[0]
        mean = math.sqrt(p) * beta / (1 - c) * gain + math.sqrt(1 - beta) * (1 - p) / (1 - c)
        x = plus((mean, x), (beta * (1 - p) / (1 - c), score(x, c)))
    return x


def heun(steps: int) -> Affine:
    """EDM's Algorithm 2: of x/sqrt(ᾱ) over σ, the slope is ε."""
    x: Affine = (1.0, 0.0)
    now, _ = levels_of(steps)
    for c, p in zip(now, [*now[1:], 1.0]):
        fall = math.sqrt(1 / p - 1) - math.sqrt(1 / c - 1)
        slope, start = guided_eps(x, c), plus((1 / math.sqrt(c), x))
        x = plus((math.sqrt(p), start), (math.sqrt(p) * fall, slope))
        if p < 1:
            slope = plus((0.5, slope), (0.5, guided_eps(x, p)))
            x = plus((math.sqrt(p), start), (math.sqrt(p) * fall, slope))
    return x


def dpmpp_2m(steps: int, sde: bool = False) -> Affine:
    """Algorithm 2 of DPM-Solver++, and SDE-DPM-Solver++(2M) without its noise."""
    x, last, last_h = (1.0, 0.0), None, 0.0
    now, _ = levels_of(steps)
    for c, p in zip(now, [*now[1:], 1.0]):
        d = x0 = guided_x0(x, c)
        h = math.log(math.sqrt(p / c)) - math.log(math.sqrt((1 - p) / (1 - c))) if p < 1 else math.inf
        if last is not None and p < 1:
            r = last_h / h
            d = plus((1 + 1 / (2 * r), x0), (-1 / (2 * r), last))
        kept = math.exp(-h) if sde else 1.0
        x = plus((math.sqrt((1 - p) / (1 - c)) * kept, x), (-math.sqrt(p) * math.expm1(-h * (1 + sde)), d))
        last, last_h = x0, h
    return x


CLOSED_FORMS: dict[str, tuple[Callable[..., Affine], int]] = {
    "ddpm": (ddpm, 20),
    "ddim": (ddim, 20),
    "heun": (heun, 20),
    "dpmpp_2m": (dpmpp_2m, 20),
    "dpmpp_2m_sde": (functools.partial(dpmpp_2m, sde=True), 20),
    "dpmpp_3m": (ddim, 2),  # with two steps, both of first order
    "unipc": (ddim, 2),
}


class Float64Network(Network):
    """A network with a parameter in float64, by which sample() recognises it."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.one = torch.nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)

    def forward(self, x, timesteps, y=None):
        assert x.dtype == torch.float64
        return self.one * super().forward(x, timesteps, y)


@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_float64_model_is_sampled_to_1e_12(name, predict):
    by_hand, steps = CLOSED_FORMS[name]
    alpha_bars, kept = (a[::-1].copy() for a in levels_of(steps))
    mixture = Mixture.of((2, 2, 2), [1.0], [0.0], [V**0.5], [0])
    schedule = NoiseSchedule.from_betas(betas_of(alpha_bars), torch.from_numpy(kept))
    model = Model(
        Float64Network(mixture, predict), Diffusion(schedule, predict, "fixed_small"), mixture.shape, Labels(2)
    )
    guide = guidance.ClassifierGuidance(logits, SCALE)
    x_T = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = by_hand(steps)
    sampler, labels = functools.partial(getattr(samplers, name), clip=False), torch.ones(3, dtype=torch.int64)
    silent = lambda x, i: torch.zeros_like(x)  # noqa: E731
    *_, step = sampler(model, x_T, y=labels, guide=guide, noise_sampler=silent)
    assert (step.x - (a * x_T + b)).abs().max() < 1e-12
    found = admg.sample(model, labels, guide=guide, sampler=sampler, steps=steps, x_T=x_T, noise_sampler=silent,
                        progress=False)  # fmt: skip
    assert found.x.dtype == torch.float64 and (found.x - (a * x_T + b)).abs().max() < 1e-12


def test_timesteps_and_what_follows_from_them_keep_float64():
    """Timesteps of 1000/T are not rounded to float32 for float64 images, and neither are temperatures or embeddings."""
    diffusion, x = Diffusion(NoiseSchedule.cosine(30).rescaled()), X.double()
    assert diffusion.timestep(7, dtype=torch.float64).item() == 7 * (1000 / 30)
    assert diffusion.timestep(7).dtype == diffusion.timestep(7, dtype=torch.bfloat16).dtype == torch.float32
    state = guidance.State(x, 7, Y, None, Model(torch.nn.Identity(), diffusion, (1, 8, 8)))
    assert state.t.item() == 7 * (1000 / 30)
    calibrated = guidance.Calibrated(lambda x, t: x.flatten(1), (0.0,), (1.1,))
    assert torch.equal(calibrated(x, state.t), x.flatten(1) / 1.1)
    loss = guidance.EmbeddingDistance(lambda x: x.flatten(1), torch.ones(64, dtype=torch.float64), "cosine")(x)
    exact = 1 - x.flatten(1).mean(1) * 8 / x.flatten(1).norm(dim=1)
    assert loss.dtype == torch.float64 and (loss - exact).abs().max() < 1e-15


def test_gradient_free_guidance_keeps_float64():
    model = Model(Network(MIXTURE, conditional=True), Diffusion(NoiseSchedule.from_betas(betas_of(EVEN)), "eps"),
                  MIXTURE.shape, Labels(3))  # fmt: skip
    model = replace(model, diffusion=Diffusion(model.diffusion.schedule, "eps", "fixed_small"))
    x = torch.randn(3, *MIXTURE.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    state = guidance.State(x, 500, Y, Y, model, clip=False)
    found = guidance.GradientFreeGuidance(MIXTURE.classifier, 3.0, reference="null").modify_prediction(state).eps
    t = torch.tensor([500])
    cond, uncond, p = MIXTURE.eps(x, t, Y), MIXTURE.eps(x, t), MIXTURE.classifier(x, t).softmax(1)
    w = 1 + 2 * (1 - p.gather(1, Y[:, None])).view(-1, 1, 1, 1)
    assert (found - (uncond + w * (cond - uncond))).abs().max() < 1e-13
