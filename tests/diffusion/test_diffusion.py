"""Schedules, predictions, losses and single steps agree with guided-diffusion (tests/openai) and with formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from reference import arrays, error, error_by_image, table
from torch import Tensor

from admg import samplers
from admg.checkpoints.model import Model
from admg.diffusion.config import DiffusionConfig
from admg.diffusion.gaussian import Diffusion, Index, Prediction, discretized_gaussian_log_likelihood, gaussian_kl
from admg.diffusion.losses import loss_terms, prior_bpd, target, vb_bpd
from admg.diffusion.schedule import NoiseSchedule, respaced_indices
from admg.guidance import State

MATHS, MORE = arrays("maths.npz"), arrays("more-maths.npz")
INPUT = {name: torch.from_numpy(MATHS[f"in/{name}"]) for name in ("x0", "x", "raw", "grad", "noise")}
CASES = sorted({key.rsplit("/clip1", 1)[0] for key in MATHS if key.endswith("/clip1/mean")})
MORE_CASES = sorted({key.rsplit("/", 1)[0] for key in MORE if key.endswith("/ddpm_step")})
SCHEDULES: dict[str, Callable[[int], NoiseSchedule]] = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}
TOLERANCE = 1e-5


def diffusion_of(case: str) -> Diffusion:
    schedule, respacing, variance, predict = case.split("/")
    full = SCHEDULES[schedule](1000)
    return Diffusion(full if respacing == "full" else full.respace(respacing), predict, variance)


def steps(diffusion: Diffusion) -> Tensor:
    """Return the step of each of the four images of INPUT."""
    return torch.tensor([0, 1, len(diffusion) // 2, len(diffusion) - 1])


def output_for(diffusion: Diffusion) -> Tensor:
    return INPUT["raw"] if diffusion.learns_variance else INPUT["raw"][:, :3]


def guided_by(d: Diffusion, p: Prediction, x: Tensor, t: Index, g: Tensor) -> Prediction:
    """Algorithm 2: ε̂ = ε - sqrt(1 - ᾱ) g."""
    factor = (1 - d.schedule.alpha_bar[t]).sqrt().float()
    return d.with_eps(p, x, t, p.eps - (factor if isinstance(t, int) else factor.view(-1, 1, 1, 1)) * g)


def check(expected: dict[str, np.ndarray], case: str, got: dict[str, Tensor]) -> None:
    """Compare every quantity that guided-diffusion has for this case, image by image, since their magnitudes differ."""
    known = {name: expected[f"{case}/{name}"] for name in got if f"{case}/{name}" in expected}
    assert known
    for name, value in known.items():
        actual = got[name].expand(torch.broadcast_shapes(got[name].shape, value.shape)).numpy()
        allowed = TOLERANCE * np.abs(value).reshape(len(value), -1).max(1)
        if "bpd" in name or name == "vb":
            allowed += 1e-6  # a KL near 0 is a difference of numbers near 1
        wrong = np.abs(actual - value).reshape(len(value), -1).max(1)
        assert (wrong <= allowed).all(), f"{name}: errors {wrong}, allowed {allowed}"


# -- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1000, 4000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_betas(name, count):
    schedule = SCHEDULES[name](count)
    assert schedule.betas.dtype == torch.float64
    np.testing.assert_allclose(schedule.betas.numpy(), MATHS[f"betas/{name}/{count}"], rtol=1e-12, atol=0)
    np.testing.assert_allclose(schedule.alpha_bar, np.cumprod(1 - MATHS[f"betas/{name}/{count}"]), rtol=1e-12)
    assert schedule.timesteps.tolist() == list(range(count))


@pytest.mark.parametrize("case,expected", table("maths.json")["respacing"].items())
def test_respacing_keeps_the_timesteps_of_guided_diffusion(case, expected):
    count, spec = case.split("/", 1)
    assert respaced_indices(int(count), spec) == expected
    schedule = NoiseSchedule.cosine(int(count))
    respaced = schedule.respace(spec)
    assert respaced.timesteps.tolist() == expected
    np.testing.assert_allclose(respaced.alpha_bar, schedule.alpha_bar[expected], rtol=1e-9)


def test_forms_of_a_respacing():
    schedule = NoiseSchedule.linear(1000)
    for same in [25, "25", " 25 ", [25], (25,)], ["10,15,20", [10, 15, 20]], ["ddim1000", 1000, "500,500"]:
        assert len({tuple(schedule.respace(spec).timesteps.tolist()) for spec in same}) == 1
    assert schedule.respace(1).timesteps.tolist() == [0]
    assert schedule.respace("ddim50").timesteps[:3].tolist() == [0, 20, 40]
    assert torch.allclose(schedule.respace(1000).betas, schedule.betas, rtol=1e-9)


def test_respacing_twice_keeps_original_timesteps():
    schedule = NoiseSchedule.linear(1000)
    twice = schedule.respace("ddim100").respace("ddim20")
    assert twice.timesteps.tolist() == list(range(0, 1000, 50))
    assert torch.allclose(twice.betas, schedule.respace("ddim20").betas, rtol=1e-9)


@pytest.mark.parametrize(
    "spec",
    [
        "abc",
        "ddim51",
        "ddim0",
        "ddim-5",
        "ddim",
        "0",
        "-3",
        "1001",
        "",
        [],
        2.5,
        [2.5],
        "2.5",
        "500,501",
        "10,,10",
        None,
    ],
    ids=str,
)
def test_invalid_respacings_are_refused(spec):
    with pytest.raises(ValueError, match=r"^steps ") as error_info:
        NoiseSchedule.linear(1000).respace(spec)
    message = str(error_info.value)
    assert "\n" not in message and repr(spec) in message


@pytest.mark.parametrize("betas", [[], [0.0], [0.1, -0.1], [1.1], [[0.1]], [math.nan], 0.1], ids=str)
def test_invalid_betas_are_refused(betas):
    with pytest.raises(ValueError, match=r"^betas must be"):
        NoiseSchedule.from_betas(betas)


@pytest.mark.parametrize(
    "alpha_bar", [[], [0.5, 0.9], [0.9, 0.9], [1.0, 0.5], [0.9, -0.1], [math.nan], [[0.9]]], ids=str
)
def test_invalid_alpha_bars_are_refused(alpha_bar):
    with pytest.raises(ValueError, match=r"^alpha_bar must be"):
        NoiseSchedule.from_alpha_bar(torch.tensor(alpha_bar), torch.arange(len(alpha_bar)))


def test_alpha_bars_given_by_hand():
    schedule = NoiseSchedule.from_alpha_bar(torch.tensor([0.9, 0.45, 0.0]), torch.tensor([0, 7, 9]))
    assert schedule.betas.dtype == torch.float64
    torch.testing.assert_close(schedule.betas, torch.tensor([0.1, 0.5, 1.0]).double(), atol=1e-7, rtol=0)
    torch.testing.assert_close(schedule.alpha_bar, torch.tensor([0.9, 0.45, 0.0]).double(), atol=1e-15, rtol=0)


def test_betas_given_by_hand():
    schedule = NoiseSchedule.from_betas([0.1, 0.5, 1.0], torch.tensor([0, 7, 9]))
    assert schedule.timesteps.tolist() == [0, 7, 9] and schedule.alpha_bar.tolist() == [0.9, 0.45, 0.0]
    with pytest.raises(ValueError, match="timesteps"):
        NoiseSchedule.from_betas([0.1, 0.2], torch.tensor([0]))
    for name in SCHEDULES:
        with pytest.raises(ValueError, match="at least 1 step, got 0"):
            SCHEDULES[name](0)


@pytest.mark.parametrize("case", [key for key in MORE if key.startswith("told/")])
def test_rescaled_timesteps_are_in_thousandths(case):
    _, count, respacing = case.split("/")
    diffusion = DiffusionConfig(
        noise_schedule="cosine", diffusion_steps=int(count), variance="fixed_large", rescale_timesteps=True
    ).build()
    if respacing != "full":
        diffusion = diffusion.respace(respacing)
    t = torch.arange(0, len(diffusion), max(1, len(diffusion) // 50))
    timesteps = diffusion.timestep(t)
    assert timesteps.dtype == torch.float32 and error(timesteps, MORE[case]) < 1e-6
    assert torch.equal(torch.cat([diffusion.timestep(i) for i in t.tolist()]), timesteps)


# -- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_predictions_equal_those_of_guided_diffusion(case):
    d, (x0, x, grad) = diffusion_of(case), (INPUT[name] for name in ("x0", "x", "grad"))
    t, output = steps(d), output_for(d)
    p = d.predict(output, x, t)
    mean, variance, _ = d.posterior(x0, x, t)
    got = {
        "condition_score_x0": guided_by(d, p, x, t, grad).x0,
        "q_sample": d.q_sample(x0, t, INPUT["noise"]),
        "posterior_mean": mean,
        "posterior_variance": variance,
        "vb_bpd": vb_bpd(d, output, x0, x, t),
        "prior_bpd": prior_bpd(d, x0),
    }
    for clip in (0, 1):
        p = d.predict(output, x, t, clip=bool(clip))
        moments = {"mean": p.mean, "variance": p.variance, "log_variance": p.log_variance, "pred_xstart": p.x0}
        got |= {f"clip{clip}/{name}": value for name, value in moments.items()}
    check(MATHS, case, got)


@pytest.mark.parametrize("case", [case for case in MORE_CASES if f"{case}/clip1/mean" in MORE])
def test_other_variances_equal_those_of_guided_diffusion(case):
    d = diffusion_of(case)
    t, output = steps(d), output_for(d)
    p = d.predict(output, INPUT["x"], t)
    moments = {"mean": p.mean, "variance": p.variance, "log_variance": p.log_variance, "pred_xstart": p.x0}
    got = {f"clip1/{name}": value for name, value in moments.items()}
    check(MORE, case, got | {"vb_bpd": vb_bpd(d, output, INPUT["x0"], INPUT["x"], t)})


def test_variances_are_closed_forms():
    schedule = NoiseSchedule.linear(1000)
    beta, alpha_bar = (a.numpy() for a in (schedule.betas, schedule.alpha_bar))
    t, x, v = torch.tensor([1, 250, 999]), INPUT["x"][:3], INPUT["raw"][:3, 3:]
    posterior = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta[t]  # DDPM, equation 7
    fraction = (v.double().numpy() + 1) / 2
    log_range = (
        fraction * np.log(beta[t])[:, None, None, None] + (1 - fraction) * np.log(posterior)[:, None, None, None]
    )
    expected = {
        "fixed_small": posterior,
        "fixed_large": beta[t],
        "learned": np.exp(v.double().numpy()),
        "learned_range": np.exp(log_range),
    }
    for variance, value in expected.items():
        d = Diffusion(schedule, "x0", variance)
        p = d.predict(torch.cat([x, v], 1) if d.learns_variance else x, x, t)
        assert error_by_image(p.variance.squeeze(), value) < 1e-6
        assert error_by_image(p.log_variance.squeeze(), np.log(value)) < 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("predict", ["eps", "x0", "v"])
def test_a_perfect_output_gives_back_x0_and_eps(predict, schedule):
    full = SCHEDULES[schedule](1000)
    d, t = Diffusion(full, predict, "fixed_large"), torch.tensor([10, 200, 500, 900])
    x0, eps = INPUT["x0"].clamp(-1, 1), INPUT["noise"]
    alpha_bar = full.alpha_bar[t].view(-1, 1, 1, 1)
    x = (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps).float()
    output = {"eps": eps, "x0": x0, "v": alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0}[predict]
    assert error(target(d, x0, t, eps), output) < 1e-6
    p = d.predict(output, x, t)
    assert (p.x0 - x0).abs().max() < 1e-4 and (p.eps - eps).abs().max() < 1e-4
    assert (d.posterior(x0, x, t)[0] - p.mean).abs().max() < 1e-4
    assert (d.x0_from_eps(x, t, eps) - x0).abs().max() < 1e-4 and (d.eps_from_x0(x, t, x0) - eps).abs().max() < 1e-4


def test_clipping_carries_over_to_eps_and_mean():
    d, t = Diffusion(NoiseSchedule.linear(), "x0", "fixed_small"), steps(Diffusion(NoiseSchedule.linear()))
    x, output = INPUT["x"], 3 * INPUT["x0"]
    clipped, free, given = (
        d.predict(output, x, t),
        d.predict(output, x, t, clip=False),
        d.predict(output.clamp(-1, 1), x, t),
    )
    assert clipped.x0.abs().max() == 1 and torch.equal(free.x0, output)
    assert torch.equal(clipped.mean, given.mean) and torch.equal(clipped.eps, given.eps)
    assert not torch.allclose(clipped.eps, free.eps)


@pytest.mark.parametrize("variance", ["learned_range", "learned", "fixed_small", "fixed_large"])
def test_an_int_and_a_tensor_of_steps_agree(variance):
    d = Diffusion(NoiseSchedule.cosine().respace(30), "eps", variance)
    x, grad, output = INPUT["x"], INPUT["grad"], output_for(d)
    for t in (0, 1, 29):
        ts = torch.full((4,), t)
        assert d.timestep(t).expand(4).tolist() == d.timestep(ts).tolist() == [d.schedule.timesteps[t]] * 4
        one, many = d.predict(output, x, t), d.predict(output, x, ts)
        one_shifted, many_shifted = guided_by(d, one, x, t, grad), guided_by(d, many, x, ts, grad)
        for name in ("x0", "eps", "mean", "variance", "log_variance"):
            for a, b in (one, many), (one_shifted, many_shifted):
                assert torch.equal(getattr(a, name).expand(x.shape), getattr(b, name).expand(x.shape))
        assert torch.equal(d.q_sample(x, t, grad), d.q_sample(x, ts, grad))


@pytest.mark.parametrize("variance", ["learned_range", "fixed_small", "fixed_large"])
@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.cosine(1), NoiseSchedule.linear().respace(1)], ids=["T=1", "1 of T"]
)
def test_a_single_step(schedule, variance):
    """x_0 | x_1 is x0 itself, and everything is finite."""
    d = Diffusion(schedule, "x0", variance)
    output = output_for(d)
    p = d.predict(output, INPUT["x"], 0)
    assert all(torch.as_tensor(v).isfinite().all() for v in vars(p).values())
    assert (p.mean - output[:, :3].clamp(-1, 1)).abs().max() < 1e-6
    model = Model(lambda x, t: output, d, (3, 8, 8))
    for sampler in samplers.ddpm, samplers.ddim:
        (only,) = sampler(model, INPUT["x"])
        assert (only.x - p.x0).abs().max() < 1e-6 and only.index == 0 and only.t == 0
    assert (
        loss_terms(d, lambda x, t: output, INPUT["x0"], torch.zeros(4, dtype=int), INPUT["noise"])["loss"]
        .isfinite()
        .all()
    )


def test_invalid_predictions_are_refused():
    schedule, x = NoiseSchedule.linear(), INPUT["x"]
    with pytest.raises(ValueError, match=r"'learned_range' needs 6 output channels for 3 .* got 3"):
        Diffusion(schedule).predict(x, x, 0)
    with pytest.raises(ValueError, match=r"'fixed_large' needs 3 output channels for 3 .* got 6"):
        Diffusion(schedule, variance="fixed_large").predict(INPUT["raw"], x, 0)
    with pytest.raises(ValueError, match="unknown prediction 'score'"):
        Diffusion(schedule, "score")
    with pytest.raises(ValueError, match="unknown variance 'big'"):
        Diffusion(schedule, variance="big")
    with pytest.raises(ValueError, match="unknown noise schedule 'sigmoid'"):
        DiffusionConfig(noise_schedule="sigmoid").build()


# -- one step of the samplers ----------------------------------------------------------------------------------------


def step_of(sampler: samplers.Sampler, d: Diffusion, guided: bool, noise: Tensor = INPUT["noise"]) -> Tensor:
    """Return the sampler's step from x at each of steps(d) but the 0th; a truncated schedule makes it the first one."""
    results = []
    for i, t in list(enumerate(steps(d).tolist()))[1:]:
        cut = NoiseSchedule.from_betas(d.schedule.betas[: t + 1], d.schedule.timesteps[: t + 1])
        results.append(first_step(sampler, d.with_schedule(cut), slice(i, i + 1), guided, noise))
    return torch.cat(results)


