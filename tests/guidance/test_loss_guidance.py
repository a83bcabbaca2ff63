"""Energies and inverse problems, on Gaussian data N(m, v) where the posterior and every derivative is known."""

from __future__ import annotations

import math
from dataclasses import replace

import exact
import numpy as np
import pytest
import torch
from exact import EVEN, LINEAR, Mixture, Network, betas_of, normal
from scipy.special import dawsn
from torch.nn.functional import interpolate

import admg
from admg import guidance, samplers
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.diffusion.gaussian import Diffusion
from admg.diffusion.schedule import NoiseSchedule
from admg.guidance import State
from admg.guidance.bounded import clamp_gradient

rng = np.random.default_rng(0)
SHAPE = (3, 4, 4)
MEAN, STD = rng.uniform(-0.3, 0.3, (1, *SHAPE)), rng.uniform(0.1, 0.4, (1, *SHAPE))
GAUSSIAN = Mixture.of(SHAPE, [1.0], MEAN, STD, [0])


def model_of(mixture: Mixture = GAUSSIAN, steps: int | str = 20, variance: str = "fixed_small") -> Model:
    return exact.model_of(mixture, variance).respace(steps)


def state_of(index: int = 8, n: int = 5, model: Model | None = None) -> State:
    model, x = model or model_of(), normal(n, SHAPE)
    return State(x, index, None, None, model, clip=False)


def tweedie(state: State) -> tuple[np.ndarray, np.ndarray]:
    """x0-hat of Gaussian data and its derivative, sqrt(ᾱ) v / (ᾱ v + 1 - ᾱ), in each pixel."""
    alpha_bar = EVEN[int(state.t)]
    gain = math.sqrt(alpha_bar) * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
    return MEAN + gain * (state.x.double().numpy() - math.sqrt(alpha_bar) * MEAN), gain


# -- Loss --------------------------------------------------------------------------------------------------------


def square_to(target: float):
    return lambda x: (x - target).square().flatten(1).sum(1) / 2


@pytest.mark.parametrize("index", [0, 8, 19])
def test_a_quadratic_energy_at_x0_has_tweedies_derivative(index):
    """Near pure noise x0-hat magnifies rounding by 1/sqrt(ᾱ), up to 150 times here: float64 is exact to 1e-12."""
    single = state_of(index)
    state = replace(single, x=single.x.double())
    x0, gain = tweedie(state)
    with torch.no_grad():  # as in a sampler
        found, in_single = (guidance.LossGuidance(square_to(0.4), 1.5)(s) for s in (state, single))
    np.testing.assert_allclose(found, -1.5 * gain * (x0 - 0.4), atol=1e-10)
    assert in_single.dtype == torch.float32 and not in_single.requires_grad and not single.x.requires_grad


def test_a_quadratic_energy_at_x_and_a_scale_of_the_noise():
    state = state_of()
    sigma = math.sqrt(1 / EVEN[int(state.t)] - 1)
    found = guidance.LossGuidance(square_to(0.4), lambda level: 1 / (1 + level), at="x")(state)
    np.testing.assert_allclose(found, -(state.x.double().numpy() - 0.4) / (1 + sigma), atol=1e-5, rtol=1e-5)


def test_the_exact_energy_at_x_gives_the_exact_tilted_data():
    """p(x) exp(-(x - m)²/(2 u)) of N(m, v) is N(m, v'), 1/v' = 1/v + 1/u; with the energy of x_t, -log E[exp(-E)]."""
    mean, variance, other = 0.2, 0.09, 0.06
    mixture = Mixture.of((1, 1, 1), [1.0], [mean], [math.sqrt(variance)], [0])
    model, tilted = model_of(mixture, 50), 1 / (1 / variance + 1 / other)
    level: list[float] = []

    def note(state: State) -> None:
        level.append(EVEN[int(state.t)])

    def energy(x: torch.Tensor) -> torch.Tensor:  # log N(x_t; p) - log N(x_t; tilted), up to a constant
        a = level[-1]
        square = (x - math.sqrt(a) * mean).square() / 2
        return (square * (1 / (a * tilted + 1 - a) - 1 / (a * variance + 1 - a))).flatten(1).sum(1)

    x_T = normal(6, (1, 1, 1))
    found = list(samplers.ddim(model, x_T, guide=note + guidance.LossGuidance(energy, at="x"), clip=False))[-1].x
    direct = model_of(Mixture.of((1, 1, 1), [1.0], [mean], [math.sqrt(tilted)], [0]), 50)
    torch.testing.assert_close(found, list(samplers.ddim(direct, x_T, clip=False))[-1].x, atol=1e-5, rtol=1e-4)


