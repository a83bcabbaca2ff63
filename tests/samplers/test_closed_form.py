"""Guided sampling of data whose score and noisy classifier are exact, against what the paper's formulas give by hand.

By hand means in this file or in exact.py, in float64, from the betas: nothing here uses the package's own constants.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import exact
import numpy as np
import pytest
import torch
from exact import EVEN, LINEAR, Mixture, betas_of, normal

import admg
from admg import guidance, samplers
from admg.checkpoints.model import Model

rng = np.random.default_rng(0)
MIXTURES = {  # labels whose components lie between and on one another, of unequal weights, means and variances
    "line": Mixture.of((1, 1, 1), [20, 10, 25, 15, 30], [-0.6, 0.15, -0.2, 0.5, 0], [0.08, 0.12, 0.1, 0.06, 0.2],
                       [0, 0, 1, 1, 2]),
    "images": Mixture.of((3, 2, 2), [20, 10, 25, 15, 10, 20], rng.uniform(-0.3, 0.3, (6, 3, 2, 2)),
                         rng.uniform(0.05, 0.2, (6, 3, 2, 2)), [0, 0, 1, 1, 1, 2]),
}  # fmt: skip


def wavy(x: torch.Tensor) -> torch.Tensor:
    """A v of the learned range that differs from pixel to pixel and is now and then outside [-1, 1]."""
    return 1.2 * torch.sin(5 * x.double())


def model_of(mixture: Mixture, variance: str = "fixed_small", predict: str = "eps", range_v=None, **network) -> Model:
    range_v = wavy if variance == "learned_range" and range_v is None else range_v
    return exact.model_of(mixture, variance, predict, range_v, **network)


def noise_of(seed: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Return a noise sampler with the same noise at the same index, whichever sampler calls it."""
    return lambda x, index: normal(len(x), x.shape[1:], 1000 * seed + index)


def end(steps: Iterator[samplers.Step]) -> torch.Tensor:
    return list(steps)[-1].x


def classifier_of(mixture: Mixture, scale: float = 1.0) -> guidance.ClassifierGuidance:
    return guidance.ClassifierGuidance(mixture.classifier, scale)


# -- mixtures: samples end in p(x), or in p(x | y) ---------------------------------------------------------------


def assert_moments(mixture: Mixture, coarse: torch.Tensor, fine: torch.Tensor, inflation: float) -> None:
    """Weights, means and variances within 4 standard errors of the exact ones, in the limit of many steps.

    Both samplers are of first order: with T steps each moment is off by c/T + O(1/T²), which is many standard errors.
    So the limit is extrapolated: 2 × (moment with 2T steps) - (moment with T steps).
    inflation: of the standard error by that: 1 if both ran with the same noise to the same end, sqrt(2² + 1²) at most
    """
    limit = [2 * f - c for c, f in zip(mixture.moments_of(coarse), mixture.moments_of(fine))]
    n, weights, variances = len(fine), mixture.weights, mixture.variances
    per_component = (n * weights).view(-1, 1, 1, 1)
    errors = [
        (weights * (1 - weights) / n).sqrt(),
        (variances / per_component).sqrt(),
        variances * (2 / per_component).sqrt(),
    ]
    for name, found, expected, error in zip(
        ["weights", "means", "variances"], limit, [weights, mixture.means, variances], errors
    ):
        excess = ((found - expected).abs() / (inflation * error + 1e-9)).max().item()
        assert excess < 4, f"{name} are {excess:.1f} standard errors from the expected ones"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["unguided", "guided", "conditional"])
@pytest.mark.parametrize(
    "sampler, variance", [("ddim", "fixed_small"), ("ddpm", "fixed_small"), ("ddpm", "learned_range")]
)
@pytest.mark.parametrize("data", MIXTURES)
def test_samples_follow_the_mixture(data, sampler, variance, way):
    """Unguided in p(x); at s = 1 from the unconditional model in p(x | y), as from the conditional one."""
    mixture, n = MIXTURES[data], 10_000
    model = model_of(mixture, variance, conditional=way == "conditional")
    labels = torch.arange(n) % mixture.classes
    coarse, fine = (
        admg.sample(
            model, [None] * n if way == "unguided" else labels, sampler=sampler, steps=steps, batch_size=n,
            guide=classifier_of(mixture) if way == "guided" else None, x_T=normal(n, mixture.shape),
            noise_sampler=noise_of(steps), progress=False,
        ).x
        for steps in (100, 200)
    )  # fmt: skip
    inflation = 1 if sampler == "ddim" else math.sqrt(5)
    if way == "unguided":
        assert_moments(mixture, coarse, fine, inflation)
    else:
        for y in range(mixture.classes):
            assert_moments(mixture.given(y), coarse[labels == y], fine[labels == y], inflation)