def first_step(sampler: samplers.Sampler, d: Diffusion, image: slice, guided: bool, noise: Tensor) -> Tensor:
    last, seen = len(d) - 1, []

    def network(x: Tensor, timesteps: Tensor) -> Tensor:
        seen.extend(timesteps.tolist())
        return output_for(d)[image]

    def noise_sampler(x: Tensor, index: int) -> Tensor:
        assert index == last and torch.equal(x, INPUT["x"][image])
        return noise[image]

    def guide(state: State) -> Tensor:
        assert state.index == last and state.t.tolist() == seen and torch.equal(state.x, INPUT["x"][image])
        return INPUT["grad"][image]

    model = Model(network, d, (3, 8, 8))
    step = next(sampler(model, INPUT["x"][image], guide=guide if guided else None, noise_sampler=noise_sampler))
    assert seen == [step.t] == [d.schedule.timesteps[last]] and step.index == last
    return step.x


def check_ddim(d: Diffusion, guided: bool, actual: Tensor, expected: np.ndarray) -> None:
    """Compare up to the rounding of guided-diffusion, which computes 1 - ᾱ from a float32 ᾱ; ours is exact."""
    p = d.predict(output_for(d), INPUT["x"], steps(d))
    p = guided_by(d, p, INPUT["x"], steps(d), INPUT["grad"]) if guided else p
    before = d.schedule.alpha_bar[steps(d)[1:] - 1].numpy()
    rounding = 2.0**-24 / np.sqrt(1 - before) * p.eps[1:].abs().amax((1, 2, 3)).numpy()
    allowed = TOLERANCE * np.abs(expected).max((1, 2, 3)) + rounding
    wrong = np.abs(actual.numpy() - expected).max((1, 2, 3))
    assert (wrong <= allowed).all(), f"errors {wrong}, allowed {allowed}"


