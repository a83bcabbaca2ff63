"""ODE and SDE solvers on data whose score is exact, in float64: order of convergence, closed forms, other libraries."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import exact
import numpy as np
import pytest
import torch
from exact import Mixture, Network, betas_of
from reference import arrays
from torch import Tensor

from admg import samplers
from admg.checkpoints.model import Model
from admg.diffusion.gaussian import Diffusion, Prediction
from admg.diffusion.schedule import NoiseSchedule
from admg.generation.sampler_specs import SAMPLERS

T = 1 + 1920
ALPHA_BARS = 1 / (1 + np.exp(-np.linspace(8, -10, T)))
"""Even in log SNR, so fine that 1920 and its divisors are numbers of steps, each a refinement of the next."""


@dataclass(frozen=True)
class Exact:
    """What samplers need of a model, in float64."""

    mixture: Mixture
    diffusion: Diffusion
    conditional: bool = False

    @classmethod
    def of(cls, mixture: Mixture, kept=None) -> Exact:
        """At the timesteps `kept`, all of them if None."""
        kept = np.arange(len(mixture.alpha_bars)) if kept is None else np.asarray(kept)
        schedule = NoiseSchedule.from_betas(betas_of(mixture.alpha_bars[kept]), torch.from_numpy(kept))
        return cls(mixture, Diffusion(schedule, variance="fixed_small"))

    def predict(self, x: Tensor, t: int, y=None, clip=True) -> Prediction:
        timestep = self.diffusion.timestep(t)
        x0, eps = self.mixture.posterior_mean(x, timestep), self.mixture.eps(x, timestep)
        assert not clip
        return Prediction(x0, eps, x, torch.ones(()), torch.zeros(()))


normal = functools.partial(exact.normal, shape=(1, 1, 1), dtype=torch.float64)


def end(steps) -> Tensor:
    return list(steps)[-1].x


MIXTURE = Mixture.of((1, 1, 1), [40, 10, 20, 30], [-0.5, 0.1, 0.2, 0.4], [0.4, 0.3, 0.5, 0.3], [0, 0, 1, 1], ALPHA_BARS)
LABELS = torch.arange(40) % 2
SCALE = 2.0


def classifier_guide(state) -> Tensor:
    """guidance.ClassifierGuidance in float64: 2 ∇ log p(y | x_t) of the mixture's exact classifier."""
    with torch.enable_grad():
        x = state.x.detach().requires_grad_()
        log_p = MIXTURE.classifier(x, state.t).log_softmax(1)
        return SCALE * torch.autograd.grad(log_p[torch.arange(len(x)), state.y].sum(), x)[0]