def test_invalid_losses_are_refused():
    state = state_of()
    for scale in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            guidance.LossGuidance(square_to(0.0), scale)
    with pytest.raises(ValueError, match="'x' or 'x0'"):
        guidance.LossGuidance(square_to(0.0), at="eps")
    with pytest.raises(ValueError, match=r"one value per image, \(5,\), got \(\)"):
        guidance.LossGuidance(lambda x: x.square().sum())(state)
    with pytest.raises(ValueError, match="must depend on the image"):
        guidance.LossGuidance(lambda x: torch.ones(len(x)))(state)
    with pytest.raises(ValueError, match="the loss must return a tensor computed by torch, got ndarray"):
        guidance.LossGuidance(lambda x: x.detach().numpy().mean((1, 2, 3)))(state)
    with pytest.raises(ValueError, match="the loss must be computed by torch, not by numpy"):
        guidance.LossGuidance(lambda x: x.numpy().mean((1, 2, 3)))(state)
    assert guidance.LossGuidance(lambda x: 1 / 0, 0.0)(state) is None


def test_a_loss_of_two_arguments_finds_the_images_of_its_batch(tiny_model):
    """Each image has a reference of its own; a batch of three or of one gives the same images as all at once."""
    references, seen = torch.linspace(-1, 1, 7)[:, None, None, None], []

    def towards(x0, state):
        seen.append(state.rows)
        return 20 * (x0 - references[state.rows]).square().mean((1, 2, 3))

    def plain(state):
        return references[state.rows] - state.x

    options = {"num": 7, "steps": 2, "progress": False}
    for guide in (guidance.LossGuidance(towards), plain):
        whole = admg.sample(tiny_model, ["one"], guide=guide, **options).x
        for size in (1, 3):
            parts = admg.sample(tiny_model, ["one"], guide=guide, batch_size=size, **options).x
            assert (whole - parts).abs().max() < 1e-4
    assert seen[0] == slice(0, 7) and {(rows.start, rows.stop) for rows in seen[-6:]} == {(0, 3), (3, 6), (6, 7)}
    assert guidance.LossGuidance(towards).reads_labels and not guidance.LossGuidance(square_to(0.0)).reads_labels
    assert state_of(n=4).rows == slice(0, 4)  # outside a call


def test_a_loss_with_an_optional_argument_is_given_images_alone():
    def loss(x0, target=0.4):
        return square_to(target)(x0)

    found = guidance.LossGuidance(loss)(state_of())
    assert torch.equal(found, guidance.LossGuidance(square_to(0.4))(state_of()))


def test_sizes_in_a_loss_that_do_not_match(tiny_model):
    x = torch.zeros(8, 1, 8, 8)
    guide = guidance.LossGuidance(lambda x0: (x0 - x).abs().sum((1, 2, 3)))
    message = r"do not match, for images 0 to 3 of 8 of shape \(4, 1, 8, 8\): .*4.*8.*; a loss of \(x0, state\)"
    options = {"steps": 1, "progress": False}
    with pytest.raises(ValueError, match=message):
        admg.sample(tiny_model, ["one"], num=8, batch_size=4, guide=guide, **options)
    with pytest.raises(ValueError, match=r"do not match, for images of shape \(3, 1, 8, 8\): [^;]*$"):
        admg.sample(tiny_model, ["one"], num=3, guide=guide, **options)
    with pytest.raises(ValueError, match="must be a function of images, or of images and the State"):
        guidance.LossGuidance(lambda a, b, c: a)