@pytest.mark.parametrize("case", CASES)
def test_ddim_steps_equal_those_of_guided_diffusion(case):
    d = diffusion_of(case)
    for name, guided in ("ddim_step", False), ("ddim_guided_step", True):
        check_ddim(d, guided, step_of(samplers.ddim, d, guided), MATHS[f"{case}/{name}"][1:])


@pytest.mark.parametrize("case", CASES)
def test_ddpm_means_equal_those_of_guided_diffusion(case):
    d, silence = diffusion_of(case), torch.zeros(4, 3, 8, 8)
    for name, guided in ("clip1/mean", False), ("condition_mean", True):
        assert error_by_image(step_of(samplers.ddpm, d, guided, silence), MATHS[f"{case}/{name}"][1:]) < TOLERANCE


@pytest.mark.parametrize("case", MORE_CASES)
def test_noisy_steps_equal_those_of_guided_diffusion(case):
    d = diffusion_of(case)
    for name, guided in ("ddpm_step", False), ("ddpm_guided_step", True):
        assert error_by_image(step_of(samplers.ddpm, d, guided), MORE[f"{case}/{name}"][1:]) < TOLERANCE
    for name, guided, eta in ("ddim_eta1_step", False, 1.0), ("ddim_eta0.4_guided_step", True, 0.4):
        check_ddim(d, guided, step_of(partial(samplers.ddim, eta=eta), d, guided), MORE[f"{case}/{name}"][1:])


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_invalid_eta_is_refused(eta):
    model = Model(lambda x, t: x, Diffusion(NoiseSchedule.cosine(4), variance="fixed_large"), (3, 8, 8))
    with pytest.raises(ValueError, match="eta must be in"):
        list(samplers.ddim(model, INPUT["x"], eta=eta))