@functools.cache
def solution(guided: bool) -> Tensor:
    """The ODE's end by the classical Runge-Kutta method in log σ on the finest grid, by none of the code under test."""

    def slope(x: Tensor, t: int) -> Tensor:  # d(x/sqrt(ᾱ))/d log σ = σ ε̂, and the guided score is -ε̂/sqrt(1 - ᾱ)
        alpha_bar, timestep = ALPHA_BARS[t], torch.tensor([t])
        eps = MIXTURE.eps(alpha_bar**0.5 * x, timestep)
        if guided:
            eps = eps + SCALE * (MIXTURE.eps(alpha_bar**0.5 * x, timestep, LABELS) - eps)
        return ((1 - alpha_bar) / alpha_bar) ** 0.5 * eps

    x = normal(len(LABELS)) / ALPHA_BARS[-1] ** 0.5
    h = -2 * 9 / (T - 1)
    for t in range(T - 1, 0, -2):
        k1 = slope(x, t)
        k2 = slope(x + h / 2 * k1, t - 1)
        k3 = slope(x + h / 2 * k2, t - 1)
        k4 = slope(x + h * k3, t - 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x - slope(x, 0)  # the last step of every solver: x_0 = x/sqrt(ᾱ) - σ ε̂


def error_of(sampler, steps: int, guided: bool) -> float:
    model = Exact.of(MIXTURE, np.arange(0, T, (T - 1) // steps))
    guide = classifier_guide if guided else None
    x = end(sampler(model, normal(len(LABELS)), y=LABELS, guide=guide, clip=False))
    return (x - solution(guided)).abs().mean().item()


SOLVERS = {
    "ddim": samplers.ddim,
    "heun": samplers.heun,
    "dpmpp_2m": samplers.dpmpp_2m,
    "dpmpp_3m": samplers.dpmpp_3m,
    "unipc1": functools.partial(samplers.unipc, order=1),
    "unipc2": functools.partial(samplers.unipc, order=2),
    "unipc3": functools.partial(samplers.unipc, order=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True], ids=["unguided", "guided"])
@pytest.mark.parametrize(
    "name, order",
    [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("dpmpp_3m", 3), ("unipc1", 2), ("unipc2", 3), ("unipc3", 4)],
)
def test_order_of_convergence(name, order, guided):
    """By how much the error falls as the step is halved: 2^order. UniPC's corrector adds one to its predictor's order.

    Of a mixture, unguided and with the exact classifier at scale 2, against the Runge-Kutta solution.
    """
    coarse, fine = (error_of(SOLVERS[name], steps, guided) for steps in (60, 120))
    assert abs(math.log2(coarse / fine) - order) < 0.2


@pytest.mark.thorough
@pytest.mark.parametrize(
    "options, order",
    [({"order": 2}, 3), ({"order": 3}, 3), ({"order": 3, "lower_order_final": False}, 4)],
    ids=["2", "3 with a lower order at the end", "3"],
)
def test_order_of_unipc_where_the_last_steps_matter(options, order):
    """For a single Gaussian from σ = 15 to σ = 1, a noise level at which the prediction depends on all of x."""
    m, v, kept = 0.3, 0.25, np.flatnonzero(ALPHA_BARS < 1 / 2)
    mixture = Mixture.of((1, 1, 1), [1.0], [m], [v**0.5], [0], ALPHA_BARS)
    first, last = kept[0], kept[np.flatnonzero(ALPHA_BARS[kept] > 1 / (1 + 15.0**2))[-1]]
    last = first + (last - first) // 128 * 128
    low, high = (1 / ALPHA_BARS[i] - 1 for i in (first, last))
    x_T, errors = normal(20), []
    away = (x_T / ALPHA_BARS[last] ** 0.5 - m) * ((v + low) / (v + high)) ** 0.5
    for steps in (64, 128):
        model = Exact.of(mixture, np.arange(first, last + 1, (last - first) // steps))
        found = end(functools.partial(samplers.unipc, **options)(model, x_T, clip=False))
        errors.append((found - m - away * v / (v + low)).abs().mean().item())
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.2


@pytest.mark.thorough
@pytest.mark.parametrize("name", SOLVERS)
def test_a_single_gaussians_ode_in_closed_form(name):
    """x/sqrt(ᾱ) - m grows as sqrt(v + σ²), and the last step takes the fraction v/(v + σ²) of it."""
    m, v = 0.3, 0.25
    mixture = Mixture.of((1, 1, 1), [1.0], [m], [v**0.5], [0], ALPHA_BARS)
    sigma2 = 1 / ALPHA_BARS - 1
    x_T = normal(20)
    away = (x_T / ALPHA_BARS[-1] ** 0.5 - m) * ((v + sigma2[0]) / (v + sigma2[-1])) ** 0.5
    errors = []
    for steps in (60, 120):
        found = end(SOLVERS[name](Exact.of(mixture, np.arange(0, T, (T - 1) // steps)), x_T, clip=False))
        errors.append((found - m - away * v / (v + sigma2[0])).abs().max().item())
    order = {"ddim": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc1": 2, "unipc2": 3, "unipc3": 4}[name]
    assert errors[1] < {1: 3e-2, 2: 2e-3, 3: 1e-4, 4: 1e-5}[order]
    assert math.log2(errors[0] / errors[1]) > order - 0.2


@pytest.mark.slow
def test_2m_sde_has_the_datas_mean_and_variance():
    """Of 40 000 ends within 4 standard errors, of each component of a mixture."""
    n, mixture = 40_000, Mixture.of((1, 1, 1), [30, 70], [-0.6, 0.4], [0.15, 0.2], [0, 1], ALPHA_BARS)
    generator = torch.Generator().manual_seed(1)
    x = end(
        samplers.dpmpp_2m_sde(
            Exact.of(mixture, np.arange(0, T, 12)),
            normal(n),
            clip=False,
            noise_sampler=lambda x, i: torch.randn(x.shape, generator=generator, dtype=x.dtype),
        )
    )
    weights, means, variances = mixture.moments_of(x)
    size = n * mixture.weights
    assert ((weights - mixture.weights).abs() < 4 * (mixture.weights * (1 - mixture.weights) / n).sqrt()).all()
    for found, expected, error in (
        (means, mixture.means, (mixture.variances.flatten() / size).sqrt()),
        (variances, mixture.variances, mixture.variances.flatten() * (2 / size).sqrt()),
    ):
        assert ((found - expected).flatten().abs() < 4 * error).all()


def network(steps: int) -> Model:
    """MIXTURE's exact network, at steps even in log SNR; in float32, as that of users."""
    schedule = NoiseSchedule.from_betas(betas_of(ALPHA_BARS)).respace(steps)
    return Model(Network(MIXTURE), Diffusion(schedule, variance="fixed_small"), MIXTURE.shape)


@pytest.mark.slow
def test_churned_heun_keeps_the_mixture():
    """Of 40 000 ends mean and variance are within 4 standard errors, as they were without it."""
    n = 40_000
    generator = torch.Generator().manual_seed(2)
    x = end(
        samplers.heun(
            network(1 + 160),
            normal(n).float(),
            clip=False,
            s_churn=60,
            noise_sampler=lambda x, i: torch.randn(x.shape, generator=generator),
        )
    )
    mean = (MIXTURE.weights * MIXTURE.means.flatten()).sum().item()
    second = (MIXTURE.weights * (MIXTURE.variances + MIXTURE.means**2).flatten()).sum().item()
    assert abs(x.mean().item() - mean) < 4 * (second / n) ** 0.5
    assert abs(x.var().item() / (second - mean**2) - 1) < 4 * (2 / n) ** 0.5


def test_churn_raises_to_levels_of_the_training():
    """(1 + γ) σ with γ = min(s_churn/N, √2 - 1), in the range of σ alone; the variance at each level stays exact."""
    model, sigma, drawn = network(1 + 16), (1 / ALPHA_BARS - 1) ** 0.5, []

    def noise_sampler(x, index):
        drawn.append(index)
        return torch.zeros_like(x)

    options = {"noise_sampler": noise_sampler, "clip": False}
    steps = list(samplers.heun(model, normal(5).float(), s_churn=17 * 0.1, s_min=0.1, s_max=10, **options))
    for step in steps:
        plain = step.index * 120
        rise = sigma[int(step.t)] / sigma[plain]
        churned = 0.1 <= sigma[plain] <= 10
        assert abs(rise - (1.1 if churned else 1)) < 0.005 and (step.index in drawn) == churned
    assert [step.index for step in steps] == list(range(16, -1, -1))
    rise = [s.t - 120 * s.index for s in samplers.heun(model, normal(1).float(), s_churn=1e3, **options)][1:]
    assert {sigma[120 + r] / sigma[120] - 2**0.5 < 0.01 for r in rise} == {True} and len({*rise}) == 1
    plain, off = (end(samplers.heun(model, normal(5).float(), **options, s_churn=c)) for c in (0.0, 1e-9))
    assert torch.equal(plain, off)
    with pytest.raises(ValueError, match="negative"):
        end(samplers.heun(model, normal(1).float(), s_churn=-1.0))


def test_a_guide_sees_the_step_to_which_churn_has_raised_the_noise():
    """Its index is that of the step, and β is that of the whole step: 1 - ᾱ of the raised level over ᾱ of the next."""
    seen = []

    def guide(state):
        schedule = state.model.diffusion.schedule
        seen.append((state.index, schedule.alpha_bar[state.index].item(), schedule.betas[state.index].item()))
        return torch.zeros_like(state.x)

    model = network(1 + 16)
    steps = list(samplers.heun(model, normal(1).float(), guide=guide, s_churn=3.0, clip=False))
    for step in steps[1:-1]:
        index, alpha_bar, beta = next(entry for entry in seen if math.isclose(entry[1], ALPHA_BARS[int(step.t)]))
        assert index == step.index and int(step.t) > 120 * step.index
        assert math.isclose(beta, 1 - alpha_bar / ALPHA_BARS[120 * (index - 1)].item(), rel_tol=1e-6)


# -- timesteps, noise and the last step ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SOLVERS, "dpmpp_2m_sde"])
def test_steps_noise_and_end(name):
    """There is one step per level. The network is given each timestep in turn, by Heun twice. Only the SDE draws noise.
    The last x is the last prediction of x_0."""
    drawn, given = [], []
    kept = np.arange(0, T, 480)
    model = Exact.of(MIXTURE, kept)

    def noise_sampler(x, index):
        drawn.append(index)
        return torch.ones_like(x)

    def guide(state):
        given.append(int(state.t))

    sampler = SOLVERS.get(name, samplers.dpmpp_2m_sde)
    steps = list(sampler(model, normal(3), guide=guide, noise_sampler=noise_sampler, clip=False))
    assert [step.index for step in steps] == [4, 3, 2, 1, 0]
    assert [step.t for step in steps] == kept[::-1].tolist()
    assert given == ([1920, 1440, 1440, 960, 960, 480, 480, 0, 0] if name == "heun" else kept[::-1].tolist())
    assert drawn == ([4, 3, 2, 1] if name == "dpmpp_2m_sde" else [])
    torch.testing.assert_close(steps[-1].x, steps[-1].x0, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", [*SOLVERS, "dpmpp_2m_sde"])
def test_one_step_is_the_prediction(name):
    model, x_T = Exact.of(MIXTURE, [T - 1]), normal(3)
    (step,) = SOLVERS.get(name, samplers.dpmpp_2m_sde)(model, x_T, clip=False)
    torch.testing.assert_close(step.x, MIXTURE.posterior_mean(x_T, torch.tensor([T - 1])))


@pytest.mark.thorough
@pytest.mark.parametrize("name", SOLVERS)
def test_from_pure_noise_where_the_highest_level_has_no_signal(name):
    """ᾱ_T = 0, where λ and EDM's σ are infinite: the same end as from a level with next to no signal.

    About the same for Heun, whose first step is then of first order."""
    kept = [*range(0, T - 1, 32), T - 1]
    pure = replace(MIXTURE, alpha_bars=np.array([*ALPHA_BARS[:-1], 0.0]))
    near = replace(MIXTURE, alpha_bars=np.array([*ALPHA_BARS[:-1], 1e-12]))
    ends = [end(SOLVERS[name](Exact.of(mixture, kept), normal(20), clip=False)) for mixture in (pure, near)]
    torch.testing.assert_close(*ends, atol=1e-4 if name != "heun" else 0.1, rtol=0)


def test_sample_finds_them_by_name():
    assert {"heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc"} <= set(SAMPLERS)
    assert "ddim_inversion" not in SAMPLERS


@pytest.mark.parametrize("order", [0, 4])
def test_invalid_orders_are_refused(order):
    with pytest.raises(ValueError, match="order must be"):
        end(samplers.unipc(Exact.of(MIXTURE, [0, 9]), normal(1), order=order, clip=False))


# -- inversion -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True], ids=["unguided", "guided"])
def test_inversion_and_back(guided):
    """From images to x_T and back; the error falls in proportion to the step."""
    options = {"y": LABELS, "guide": classifier_guide if guided else None, "clip": False}
    x0, errors = 0.4 * normal(len(LABELS), seed=1), []
    for steps in (60, 120, 240):
        model = Exact.of(MIXTURE, np.arange(0, T, (T - 1) // steps))
        up = list(samplers.ddim_inversion(model, x0, **options))
        assert len(up) == steps + 1
        errors.append((end(samplers.ddim(model, up[-1].x, **options)) - x0).abs().mean().item())
    assert errors[2] < 0.02 and 1.6 < errors[0] / errors[1] < 2.4 and 1.6 < errors[1] / errors[2] < 2.4


MATHS = arrays("maths.npz")


@pytest.mark.parametrize("case", sorted(key.rsplit("/", 1)[0] for key in MATHS if key.endswith("/ddim_reverse")))
def test_one_step_up_equals_that_of_guided_diffusion(case):
    schedule, respacing, variance, predict = case.split("/")
    d = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}[schedule](1000)
    d = Diffusion(d if respacing == "full" else d.respace(respacing), predict, variance)
    x, raw = (torch.from_numpy(MATHS[f"in/{name}"]).float() for name in ("x", "raw"))
    for n, t in enumerate((0, 1, len(d) // 2, len(d) - 1)):
        p = d.predict(raw[n : n + 1, : 6 if d.learns_variance else 3], x[n : n + 1], t)
        expected = MATHS[f"{case}/ddim_reverse"][n]
        found = samplers.ddim_reverse(d, p, t)[0].numpy()
        # at t = 0, 1 of 1000 the float32 ε of guided-diffusion is a difference of nearly equal numbers
        allowed = 1e-4 if t < 2 and len(d) == 1000 else 1e-5
        assert np.abs(found - expected).max() < allowed * np.abs(expected).max()


# -- against diffusers -----------------------------------------------------------------------------------------------


def schedulers():
    """Name -> (our sampler, diffusers' scheduler, its options); all end in a clean image, without thresholding."""
    import diffusers

    dpm, unipc, heun = (
        getattr(diffusers, f"{name}Scheduler") for name in ("DPMSolverMultistep", "UniPCMultistep", "HeunDiscrete")
    )
    zero = {"final_sigmas_type": "zero"}
    return {
        "heun": (samplers.heun, heun, {}),
        "dpmpp_2m": (samplers.dpmpp_2m, dpm, zero | {"solver_order": 2}),
        "dpmpp_2m_sde": (samplers.dpmpp_2m_sde, dpm, zero | {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
        **{
            f"unipc{order}": (
                functools.partial(samplers.unipc, order=order),
                unipc,
                zero | {"solver_order": order, "solver_type": "bh2"},
            )
            for order in (1, 2, 3)
        },
    }


def theirs(kind, options: dict, kept: np.ndarray, x: Tensor) -> list[Tensor]:
    """x of MIXTURE after each call of a scheduler of diffusers, given our timesteps `kept` and levels in float64."""
    levels = np.array([*(1 / ALPHA_BARS[kept[::-1]] - 1) ** 0.5, 0.0])
    scheduler = kind(num_train_timesteps=T, trained_betas=betas_of(ALPHA_BARS).tolist(), **options)
    scheduler.set_timesteps(len(kept))
    heun = len(scheduler.timesteps) > len(kept)  # Heun's corrector is a call of its own, except in the last step
    scheduler.sigmas = torch.from_numpy(np.repeat(levels, [1, *[2] * (len(kept) - 1), 1]) if heun else levels)
    scheduler.timesteps = torch.from_numpy(np.repeat(kept[::-1], [1, *[2 if heun else 1] * (len(kept) - 1)]))
    x, ends = x / ALPHA_BARS[kept[-1]] ** 0.5 if heun else x, []
    for t in scheduler.timesteps:
        index = int(np.searchsorted(kept, int(t)))
        noise = {"variance_noise": noise_of(x, index)} if "algorithm_type" in options else {}
        eps = MIXTURE.eps(scheduler.scale_model_input(x, t), t.reshape(1))
        x = scheduler.step(eps, t, x, **noise).prev_sample
        ends.append(x)
    return ends


def noise_of(x: Tensor, index: int) -> Tensor:
    return normal(len(x), seed=100 + index)


@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc1", "unipc2", "unipc3"])
def test_equals_diffusers(name, steps):
    """Unguided, at the same timesteps, with the same noise: every step, but Heun, whose predictor
    they return as a step, at the end."""
    sampler, kind, options = schedulers()[name]
    kept = np.linspace(0, T - 1, steps).round().astype(int)
    ends = theirs(kind, options, kept, normal(20))
    ours = [s.x for s in sampler(Exact.of(MIXTURE, kept), normal(20), clip=False, noise_sampler=noise_of)]
    for a, b in [(ours[-1], ends[-1])] if name == "heun" else zip(ours, ends, strict=True):
        torch.testing.assert_close(a, b.double(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_diffusers_third_order_converges_as_second():
    """The one that differs, so that it cannot be compared: its 3M gives the second difference half of the integral's
    weight, and converges to the same solution as 2M does."""
    import diffusers

    options, errors = {"solver_order": 3, "final_sigmas_type": "zero"}, []
    for steps in (60, 120, 240):
        kept, x_T = np.arange(0, T, (T - 1) // steps), normal(len(LABELS))
        ends = theirs(diffusers.DPMSolverMultistepScheduler, options, kept, x_T)
        errors.append((ends[-1] - solution(False)).abs().mean().item())
    assert abs(math.log2(errors[1] / errors[2]) - 2) < 0.3
    assert errors[2] > 5 * error_of(samplers.dpmpp_3m, 240, False)