@pytest.mark.thorough
@pytest.mark.parametrize("alpha_bars", [EVEN, LINEAR], ids=["even", "linear"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("data", MIXTURES)
def test_ddim_guided_at_scale_1_is_the_conditional_model(data, eta, alpha_bars):
    """ε - sqrt(1 - ᾱ) ∇ log p(y | x_t) is the conditional ε (paper, equation 12): whole trajectories are the same."""
    mixture = replace(MIXTURES[data], alpha_bars=alpha_bars)
    y, x_T = torch.arange(2000) % mixture.classes, normal(2000, mixture.shape)
    ddim = functools.partial(samplers.ddim, x_T=x_T, y=y, eta=eta, noise_sampler=noise_of(1), clip=False)
    guided = ddim(model_of(mixture).respace(40), guide=classifier_of(mixture))
    conditional = ddim(model_of(mixture, conditional=True).respace(40))
    for a, b in zip(guided, conditional, strict=True):
        torch.testing.assert_close(a.x, b.x, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("data", MIXTURES)
def test_ddpm_guided_at_scale_1_tends_to_the_conditional_model(data, variance):
    """μ + Σ g and the conditional model's mean differ by (β/sqrt(α) - Σ) g = O(1/T²) a step, so by O(1/T) at the end.

    Measured as the mean distance between the ends of trajectories with the same noise.
    """
    mixture = MIXTURES[data]
    y, x_T = torch.arange(2000) % mixture.classes, normal(2000, mixture.shape)
    distances = []
    for steps in (64, 128, 256):
        ddpm = functools.partial(samplers.ddpm, x_T=x_T, y=y, noise_sampler=noise_of(steps), clip=False)
        guided = end(ddpm(model_of(mixture, variance).respace(steps), guide=classifier_of(mixture)))
        conditional = end(ddpm(model_of(mixture, variance, conditional=True).respace(steps)))
        distances.append((guided - conditional).abs().mean().item())
    assert 1.7 < distances[0] / distances[1] < 2.5 and 1.7 < distances[1] / distances[2] < 2.5
    assert distances[2] < 0.015


# -- one Gaussian with a linear-Gaussian likelihood: every step by hand ------------------------------------------


@dataclass(frozen=True)
class ByHand:
    """x_0 ~ N(m, v) in each pixel and p(y | x_0) = N(o; a x_0, τ²): ε(x) and g(x) = ∇ log p(y | x_t) are affine in x.

    Each is given as (slope, offset). So a step of a sampler is x' = A x + B + sqrt(V) noise. Arrays are (C, H, W).
    """

    alpha_bars: np.ndarray  # of the steps kept, as are i and Σ below
    scale: float
    m: np.ndarray
    v: np.ndarray
    a: np.ndarray
    o: np.ndarray
    tau2: np.ndarray

    def eps(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        alpha_bar = self.alpha_bars[i]
        slope = math.sqrt(1 - alpha_bar) / (alpha_bar * self.v + 1 - alpha_bar)  # -sqrt(1 - ᾱ) ∇ log p(x_t)
        return slope, -slope * math.sqrt(alpha_bar) * self.m

    def score(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Of log p(y | x_t) = log N(o; a μ, τ² + a² r), where p(x_0 | x_t) = N(μ, r) and μ = x gain + rest."""
        gain, rest, r = self._posterior(self.alpha_bars[i])
        share = self.a * gain / (self.tau2 + self.a**2 * r)
        return -share * self.a * gain, share * (self.o - self.a * rest)

    def _posterior(self, alpha_bar: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        total = alpha_bar * self.v + 1 - alpha_bar
        gain = math.sqrt(alpha_bar) * self.v / total
        return gain, self.m - gain * math.sqrt(alpha_bar) * self.m, self.v * (1 - alpha_bar) / total

    def classifier(self, alpha_bars: np.ndarray) -> Callable:
        """Two-class logits with p(1 | x_0) = ½ exp(-½ |o - a x_0|²/τ²), so that ∇ log p(1 | x_t) is the score above."""

        def logits(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            gain, rest, r = map(torch.from_numpy, self._posterior(alpha_bars[timesteps.item()]))
            a, o, tau2 = map(torch.from_numpy, (self.a, self.o, self.tau2))
            variance = tau2 + a**2 * r
            exponent = (o - a * (gain * x.double() + rest)) ** 2 / variance + (variance / tau2).log()
            log_p = math.log(0.5) - exponent.flatten(1).sum(1) / 2
            return torch.stack([torch.log(-torch.expm1(log_p)), log_p], dim=1)

        return logits

    def sigma(self, i: int, variance: str, v: float) -> float:
        """Σ of step i. The logarithm of β̃_0 = 0 is taken to be that of β̃_1, as in the reference."""
        betas = betas_of(self.alpha_bars)
        tilde = [b * (1 - p) / (1 - c) for b, p, c in zip(betas, [1.0, *self.alpha_bars], self.alpha_bars)]
        if variance == "fixed_small":
            return tilde[i]
        if variance == "fixed_large":
            return betas[i] if i else tilde[1]
        fraction = (v + 1) / 2
        return math.exp(fraction * math.log(betas[i]) + (1 - fraction) * math.log(tilde[max(i, 1)]))  # equation 15

    def algorithm_1(self, i: int, variance: str, v: float) -> tuple[np.ndarray, np.ndarray, float]:
        """N(μ + s Σ g, Σ) with μ = (x - β/sqrt(1 - ᾱ) ε)/sqrt(α) (DDPM, equation 11); no noise in the last step."""
        beta, alpha_bar, sigma = betas_of(self.alpha_bars)[i], self.alpha_bars[i], self.sigma(i, variance, v)
        (eps, eps_0), (g, g_0) = self.eps(i), self.score(i)
        slope = (1 - beta / math.sqrt(1 - alpha_bar) * eps) / math.sqrt(1 - beta) + self.scale * sigma * g
        offset = -beta / math.sqrt(1 - alpha_bar) * eps_0 / math.sqrt(1 - beta) + self.scale * sigma * g_0
        return slope, offset, sigma if i else 0.0

    def algorithm_2(self, i: int, eta: float) -> tuple[np.ndarray, np.ndarray, float]:
        """ε̂ = ε - sqrt(1 - ᾱ) s g, then DDIM's equation 12 with ε̂."""
        alpha_bar, before = self.alpha_bars[i], self.alpha_bars[i - 1] if i else 1.0
        (eps, eps_0), (g, g_0) = self.eps(i), self.score(i)
        eps, eps_0 = (e - math.sqrt(1 - alpha_bar) * self.scale * s for e, s in ((eps, g), (eps_0, g_0)))
        variance = eta**2 * (1 - before) / (1 - alpha_bar) * (1 - alpha_bar / before)
        ratio = math.sqrt(before / alpha_bar)
        slope = ratio + (math.sqrt(1 - before - variance) - ratio * math.sqrt(1 - alpha_bar)) * eps
        return slope, (math.sqrt(1 - before - variance) - ratio * math.sqrt(1 - alpha_bar)) * eps_0, variance


PIXELS = rng.uniform(size=(5, 2, 1, 2))
GAUSSIAN = dict(m=PIXELS[0] - 0.5, v=0.05 + PIXELS[1], a=0.5 + PIXELS[2], o=2 * PIXELS[3] - 1, tau2=0.1 + PIXELS[4])
SHAPE = (2, 1, 2)
STRIDE = 37  # 28 steps of 1000 are 0, 37 .. 999, with no rounding that could differ
RANGE_V = 0.3


@pytest.mark.slow
@pytest.mark.parametrize("alpha_bars", [EVEN, LINEAR], ids=["even", "linear"])
@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
@pytest.mark.parametrize("guide", ["score", "classifier"])
@pytest.mark.parametrize("algorithm", ["fixed_small", "fixed_large", "learned_range", 0.0, 0.6, 1.0])
def test_scale_2_follows_the_guided_process(algorithm, guide, predict, alpha_bars):
    """Algorithm 1 by its variance, Algorithm 2 by its eta: each step from where the sampler is, and mean and variance
    of 20 000 ends within 4 standard errors of those that the steps by hand carry on from N(0, 1)."""
    hand = ByHand(alpha_bars[::STRIDE], 2.0, **GAUSSIAN)
    mixture = Mixture.of(SHAPE, [1.0], hand.m[None], np.sqrt(hand.v)[None], [0], alpha_bars)
    variance = algorithm if isinstance(algorithm, str) else "fixed_small"
    range_v = (lambda x: torch.full_like(x, RANGE_V)) if variance == "learned_range" else None
    model = model_of(mixture, variance, predict, range_v).respace(28)

    def score(state: guidance.State) -> torch.Tensor:
        slope, offset = map(torch.from_numpy, hand.score(state.t.item() // STRIDE))
        return 2.0 * (slope * state.x + offset).float()

    if isinstance(algorithm, str):
        sampler, by_hand = samplers.ddpm, functools.partial(hand.algorithm_1, variance=variance, v=RANGE_V)
    else:
        sampler, by_hand = (
            functools.partial(samplers.ddim, eta=algorithm),
            functools.partial(hand.algorithm_2, eta=algorithm),
        )
    n = 20_000 if predict == "eps" else 200
    x, noise_sampler, mean, var = normal(n, SHAPE), noise_of(2), np.zeros(SHAPE), np.ones(SHAPE)
    steps = sampler(
        model, x, clip=False, noise_sampler=noise_sampler, y=torch.ones(n, dtype=torch.int64),
        guide=score if guide == "score" else guidance.ClassifierGuidance(hand.classifier(alpha_bars), 2.0),
    )  # fmt: skip
    for step in steps:
        slope, offset, sigma2 = by_hand(step.index)
        expected = slope * x.double().numpy() + offset + math.sqrt(sigma2) * noise_sampler(x, step.index).numpy()
        np.testing.assert_allclose(step.x, expected, atol=1e-5, rtol=1e-5)
        x, mean, var = step.x, slope * mean + offset, slope**2 * var + sigma2
    assert step.index == 0
    if n == 20_000:
        assert (np.abs(x.double().mean(0).numpy() - mean) < 4 * np.sqrt(var / n)).all()
        assert (np.abs(x.double().var(0).numpy() - var) < 4 * var * math.sqrt(2 / n)).all()


def test_the_classifier_by_hand_has_the_score_by_hand():
    """Of the test above: that its two kinds of guides are one, so that neither can be wrong alone."""
    hand, x = ByHand(LINEAR, 1.0, **GAUSSIAN), normal(50, SHAPE)
    for t in (0, 10, 300, 999):
        slope, offset = map(torch.from_numpy, hand.score(t))
        found = guidance.log_prob_gradient(hand.classifier(LINEAR), x, torch.tensor([t]), torch.ones(50).long())
        torch.testing.assert_close(found.double(), slope * x.double() + offset, atol=1e-5, rtol=1e-4)


# -- single steps of other models --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.ddim])
def test_x0_is_clipped_before_the_guide_moves_it_and_not_after(sampler):
    """x_0 is clipped, μ and ε derived from it, and what the guide adds to them is left as it is."""
    alpha_bars, before = LINEAR[::STRIDE], [1.0, *LINEAR[::STRIDE]]
    mixture = Mixture.of(SHAPE, [1.0], [1.5], [1.0], [0], LINEAR)
    guide = lambda state: 4 - 3 * state.x  # noqa: E731
    x, noise_sampler, clipped, beyond = normal(500, SHAPE).double(), noise_of(3), 0, 0
    for step in sampler(model_of(mixture).respace(28), x.float(), guide=guide, noise_sampler=noise_sampler):
        alpha_bar, previous = alpha_bars[step.index], before[step.index]
        x0 = alpha_bar**0.5 * x + (1 - alpha_bar) * 1.5  # E[x_0 | x_t]: 1.5 + sqrt(ᾱ)(x - sqrt(ᾱ) 1.5), as v = 1
        clipped, x0 = clipped + (x0.abs() > 1).sum().item(), x0.clamp(-1, 1)
        eps, g = (x - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5, 4 - 3 * x
        if sampler is samplers.ddpm:
            beta = 1 - alpha_bar / previous
            sigma = beta * (1 - previous) / (1 - alpha_bar)
            mean = (x - beta / (1 - alpha_bar) ** 0.5 * eps) / (1 - beta) ** 0.5 + sigma * g
            expected = mean + sigma**0.5 * noise_sampler(x, step.index)
        else:
            eps = eps - (1 - alpha_bar) ** 0.5 * g
            x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
            expected = previous**0.5 * x0 + (1 - previous) ** 0.5 * eps
        beyond += (x0.abs() > 1.1).sum().item()
        torch.testing.assert_close(step.x0.double(), x0, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(step.x.double(), expected, atol=2e-5, rtol=2e-5)
        x = step.x.double()
    assert clipped > 1000
    assert beyond == 0 if sampler is samplers.ddpm else beyond > 1000


@pytest.mark.thorough
def test_algorithm_1_moves_the_mean_by_the_models_own_sigma():
    """Σ = exp(v' log β + (1 - v') log β̃), v' = (v + 1)/2, with a v of its own for each pixel: Σ g, sqrt(Σ) noise."""
    mixture, noise_sampler = MIXTURES["images"], noise_of(4)
    model, x, y = model_of(mixture, "learned_range").respace(28), normal(100, mixture.shape), torch.arange(100) % 3
    alpha_bars = EVEN[::STRIDE]
    for step in samplers.ddpm(
        model, x, y=y, guide=classifier_of(mixture, 3.0), noise_sampler=noise_sampler, clip=False
    ):
        i, t = step.index, torch.tensor([step.t])
        alpha_bar, before = alpha_bars[i], alpha_bars[i - 1] if i else 1.0
        beta, (x0, eps) = 1 - alpha_bar / before, (f(x, t) for f in (mixture.posterior_mean, mixture.eps))
        tilde = (
            beta * (1 - before) / (1 - alpha_bar) if i else betas_of(alpha_bars)[1] * (1 - EVEN[0]) / (1 - EVEN[STRIDE])
        )
        sigma = torch.exp((wavy(x) + 1) / 2 * math.log(beta) + (1 - wavy(x)) / 2 * math.log(tilde))
        # ∇ log p(y | x_t) = ∇ log p(x_t | y) - ∇ log p(x_t), each -ε/sqrt(1 - ᾱ)
        g = 3 * (eps - mixture.eps(x, t, y)) / (1 - alpha_bar) ** 0.5
        mean = before**0.5 * beta / (1 - alpha_bar) * x0 + (1 - beta) ** 0.5 * (1 - before) / (1 - alpha_bar) * x
        noise = sigma.sqrt() * noise_sampler(x, i) if i else 0
        torch.testing.assert_close(step.x.double(), mean + sigma * g + noise, atol=1e-5, rtol=1e-5)
        x = step.x


@pytest.mark.thorough
@pytest.mark.parametrize("alpha_bars", [EVEN, LINEAR], ids=["even", "linear"])
@pytest.mark.parametrize("steps", [200, 50, "ddim25", 1])
def test_ddim_with_eta_1_is_ddpm_with_the_small_variance(steps, alpha_bars):
    mixture = replace(MIXTURES["images"], alpha_bars=alpha_bars)
    model, x_T = model_of(mixture).respace(steps), normal(50, mixture.shape, dtype=torch.float64)
    ddpm = samplers.ddpm(model, x_T, noise_sampler=noise_of(5), clip=False)
    ddim = samplers.ddim(model, x_T, noise_sampler=noise_of(5), clip=False, eta=1.0)
    for a, b in zip(ddpm, ddim, strict=True):  # in float64, whose rounding is 1e9 times smaller than this bound
        torch.testing.assert_close(a.x, b.x, atol=1e-7, rtol=0)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan, math.inf])
def test_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match="eta"):
        end(samplers.ddim(model_of(MIXTURES["line"]).respace(2), normal(1, (1, 1, 1)), eta=eta))


# -- timesteps and noise -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps, timesteps", [(28, range(0, 1000, 37)), ("ddim25", range(0, 1000, 40)), (1000, range(1000))]
)
@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.ddim])
def test_network_and_classifier_are_given_the_original_timesteps(sampler, steps, timesteps):
    mixture, seen = MIXTURES["line"], []

    def classifier(x, t):
        seen.append(t.unique().item())
        return mixture.classifier(x, t)

    model, y = model_of(mixture), torch.tensor([0, 1])
    walked = list(
        sampler(model.respace(steps), normal(2, (1, 1, 1)), y=y, guide=guidance.ClassifierGuidance(classifier))
    )
    assert model.network.timesteps == seen == [step.t for step in walked] == list(reversed(timesteps))
    assert [step.index for step in walked] == list(reversed(range(len(timesteps))))


@pytest.mark.parametrize(
    "sampler, indices",
    [(samplers.ddim, []), (functools.partial(samplers.ddim, eta=1.0), [4, 3, 2, 1]), (samplers.ddpm, [4, 3, 2, 1])],
)
def test_noise_is_drawn_once_a_step_but_not_in_the_last_and_never_at_eta_0(sampler, indices):
    drawn = []

    def noise_sampler(x, index):
        drawn.append(index)
        return torch.randn_like(x)

    end(sampler(model_of(MIXTURES["line"]).respace(5), normal(2, (1, 1, 1)), noise_sampler=noise_sampler))
    assert drawn == indices


# -- guidance ----------------------------------------------------------------------------------------------------


def unused(x, timesteps):
    raise AssertionError("the classifier was called")


@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.ddim])
def test_scale_0_is_no_guidance_bit_for_bit(sampler):
    mixture = MIXTURES["images"]
    run = functools.partial(sampler, model_of(mixture).respace(20), normal(8, mixture.shape), noise_sampler=noise_of(6))
    off = guidance.ClassifierGuidance(unused, 0.0)
    for guide in (off, off + off, lambda state: None):
        for a, b in zip(run(), run(guide=guide, y=torch.zeros(8).long()), strict=True):
            assert torch.equal(a.x, b.x)


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.ddim])
def test_guides_add_up(sampler):
    mixture, y = MIXTURES["images"], torch.arange(8) % 3
    run = functools.partial(sampler, model_of(mixture).respace(20), normal(8, mixture.shape), noise_sampler=noise_of(7))
    a, b, off = classifier_of(mixture, 1.5), classifier_of(mixture, -0.5), guidance.ClassifierGuidance(unused, 0.0)

    def pull(state):
        return 0.3 - state.x

    by_hand = run(y=y, guide=lambda state: a(state) + pull(state) + b(state))
    sums = [a + pull + b, pull + a + b, a + (pull + b), off + a + pull + off + b]
    for expected, *found in zip(by_hand, *(run(y=y, guide=guide) for guide in sums), strict=True):
        for step in found:
            torch.testing.assert_close(step.x, expected.x, atol=1e-5, rtol=1e-5)