# -- losses ----------------------------------------------------------------------------------------------------------

OBJECTIVES = {"mse": {"vlb_weight": 1 / 1000}, "hybrid": {}, "kl": {"objective": "vlb"}}
"""OpenAI's losses as ours. MSE: the vb is not multiplied by T; RESCALED_MSE: by T/1000; RESCALED_KL: vlb alone."""
LOSSES = [f"{name}/learned_range/eps" for name in OBJECTIVES] + sorted(
    {"/".join(key.split("/")[2:5]) for key in MORE if key.startswith("loss/")}
)


@pytest.mark.parametrize("case", LOSSES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_losses_equal_those_of_guided_diffusion(schedule, case):
    name, variance, predict = case.split("/")
    d = Diffusion(SCHEDULES[schedule](1000), predict, variance)
    t = torch.tensor([0, 1, 500, 999])

    def network(x: Tensor, timesteps: Tensor) -> Tensor:
        assert timesteps.tolist() == t.tolist()
        return (INPUT["raw"] + 0.1 * torch.cat([x, x], dim=1))[:, : 6 if d.learns_variance else 3]

    got = loss_terms(d, network, INPUT["x0"], t, INPUT["noise"], **OBJECTIVES[name])
    if name == "kl":
        got.pop("vb")  # theirs has none
    prefix = f"loss/{schedule}/{name}/{variance}/{predict}"
    check(*(MORE, prefix) if f"{prefix}/loss" in MORE else (MATHS, f"loss/{schedule}/{name}"), got)


def test_hybrid_objective_teaches_the_mean_by_the_mse_alone():
    """The gradient of the vlb term with respect to the prediction is stopped (Improved DDPM, section 3.1)."""
    d, t = Diffusion(NoiseSchedule.cosine()), torch.tensor([0, 1, 500, 999])
    output = INPUT["raw"].clone().requires_grad_(True)

    def gradient(key: str, objective: str) -> Tensor:
        terms = loss_terms(d, lambda x, ts: output, INPUT["x0"], t, INPUT["noise"], objective=objective)
        return torch.autograd.grad(terms[key].sum(), output)[0]

    vb, whole, simple, vlb = (
        gradient(*a) for a in [("vb", "hybrid"), ("loss", "hybrid"), ("loss", "simple"), ("loss", "vlb")]
    )
    assert not vb[:, :3].any() and (vb[:, 3:].flatten(1).abs().amax(1) > 0).all()
    assert torch.equal(whole[:, :3], simple[:, :3]) and not simple[:, 3:].any()
    assert torch.allclose(whole[:, 3:], 0.001 * 1000 * vb[:, 3:])
    assert (vlb.flatten(2).abs().amax(2) > 0).all()  # without the stop, it teaches both


def test_gaussian_kl():
    m1, s1, m2, s2 = (torch.tensor(v, dtype=torch.float64) for v in (0.7, 0.5, -1.1, 1.9))
    normals = torch.distributions.Normal(m1, s1), torch.distributions.Normal(m2, s2)
    expected = torch.distributions.kl_divergence(*normals)
    assert abs(gaussian_kl(m1, 2 * s1.log(), m2, 2 * s2.log()) - expected) < 1e-12


@pytest.mark.parametrize("mean,std", [(0.0, 0.3), (0.95, 0.02), (-1.3, 0.5), (0.2, 0.004), (0.4, 3.0)])
def test_likelihood_of_8_bit_values(mean, std):
    from scipy.stats import norm

    levels = np.arange(256) / 127.5 - 1
    x = torch.tensor(levels, dtype=torch.float32)
    mass = discretized_gaussian_log_likelihood(x, torch.full((256,), mean), torch.full((256,), math.log(std))).exp()
    assert abs(mass.sum() - 1) < 1e-3
    edges = np.concatenate([[-np.inf], levels[:-1] + 1 / 255, [np.inf]])
    assert np.abs(mass.numpy() - np.diff(norm.cdf(edges, mean, std))).max() < 4e-4  # the tanh approximation's error
    assert mass.argmax() == np.abs(levels - mean).argmin() or mean < -1 or std > 1