# -- operators ---------------------------------------------------------------------------------------------------

KNOWN = torch.from_numpy(rng.uniform(size=(4, 4)) < 0.5)
OPERATORS = {
    "mask": guidance.Mask(KNOWN),
    "mask of channels": guidance.Mask(torch.from_numpy(rng.uniform(size=SHAPE) < 0.5)),
    "downsample": guidance.Downsample(2),
    "grey": guidance.Grey(),
    "blur": guidance.Blur.gaussian(0.8),
}


def matrix(operator) -> np.ndarray:
    """A, (M, 48), from its action on unit images."""
    return operator(torch.eye(48, dtype=torch.float64).view(48, *SHAPE)).flatten(1).T.numpy()


def test_operators_do_what_they_say():
    x = normal(2, SHAPE).double()
    pixels = x.numpy()
    np.testing.assert_allclose(OPERATORS["mask"](x), pixels[:, :, KNOWN.numpy()].reshape(2, -1))
    blocks = pixels.reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    np.testing.assert_allclose(OPERATORS["downsample"](x), blocks)
    grey = 0.2126 * pixels[:, 0] + 0.7152 * pixels[:, 1] + 0.0722 * pixels[:, 2]
    np.testing.assert_allclose(OPERATORS["grey"](x)[:, 0], grey)
    kernel = rng.uniform(size=(3, 3))
    padded = np.pad(pixels, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    blurred = sum(kernel[i, j] * padded[:, :, i : i + 4, j : j + 4] for i in range(3) for j in range(3))
    np.testing.assert_allclose(guidance.Blur(torch.from_numpy(kernel))(x), blurred)
    np.testing.assert_allclose(OPERATORS["blur"](torch.full((1, 3, 8, 8), 0.3)), 0.3, rtol=1e-5)


@pytest.mark.parametrize("name", ["mask", "mask of channels", "downsample", "grey"])
def test_gram_is_a_times_its_transpose(name):
    a = matrix(OPERATORS[name])
    np.testing.assert_allclose(a @ a.T, OPERATORS[name].gram * np.eye(len(a)), atol=1e-12)


def test_invalid_operators_are_refused():
    x = normal(1, SHAPE)
    for make, message in (
        (lambda: guidance.Mask(torch.ones(4, 4)), "bool"),
        (lambda: guidance.Mask(torch.zeros(4, 4, dtype=torch.bool)), "at least one"),
        (lambda: guidance.Mask(torch.ones(5, 4, dtype=torch.bool))(x), "the mask must match images"),
        (lambda: guidance.Mask(torch.ones(1, 4, 4, dtype=torch.bool))(x), "the mask must match images"),
        (lambda: guidance.Downsample(0), "at least 1"),
        (lambda: guidance.Downsample(3)(x), "factor must divide"),
        (lambda: guidance.Grey((0.5, 0.5))(x), "one number for each of 3 channels, got 2"),
        (lambda: guidance.Blur(torch.ones(2, 3)), "odd"),
        (lambda: guidance.Blur.gaussian(math.nan), "deviation"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# -- the bound ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 8, 19])
def test_a_score_is_bounded_by_the_largest_that_an_exact_one_can_be(index):
    """For images that are all -1 or all 1, the score of the wrong label approaches the bound 2 sqrt(ᾱ)/(1 - ᾱ)."""
    two = Mixture.of((1, 1, 1), [1.0, 1.0], [-1.0, 1.0], [1e-6, 1e-6], [0, 1])
    clipped = replace(state_of(index), x=torch.zeros(2, 1, 1, 1), clip=True)
    alpha_bar = EVEN[int(clipped.t)]
    x = torch.full((1, 1, 1, 1), -20 * (1 - alpha_bar) / math.sqrt(alpha_bar))  # the share of 1 there is e^-40
    exact = guidance.log_prob_gradient(two.classifier, x, clipped.t, torch.tensor([1])).item()
    found = clamp_gradient(torch.tensor([1e9, -1e9]).view(2, 1, 1, 1), clipped).flatten()
    np.testing.assert_allclose(found, [exact, -exact], rtol=1e-4)
    below = torch.full((2, 1, 1, 1), 0.999 * exact)
    assert torch.equal(clamp_gradient(below, clipped), below)
    far = 1e9 * torch.ones(2, 1, 1, 1)
    assert torch.equal(clamp_gradient(far, replace(clipped, clip=False)), far)  # images of no known range


X0_GUIDES = {
    "Loss": guidance.LossGuidance(lambda x: -x.flatten(1).sum(1), 1e6),
    "LinearInverse": guidance.LinearInverse(guidance.Downsample(2), torch.ones(1, 3, 2, 2), 1e-4),
    "DPS": guidance.DPS(guidance.Downsample(2), torch.ones(1, 3, 2, 2), 1e6),
    "Classifier": guidance.ExtendedClassifierGuidance(
        lambda x: x.mean((2, 3)) * x.new_tensor([1.0, 0, 0]), 1e7, at="x0", labels={0: 1.0}
    ),
}


@pytest.mark.parametrize("name", X0_GUIDES)
def test_every_guide_at_x0_is_bounded(name):
    state = state_of()
    alpha_bar = EVEN[int(state.t)]
    free, kept = (X0_GUIDES[name](replace(state, clip=clip)) for clip in (False, True))
    most = 2 * math.sqrt(alpha_bar) / (1 - alpha_bar)
    assert free.abs().amax() > 2 * most
    np.testing.assert_allclose(kept, free.clamp(-most, most), rtol=1e-5)


def test_a_gradient_at_x_is_not_bounded():
    state = replace(state_of(), clip=True)
    assert (guidance.LossGuidance(lambda x: -x.flatten(1).sum(1), 1e6, at="x")(state) == 1e6).all()


@pytest.mark.thorough
def test_samples_of_a_network_do_not_diverge_near_pure_noise():
    """Of the shipped one: errors of its eps count 150 times and more in x0-hat at the first of these steps."""
    model = admg.load("fashion-mnist")
    known = torch.ones(32, 32, dtype=torch.bool)
    known[:, 16:] = False
    garment = admg.sample(model, ["coat"], seed=3, steps=6, progress=False).x
    guide = guidance.LinearInverse(guidance.Mask(known), garment[:, :, known].flatten(1), 0.05, prior_std=0.5)
    x = admg.sample(model, ["coat"], guide=guide, steps=10, progress=False).x
    assert x.abs().max() < 1.2
    assert (x - garment)[:, :, known].square().mean().sqrt() < 0.2


# -- inverse problems --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior_std", [0.0, 0.3])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_likelihoods_score_by_hand(name, prior_std):
    """J Aᵀ (y - A x0-hat) / (σ_y² + g r_t²), J = Tweedie's derivative, r_t² = p² σ²/(p² + σ²)."""
    operator, state = OPERATORS[name], state_of()
    y = operator(normal(5, SHAPE, seed=1))
    if prior_std and operator.gram is None:
        with pytest.raises(ValueError, match="A Aᵀ"):
            guidance.LinearInverse(operator, y, 0.2, prior_std)
        return
    a, (x0, gain) = matrix(operator), tweedie(state)
    squared = 1 / EVEN[int(state.t)] - 1
    variance = 0.2**2 + (operator.gram or 0) * prior_std**2 * squared / (prior_std**2 + squared)
    r = y.flatten(1).double().numpy() - x0.reshape(5, -1) @ a.T
    expected = gain * (r @ a / variance).reshape(5, *SHAPE)
    found = guidance.LinearInverse(operator, y, 0.2, prior_std)(state)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-3)


def posterior_by_ddim(prior_std: float, steps: str | int, v: float, noise: float, y: float) -> tuple[float, float]:
    """Mean and deviation of the guided samples of N(0, v) given y = x_0 + noise: DDIM's map of x_T is affine."""
    model = model_of(Mixture.of((1, 1, 1), [1.0], [0.0], [math.sqrt(v)], [0]), steps)
    guide = guidance.LinearInverse(
        guidance.Mask(torch.ones(1, 1, dtype=torch.bool)), torch.full((1, 1), y), noise, prior_std
    )
    x_T = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    at_0, at_1 = list(samplers.ddim(model, x_T, guide=guide, clip=False))[-1].x.flatten().tolist()
    return at_0, at_1 - at_0


@pytest.mark.thorough
@pytest.mark.parametrize("v, noise, y", [(0.25, 0.5, 0.8), (0.25, 0.3, 0.8), (0.04, 0.3, -0.5)])
def test_with_the_datas_own_variance_the_posterior_is_exact(v, noise, y):
    """v y/(v + σ_y²) and v σ_y²/(v + σ_y²); the error of DDIM, of first order, is extrapolated away.

    x_T = 0 is not quite where the mean comes from, sqrt(ᾱ_T) times itself, which is corrected for.
    """
    mean, deviation = v * y / (v + noise**2), math.sqrt(v * noise**2 / (v + noise**2))
    exact = np.array([mean * (1 - math.sqrt(EVEN[995]) * deviation), deviation])
    coarse, fine = (np.array(posterior_by_ddim(math.sqrt(v), steps, v, noise, y)) for steps in ("ddim100", "ddim200"))
    np.testing.assert_allclose(2 * fine - coarse, exact, atol=3e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("v, noise, y", [(0.25, 0.5, 0.8), (0.25, 0.3, 0.8), (0.04, 0.3, -0.5)])
def test_dps_has_its_known_bias(v, noise, y):
    """With r_t = 0, in w = v/(v + σ²): du/dw = -k u + (k y/sqrt(v)) w^(-1/2), k = v/(2 σ_y²), u = x/sqrt(v + σ²).

    So the mean is 2 sqrt(k) D(sqrt(k)) y, beyond the exact one, and the deviation sqrt(v) e^-k, below it; up to the
    little that is missing before the first w, which D at that end takes away.
    """
    coarse, fine = (np.array(posterior_by_ddim(0.0, steps, v, noise, y)) for steps in ("ddim100", "ddim200"))
    k, sigma_squared = v / (2 * noise**2), 1 / EVEN[995] - 1
    w = v / (v + sigma_squared)
    mean = 2 * math.sqrt(k) * y * (dawsn(math.sqrt(k)) - math.exp(-k * (1 - w)) * dawsn(math.sqrt(k * w)))
    deviation = math.sqrt(v) * math.exp(-k * (1 - w)) / math.sqrt(v * EVEN[995] + 1 - EVEN[995])
    np.testing.assert_allclose(2 * fine - coarse, [mean, deviation], atol=3e-4)
    exact = [v * y / (v + noise**2), math.sqrt(v * noise**2 / (v + noise**2))]
    assert abs(mean) > 1.2 * abs(exact[0]) and deviation < 0.97 * exact[1]


def test_the_step_of_dps_in_ddpm():
    """x_{t-1} moves by -ζ ∇||y - A x0-hat|| = ζ J Aᵀ r/||r||, with Σ = β_t."""
    operator, model = OPERATORS["downsample"], model_of(variance="fixed_large")
    state = state_of(model=model)
    y = operator(normal(1, SHAPE, seed=2))
    betas = betas_of(EVEN[model.diffusion.schedule.timesteps.numpy()])
    x0, gain = tweedie(state)
    r = y.flatten(1).double().numpy() - x0.reshape(5, -1) @ matrix(operator).T
    step = 0.7 * gain * (r / np.linalg.norm(r, axis=1, keepdims=True) @ matrix(operator)).reshape(5, *SHAPE)
    found = guidance.DPS(operator, y, 0.7)(state)
    np.testing.assert_allclose(found * betas[state.index], step, atol=1e-5, rtol=1e-4)

    def one_step(guide) -> torch.Tensor:  # the first step of ddpm, with the noise left out
        return next(samplers.ddpm(model, normal(5, SHAPE), guide=guide, noise_sampler=lambda x, i: 0 * x, clip=False)).x

    state = state_of(19, model=model)
    moved = one_step(guidance.DPS(operator, y, 0.7)) - one_step(None)
    x0, gain = tweedie(state)
    r = y.flatten(1).double().numpy() - x0.reshape(5, -1) @ matrix(operator).T
    step = 0.7 * gain * (r / np.linalg.norm(r, axis=1, keepdims=True) @ matrix(operator)).reshape(5, *SHAPE)
    np.testing.assert_allclose(moved, step, atol=1e-5)


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small", "learned_range"])
@pytest.mark.parametrize("alpha_bars", [EVEN, LINEAR], ids=["even", "linear"])
def test_every_step_of_dps_in_ddpm_is_the_papers(variance, alpha_bars):
    """x_{t-1} moves by -ζ ∇||y - A x0-hat||, for every Σ > 0 and in the last step too (Chung et al. 2023, Algorithm 1).

    The variance is a number v for each image, so that x0-hat has the gradient sqrt(ᾱ) v/(ᾱ v + 1 - ᾱ).
    """
    mixture = Mixture.of(SHAPE, [1.0], [0.0], [0.5], [0], alpha_bars)
    schedule = NoiseSchedule.from_betas(betas_of(alpha_bars))
    network = Network(mixture, range_v=torch.sin if variance == "learned_range" else None)
    model = Model(network, Diffusion(schedule, "eps", variance), SHAPE, Labels(1))
    operator, x = guidance.Downsample(2), normal(4, SHAPE).double()
    y = operator(normal(4, SHAPE, seed=3).double())
    guided = samplers.guided_model(model, x, None, guidance.DPS(operator, y, 0.7), clip=False, unconditional=True)
    for index in (999, 500, 10, 1, 0):
        p, g = guided.predict(x, index)
        gain = alpha_bars[index] ** 0.5 * 0.25 / (0.25 * alpha_bars[index] + 1 - alpha_bars[index])
        r = y - operator(gain * x)
        ascent = gain * interpolate(r, scale_factor=2.0) / 4 / r.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        if variance == "fixed_small" and index == 0:
            assert (p.variance * g == 0).all() and g.isfinite().all()
        else:
            torch.testing.assert_close(p.variance * g, 0.7 * ascent, atol=1e-9, rtol=1e-9)


@pytest.mark.thorough
def test_samples_fit_what_was_measured():
    """Of the mask's pixels, in 50 steps of each sampler that takes scores; the other pixels stay as they were."""
    operator, x_T = OPERATORS["mask"], normal(6, SHAPE)
    y = operator(torch.full((1, *SHAPE), 0.5))
    # r_t² of one prior for all pixels, an approximation here
    guide = guidance.LinearInverse(operator, y, 0.1, 0.3)
    known = KNOWN.expand(SHAPE)
    for sampler in (samplers.ddim, samplers.dpmpp_2m):
        free, guided = (list(sampler(model_of(steps=50), x_T, guide=g, clip=False))[-1].x for g in (None, guide))
        torch.testing.assert_close(guided[:, ~known], free[:, ~known], atol=1e-5, rtol=1e-4)
        assert (guided[:, known] - 0.5).abs().mean() < 0.4 * (free[:, known] - 0.5).abs().mean()


def test_invalid_inverse_problems_are_refused():
    operator, state = OPERATORS["downsample"], state_of()
    y = operator(normal(5, SHAPE))
    for noise in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="noise_std must be above 0"):
            guidance.LinearInverse(operator, y, noise)
    with pytest.raises(ValueError, match="prior_std must be at least 0"):
        guidance.LinearInverse(operator, y, 0.1, -0.1)
    with pytest.raises(ValueError, match="A Aᵀ"):
        guidance.LinearInverse(lambda x: x, y, 0.1, 1.0)
    with pytest.raises(ValueError, match="finite"):
        guidance.DPS(operator, y, math.nan)
    for bad in (y[:3], y[:, :1], y.flatten(1)):
        with pytest.raises(ValueError, match="must have the shape of the operator's result"):
            guidance.DPS(operator, bad)(state)