def test_the_score_is_the_gradient_of_the_log_softmax_of_each_images_own_label():
    """Of logits z = W x + b: W_y - Σ_k softmax(z)_k W_k; not averaged over the batch, and for the target label."""
    weight, bias, x, y = rng.normal(size=(4, 12)), rng.normal(size=4), normal(9, (3, 2, 2)), torch.arange(9) % 4

    def classifier(x, timesteps):
        return x.flatten(1) @ torch.from_numpy(weight).float().T + torch.from_numpy(bias).float()

    with torch.no_grad():  # as in a sampler
        found = guidance.log_prob_gradient(classifier, x, torch.tensor([3]), y)
    z = x.flatten(1).numpy() @ weight.T + bias
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(found.flatten(1), weight[y] - p @ weight, atol=1e-5)
    assert found.dtype == torch.float32 and not found.requires_grad and not x.requires_grad


def test_the_score_of_the_exact_classifier_is_the_difference_of_the_exact_scores():
    mixture, x, y = MIXTURES["images"], normal(30, (3, 2, 2)), torch.arange(30) % 3
    for t in map(torch.tensor, ([300], [500], [999])):
        exact = (mixture.eps(x, t) - mixture.eps(x, t, y)) / (1 - mixture.alpha_bar(t)) ** 0.5
        found = guidance.log_prob_gradient(mixture.classifier, x, t, y)
        torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)


def test_invalid_guidance_is_refused():
    mixture = MIXTURES["line"]
    with pytest.raises(ValueError, match="labels"):
        end(samplers.ddim(model_of(mixture).respace(2), normal(1, (1, 1, 1)), guide=classifier_of(mixture)))
    for scale in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="finite"):
            classifier_of(mixture, scale)
