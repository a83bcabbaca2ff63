"""Divergences, calibration, gradient-free guidance, ILVR, embeddings, and guides together, against exact answers."""

from __future__ import annotations

import math
from dataclasses import replace

import exact
import numpy as np
import pytest
import torch
from exact import EVEN, Mixture, betas_of, normal
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

import admg
from admg import guidance, samplers
from admg.checkpoints.model import Model
from admg.diffusion.gaussian import Diffusion
from admg.diffusion.schedule import NoiseSchedule
from admg.guidance import Divergence, State

rng = np.random.default_rng(0)
SHAPE, N, K = (3, 2, 2), 12, 4
MIXTURE = Mixture.of(SHAPE, [20, 10, 25, 15, 10, 20], rng.uniform(-0.3, 0.3, (6, *SHAPE)),
                     rng.uniform(0.05, 0.2, (6, *SHAPE)), [0, 0, 1, 1, 2, 2])  # fmt: skip
Y = torch.arange(N) % 3


def model_of(
    mixture: Mixture = MIXTURE, conditional: bool = True, steps: int = 20, variance: str = "fixed_small"
) -> Model:
    return exact.model_of(mixture, variance, conditional=conditional).respace(steps)


def state_of(index: int = 8, model: Model | None = None, x: torch.Tensor | None = None, y=Y, **changes) -> State:
    model, x = model or model_of(), normal(N, SHAPE) if x is None else x
    return replace(State(x, index, y, y if model.conditional else None, model, clip=False), **changes)


def run(guide, model: Model | None = None, sampler=samplers.ddim, x_T=None, y=Y, **options) -> torch.Tensor:
    x_T = normal(N, SHAPE) if x_T is None else x_T
    return list(sampler(model or model_of(), x_T, y=y, guide=guide, clip=False, **options))[-1].x


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


# -- divergences, of logits z = W x + b ----------------------------------------------------------------------------

WEIGHT, BIAS = rng.normal(size=(K, 12)), rng.normal(size=K)
INDEPENDENT = {
    "q||p": lambda q, p: entropy(q, p, axis=1),
    "p||q": lambda q, p: entropy(p, q, axis=1),
    "js": lambda q, p: jensenshannon(q, p, axis=1) ** 2,
}


def linear(x: torch.Tensor, timesteps: torch.Tensor | None = None) -> torch.Tensor:
    return x.flatten(1) @ torch.from_numpy(WEIGHT).float().T + torch.from_numpy(BIAS).float()


def central_differences(function, x: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """Of function (N, D) -> (N,), each row of its own."""
    return np.stack([(function(x + h * e) - function(x - h * e)) / (2 * h) for e in np.eye(x.shape[1])], axis=1)


@pytest.mark.parametrize("kind", ["q||p", "p||q", "js"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_divergences_are_scipys(kind, smoothing):
    if kind == "p||q" and smoothing == 0:
        with pytest.raises(ValueError, match="above 0"):
            Divergence(1.0, kind, smoothing)
        return
    state = state_of()
    q = (1 - smoothing) * np.eye(K)[Y.numpy()] + smoothing / K

    def value(x: np.ndarray) -> np.ndarray:
        p = softmax((x @ WEIGHT.T + BIAS) / 1.5)
        return np.log(p)[np.arange(N), Y.numpy()] - 0.7 * INDEPENDENT[kind](q, p)

    expected = 2.0 * central_differences(value, state.x.double().flatten(1).numpy())
    guide = guidance.ExtendedClassifierGuidance(
        linear, 2.0, temperature=1.5, divergence=Divergence(0.7, kind, smoothing)
    )
    np.testing.assert_allclose(guide(state).flatten(1), expected, atol=3e-5, rtol=1e-4)


def test_the_target_of_several_labels_has_their_weights():
    state, q = state_of(), 0.9 * np.array([0, 0.25, 0, 0.75]) + 0.1 / K
    guide = guidance.ExtendedClassifierGuidance(linear, labels={1: 0.5, 3: 1.5}, divergence=Divergence(0.4))

    def value(x: np.ndarray) -> np.ndarray:
        p = softmax(x @ WEIGHT.T + BIAS)
        return np.log(p) @ [0, 0.5, 0, 1.5] - 0.4 * entropy(np.tile(q, (N, 1)), p, axis=1)

    expected = central_differences(value, state.x.double().flatten(1).numpy())
    np.testing.assert_allclose(guide(state).flatten(1), expected, atol=3e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="negative weight"):
        replace(guide, labels={1: 1.0, 3: -1.0})(state)


@pytest.mark.parametrize("kind", ["q||p", "p||q", "js"])
def test_divergences_leave_images_without_a_label_alone(kind):
    state = state_of()
    state = replace(state, y=torch.where(torch.arange(N) % 2 == 0, Y, -1))
    found = guidance.ExtendedClassifierGuidance(linear, divergence=Divergence(0.7, kind))(state)
    assert (found[1::2] == 0).all() and (found[::2] != 0).any((1, 2, 3)).all()


def test_where_the_classifier_is_sure_the_gradient_does_not_vanish():
    """λ (q - p) W: of a p that is 1 at y, all that is left is λ ε/K Σ_k (W_k - W_y)."""

    def sure(x, timesteps=None):
        return linear(x) + 200 * torch.nn.functional.one_hot(Y, K)

    state = state_of()
    assert guidance.ClassifierGuidance(sure)(state).abs().max() < 1e-6
    found = guidance.ExtendedClassifierGuidance(sure, divergence=Divergence(1.5, smoothing=0.2))(state)
    expected = 1.5 * 0.2 / K * (WEIGHT[None] - WEIGHT[Y.numpy()][:, None]).sum(1)
    np.testing.assert_allclose(found.flatten(1), expected, atol=1e-5)
    wrong = guidance.ExtendedClassifierGuidance(
        lambda x, t: linear(x) + 200 * torch.eye(K)[(Y + 1) % K], divergence=Divergence(kind="js")
    )
    assert wrong(state).isfinite().all()


def test_invalid_divergences_are_refused():
    for options, message in (
        ({"weight": math.nan}, "finite"), ({"kind": "kl"}, "kind must be one of"), ({"smoothing": 1.0}, "smoothing"),
        ({"smoothing": math.nan}, "smoothing"), ({"kind": "p||q", "smoothing": 0.0}, "above 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Divergence(**options)


# -- temperatures and calibration ----------------------------------------------------------------------------------


def test_the_temperature_may_follow_the_noise_level():
    state = state_of()
    sigma = math.sqrt(1 / EVEN[int(state.t)] - 1)
    found = guidance.ExtendedClassifierGuidance(linear, temperature=lambda level: 1 + level)(state)
    torch.testing.assert_close(found, guidance.ExtendedClassifierGuidance(linear, temperature=1 + sigma)(state))
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            guidance.ExtendedClassifierGuidance(linear, temperature=lambda level, bad=bad: bad)(state)


@pytest.mark.parametrize("z, right, wrong", [(5.0, 3, 1), (0.4, 9, 1), (-2.0, 1, 4)])
def test_the_temperature_of_two_labels_in_closed_form(z, right, wrong):
    """Of equal logits (z, 0), T = z/log(right/wrong)."""
    logits, labels = torch.tensor([[z, 0.0]]).expand(right + wrong, 2), torch.tensor([0] * right + [1] * wrong)
    assert guidance.fit_temperature(logits, labels) == pytest.approx(z / math.log(right / wrong), rel=1e-6)


def test_the_temperature_has_the_least_cross_entropy():
    z, labels = torch.from_numpy(rng.normal(size=(300, K)) * 3), torch.from_numpy(rng.integers(0, K, 300))
    labels = torch.where(torch.from_numpy(rng.uniform(size=300) < 0.6), z.argmax(1), labels)

    def cross_entropy(log_t: float) -> float:
        return -np.log(softmax(z.numpy() / math.exp(log_t)))[np.arange(300), labels.numpy()].mean()

    best = math.exp(minimize_scalar(cross_entropy, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x)
    assert guidance.fit_temperature(z, labels) == pytest.approx(best, rel=1e-5)


def test_temperatures_without_a_least_are_limited():
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    assert guidance.fit_temperature(logits, torch.tensor([0, 1])) == pytest.approx(0.01, rel=1e-6)
    assert guidance.fit_temperature(logits, torch.tensor([1, 0])) == pytest.approx(100, rel=1e-6)


def test_the_expected_calibration_error_by_hand():
    """Two bins: confidences 0.6 and 0.8 (one of two right) in one, 0.45 (right) in the other."""
    p = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.25, 0.45]])
    logits, labels = torch.from_numpy(np.log(p)) + 7.0, torch.tensor([0, 2, 2])
    expected = 2 / 3 * abs(0.5 - 0.7) + 1 / 3 * abs(1 - 0.45)
    assert guidance.expected_calibration_error(logits, labels, bins=2) == pytest.approx(expected)
    assert guidance.expected_calibration_error(logits, labels, bins=1) == pytest.approx(abs(2 / 3 - 1.85 / 3))


WIDE = replace(MIXTURE, variances=MIXTURE.variances * 4)


def data(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labelled images of a mixture whose labels are hard to distinguish."""
    draw = np.random.default_rng(1)
    k = torch.from_numpy(draw.choice(6, n, p=MIXTURE.weights.numpy()))
    noise = torch.from_numpy(draw.normal(size=(n, *SHAPE)))
    return (WIDE.means[k] + WIDE.variances[k].sqrt() * noise).float(), WIDE.labels[k]


def overconfident(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """The exact classifier's logits, three times as large at t = 0 and twice as large at t = 400."""
    return WIDE.classifier(x, timesteps) * (3 - timesteps.unique().item() / 400)


@pytest.mark.thorough
def test_an_overconfident_classifier_gets_the_temperature_that_mends_it():
    images, labels = data(20000)
    diffusion = Diffusion(NoiseSchedule.from_betas(betas_of(EVEN[:401])))
    found = guidance.calibrated(overconfident, diffusion, images, labels, levels=3, batch_size=5000)
    assert found.timesteps == (0.0, 200.0, 400.0)
    np.testing.assert_allclose(found.temperatures, [3.0, 2.5, 2.0], rtol=0.08)
    t = torch.tensor([0])
    x = diffusion.q_sample(images, 0, normal(20000, SHAPE, seed=5))
    before, after = (guidance.expected_calibration_error(c(x, t), labels) for c in (overconfident, found))
    assert after < 0.02 < 0.05 < before

    shared = guidance.calibrated(overconfident, diffusion, images, labels, levels=3, shared=True)
    assert 2.0 < shared.temperature(123) < 3.0 and shared.temperature(0) == shared.temperature(400)
    again = guidance.calibrated(overconfident, diffusion, images, labels, levels=3, shared=True, batch_size=20000)
    assert again.temperature(0) == pytest.approx(shared.temperature(0), rel=0.05)


def test_a_calibrated_classifier_guides_as_one_of_that_temperature(tiny_classifier):
    state = state_of()
    found = guidance.Calibrated(linear, (0.0, 500.0, 1000.0), (1.0, 2.0, 6.0))
    assert [found.temperature(t) for t in (-5, 0, 250, 500, 750, 1000, 2000)] == [1, 1, 1.5, 2, 4, 6, 6]
    expected = guidance.ExtendedClassifierGuidance(linear, temperature=found.temperature(state.t.item()))(state)
    torch.testing.assert_close(guidance.ClassifierGuidance(found)(state), expected)
    x = normal(3, SHAPE)
    each = found(x, torch.tensor([0, 750, 1000]))
    torch.testing.assert_close(each, linear(x) / torch.tensor([[1.0], [4.0], [6.0]]))
    assert guidance.Calibrated(tiny_classifier, (0.0,), (2.0,)).labels is tiny_classifier.labels
    assert found.labels is None


def test_invalid_calibrations_are_refused():
    diffusion, z = Diffusion(NoiseSchedule.cosine(10)), torch.zeros(3, 2)
    images = normal(3, SHAPE).clamp(-1, 1)
    for make, message in (
        (
            lambda: guidance.calibrated(linear, diffusion, images, torch.zeros(2).long()),
            "one label per image",
        ),
        (
            lambda: guidance.calibrated(linear, diffusion, normal(0, SHAPE), torch.zeros(0).long()),
            "one label per image",
        ),
        (
            lambda: guidance.calibrated(linear, diffusion, images, torch.zeros(3).long(), levels=11),
            "1 to 10",
        ),
        (
            lambda: guidance.calibrated(linear, diffusion, images, torch.zeros(3).long(), batch_size=0),
            "batch_size at least 1, got 10 and 0",
        ),
        (lambda: guidance.fit_temperature(z, torch.tensor([0, 1, 2])), "labels must be from 0 to 1"),
        (lambda: guidance.fit_temperature(z, torch.tensor([0, 1])), "labels"),
        (lambda: guidance.expected_calibration_error(z, torch.tensor([0, 1, -1])), "labels must be"),
        (lambda: guidance.expected_calibration_error(z, torch.tensor([0, 1, 1]), 0), "bins must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# -- gradient-free guidance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["label", "null"])
@pytest.mark.parametrize("at", ["x", "x0"])
def test_gradient_free_guidance_by_hand(reference, at):
    state, rivals = state_of(10), set()
    eps = {y: MIXTURE.eps(state.x, state.t, torch.full((N,), y)).numpy() for y in range(3)}
    own = np.stack([eps[y][i] for i, y in enumerate(Y.tolist())])
    x0 = MIXTURE.posterior_mean(state.x, state.t, Y)
    z = (MIXTURE.classifier(state.x, state.t) if at == "x" else linear(x0.float())[:, :3]).double().numpy()
    p, expected = softmax(z), np.empty_like(own)
    for i, y in enumerate(Y.tolist()):
        rival = max((k for k in range(3) if k != y), key=lambda k: p[i, k])
        rivals.add(rival)
        away = eps[rival][i] if reference == "label" else MIXTURE.eps(state.x, state.t).numpy()[i]
        w = 1 + 2.5 * (1 - p[i, y])
        expected[i] = away + w * (own[i] - away)
    classifier = MIXTURE.classifier if at == "x" else lambda x: linear(x)[:, :3]
    found = guidance.GradientFreeGuidance(classifier, 3.5, reference, at).modify_prediction(state)
    np.testing.assert_allclose(found.eps, expected, atol=3e-5, rtol=1e-4)
    assert len(rivals) > 1


def test_gradient_free_guidance_needs_no_gradient_and_costs_nothing_at_1():
    @torch.no_grad()
    def classifier(x, timesteps):
        calls.append(x)
        return MIXTURE.classifier(x, timesteps)

    calls: list[torch.Tensor] = []
    state = state_of()
    assert guidance.GradientFreeGuidance(classifier, 1.0).modify_prediction(state) is state.pred and not calls
    samples = run(guidance.GradientFreeGuidance(classifier, 4.0))
    t = torch.tensor([0])
    log_p = [MIXTURE.classifier(x, t).log_softmax(1).gather(1, Y[:, None]).mean().item() for x in (run(None), samples)]
    assert log_p[1] > log_p[0] and len(calls) == 20


def test_gradient_free_guidance_leaves_images_without_a_label_and_those_it_is_sure_of(tiny_model):
    model, x, y = tiny_model.respace(6), normal(3, (1, 8, 8)), torch.tensor([1, -1, 3])

    def sure_of_3(x, timesteps):
        return torch.tensor([0.0, 0.0, 0.0, 500.0, 0.0]).expand(len(x), 5)

    state = state_of(3, model, x, y)
    p = guidance.GradientFreeGuidance(sure_of_3, 3.0).modify_prediction(state)
    assert torch.equal(p.eps[1:], state.pred.eps[1:])
    other = model.predict(x, 3, torch.tensor([3, 0, 0]), clip=False).eps  # the first is taken for 3
    torch.testing.assert_close(p.eps[0], 3 * state.pred.eps[0] - 2 * other[0], atol=1e-5, rtol=1e-4)


def test_invalid_gradient_free_guidance_is_refused():
    for make, message in (
        (lambda: guidance.GradientFreeGuidance(linear, math.nan), "finite"),
        (lambda: guidance.GradientFreeGuidance(linear, reference="other"), "'label' or 'null'"),
        (lambda: guidance.GradientFreeGuidance(linear, at="eps"), "'x' or 'x0'"),
        (lambda: run(guidance.GradientFreeGuidance(linear), model_of(conditional=False)), "conditional model"),
        (
            lambda: guidance.GradientFreeGuidance(lambda x, t: x.flatten(1)[:, :1]).modify_prediction(
                state_of(y=0 * Y, model=replace(model_of(), labels=admg.Labels(0), takes_labels=True))
            ),
            "two labels",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# -- ILVR ----------------------------------------------------------------------------------------------------------

BIG = (3, 4, 4)
GAUSSIAN = Mixture.of(BIG, [1.0], rng.uniform(-0.3, 0.3, (1, *BIG)), rng.uniform(0.1, 0.4, (1, *BIG)), [0])
IMAGE = torch.from_numpy(rng.uniform(-0.9, 0.9, (1, *BIG))).float()


def blocks(x: torch.Tensor) -> np.ndarray:
    """Means of blocks of 2x2 pixels, (N, 3, 2, 2)."""
    return x.double().numpy().reshape(len(x), 3, 2, 2, 2, 2).mean((3, 5))


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.ddpm, samplers.heun, samplers.dpmpp_2m, samplers.unipc])
@pytest.mark.parametrize("guide", [None, guidance.ClassifierGuidance(lambda x, t: x.flatten(1)[:, :2], 5.0)])
def test_ilvr_ends_at_the_low_frequencies_of_the_reference(sampler, guide):
    model, x_T, y = model_of(GAUSSIAN, conditional=False), normal(4, BIG), torch.tensor([0, 1, 0, 1])
    y = y if guide else None  # labels that nothing uses are refused
    x = run(guidance.ILVR(IMAGE, 2, guide), model, sampler, x_T, y, noise_sampler=lambda x, i: normal(4, BIG, i))
    np.testing.assert_allclose(blocks(x), np.repeat(blocks(IMAGE), 4, 0), atol=2e-5)
    high = x - torch.from_numpy(np.kron(blocks(x), np.ones((2, 2))))
    assert high.std(0).max() > 0.05


@pytest.mark.parametrize("index", [3, 12])
def test_ilvr_keeps_the_high_frequencies_of_the_prediction(index):
    state = state_of(index, model_of(GAUSSIAN, conditional=False), normal(5, BIG), torch.zeros(5).long())
    p = guidance.ILVR(IMAGE, 2).modify_prediction(state)
    x0 = GAUSSIAN.posterior_mean(state.x, state.t)
    expected = x0.numpy() + np.kron(blocks(IMAGE) - blocks(x0), np.ones((2, 2)))
    np.testing.assert_allclose(p.x0, expected, atol=2e-5)
    alpha_bar = EVEN[int(state.t)]
    eps = (state.x.double().numpy() - math.sqrt(alpha_bar) * expected) / math.sqrt(1 - alpha_bar)
    np.testing.assert_allclose(p.eps, eps, atol=2e-5, rtol=1e-4)
    score = guidance.ILVR(IMAGE, 2, lambda state: state.x)(state)
    np.testing.assert_allclose(score, state.x - torch.from_numpy(np.kron(blocks(state.x), np.ones((2, 2)))), atol=1e-6)
    assert guidance.ILVR(IMAGE, 2)(state) is None


def test_low_frequencies_of_ilvr_are_those_of_the_noised_reference_at_each_level():
    """In ddim √ᾱ φ(y) + √(1 - ᾱ) φ(ε), with the noise of x_T; in ddpm with β̃ of that mean, and of variance (1 - ᾱ)/4.

    The paper's replacement of φ(x_{t-1}) by φ(y_{t-1}) has the same distribution. The variance is measured with unit
    noise, since results are affine in it. The first step has the noise of a pure x_T, not quite that of its level.
    """
    model, x_T = model_of(GAUSSIAN, conditional=False), normal(4, BIG)
    alpha_bars = EVEN[model.diffusion.schedule.timesteps.numpy()]
    noise = (blocks(x_T) - math.sqrt(alpha_bars[-1]) * blocks(IMAGE)) / math.sqrt(1 - alpha_bars[-1])
    for step in samplers.ddim(model, x_T, guide=guidance.ILVR(IMAGE, 2), clip=False):
        a = alpha_bars[step.index - 1] if step.index else 1.0
        expected = math.sqrt(a) * blocks(IMAGE) + math.sqrt(1 - a) * noise
        np.testing.assert_allclose(blocks(step.x), expected, atol=2e-5)

    draws = 0

    def unit(x=None, index=None) -> torch.Tensor:  # image 1 + 4 d + c has draw d at pixel c of a block alone
        nonlocal draws
        noise = torch.zeros(81, *BIG)
        for c in range(4):
            noise[1 + 4 * draws + c, 0, c // 2, c % 2] = 1.0
        draws += 1
        return noise

    for step in samplers.ddpm(model, unit(), guide=guidance.ILVR(IMAGE, 2), noise_sampler=unit, clip=False):
        a = alpha_bars[step.index - 1] if step.index else 1.0
        low = blocks(step.x)[:, 0, 0, 0]
        assert low[0] == pytest.approx(math.sqrt(a) * blocks(IMAGE)[0, 0, 0, 0], abs=0.01)
        assert ((low[1:] - low[0]) ** 2).sum() == pytest.approx((1 - a) / 4, abs=1e-4)


def test_ilvr_works_on_what_other_guides_leave():
    state = state_of(y=Y)
    image, cfg = normal(N, SHAPE) / 3, guidance.ClassifierFreeGuidance(3.0)
    before, inside = (
        guidance.ILVR(image, 2, cfg).modify_prediction(state),
        (cfg + guidance.ILVR(image, 2)).modify_prediction(state),
    )
    torch.testing.assert_close(before.x0, inside.x0)
    torch.testing.assert_close(before.x0.mean((2, 3)), image.mean((2, 3)), atol=1e-5, rtol=1e-5)
    classifier = guidance.ClassifierGuidance(MIXTURE.classifier)
    assert guidance.ILVR(image, 2, classifier).classifier == MIXTURE.classifier
    with pytest.raises(ValueError, match=r"CFG\+\+"):
        guidance.ILVR(image, 2, guidance.CFGPlusPlus()).modify_prediction(state)


def test_invalid_ilvr_is_refused():
    state = state_of()
    for make, message in (
        (lambda: guidance.ILVR(IMAGE[0], 2), "reference must have shape"),
        (lambda: guidance.ILVR(IMAGE, 3), "factor must divide"),
        (lambda: guidance.ILVR(IMAGE, 0), "at least 1"),
        (lambda: guidance.ILVR(IMAGE, 2).modify_prediction(state), "reference must have shape"),
        (lambda: guidance.ILVR(normal(5, SHAPE).clamp(-1, 1), 2).modify_prediction(state), "reference must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# -- embeddings ----------------------------------------------------------------------------------------------------

EMBED = rng.normal(size=(5, 12))
TARGET = rng.normal(size=5) * 3


def embed(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1) @ torch.from_numpy(EMBED).float().T


def angle_and_gradient(x: np.ndarray, target: np.ndarray = TARGET) -> tuple[np.ndarray, np.ndarray]:
    """θ (N, 1) of W x and the target, and ∇_x cos θ = W^T (v - cos θ u)/||W x||."""
    e, v = x @ EMBED.T, target / np.linalg.norm(target)
    length = np.linalg.norm(e, axis=1, keepdims=True)
    cosine = e @ v[:, None] / length
    return np.arccos(cosine), (v - cosine * e / length) / length @ EMBED


@pytest.mark.parametrize("distance", ["spherical", "cosine"])
def test_the_gradient_of_a_linear_embedding_in_closed_form(distance):
    """-∇(1 - cos θ) = ∇cos θ, and -∇θ²/2 = θ/sin θ ∇cos θ; at x0 of one Gaussian times Tweedie's derivative."""
    gaussian = Mixture.of(SHAPE, [1.0], [0.1], [0.3], [0])
    state = state_of(model=model_of(gaussian, conditional=False))
    a = EVEN[int(state.t)]
    gain = math.sqrt(a) * 0.09 / (a * 0.09 + 1 - a)
    x0 = 0.1 + gain * (state.x.double().flatten(1).numpy() - math.sqrt(a) * 0.1)
    energy = guidance.EmbeddingDistance(embed, torch.from_numpy(TARGET), distance)
    for at, x, chain in (("x", state.x.double().flatten(1).numpy(), 1.0), ("x0", x0, gain)):
        theta, gradient = angle_and_gradient(x)
        expected = 7.0 * chain * gradient * (theta / np.sin(theta) if distance == "spherical" else 1.0)
        with torch.no_grad():  # as in a sampler
            found = guidance.LossGuidance(energy, 7.0, at=at)(state)
        np.testing.assert_allclose(found.flatten(1), expected, atol=3e-5, rtol=1e-3)
    theta, _ = angle_and_gradient(x0)
    value = energy(torch.from_numpy(x0).float().view(N, *SHAPE)).double().numpy()
    expected = theta[:, 0] ** 2 / 2 if distance == "spherical" else 1 - np.cos(theta[:, 0])
    np.testing.assert_allclose(value, expected, atol=1e-5)


def test_each_image_may_have_a_target_of_its_own():
    x, targets = normal(3, SHAPE), torch.from_numpy(rng.normal(size=(3, 5)))
    together = guidance.EmbeddingDistance(embed, targets)(x)
    alone = [guidance.EmbeddingDistance(embed, target)(x[i : i + 1]) for i, target in enumerate(targets)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_distances_at_the_target_and_opposite_to_it():
    target = torch.tensor([3.0, 0.0])
    x = torch.tensor([2.0, 0.0, -1.0, 0.0, 0.0, 5.0]).view(3, 1, 1, 2).requires_grad_()
    value = guidance.EmbeddingDistance(lambda x: x.flatten(1), target)(x)
    torch.testing.assert_close(value.detach(), torch.tensor([0.0, math.pi**2 / 2, math.pi**2 / 8]))
    assert torch.autograd.grad(value.sum(), x)[0].isfinite().all()
    x = torch.tensor([1.0, 1e-4]).view(1, 1, 1, 2)  # near the target, where acos has lost all digits
    near = guidance.EmbeddingDistance(lambda x: x.flatten(1), target)(x).item()
    assert near == pytest.approx(1e-8 / 2, rel=1e-3)


def test_samples_come_near_to_the_target():
    target = embed(normal(1, SHAPE, seed=7))[0]
    energy = guidance.EmbeddingDistance(embed, target)
    free, guided = (run(g) for g in (None, guidance.LossGuidance(energy, 20.0)))
    assert energy(guided).mean() < 0.7 * energy(free).mean()


def test_invalid_embeddings_are_refused():
    for make, message in (
        (lambda: guidance.EmbeddingDistance(embed, torch.zeros(5)), "finite and not 0"),
        (lambda: guidance.EmbeddingDistance(embed, torch.tensor([1.0, math.nan])), "finite"),
        (lambda: guidance.EmbeddingDistance(embed, torch.ones(1, 1, 5)), r"\(D,\)"),
        (lambda: guidance.EmbeddingDistance(embed, torch.ones(5), "l2"), "distance must be one of"),
        (
            lambda: guidance.EmbeddingDistance(embed, torch.ones(4))(normal(N, SHAPE)),
            r"must have shape .*, got \(4,\)",
        ),
        (
            lambda: guidance.EmbeddingDistance(embed, torch.ones(2, 5))(normal(N, SHAPE)),
            r"must have shape .*, got \(2, 5\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# -- guides together ---------------------------------------------------------------------------------------------


def test_differences_of_predictions_add_in_any_order():
    """ε + (w - 1)(ε - ε_u) + (v - 1)(ε - ε_bad), as in the papers that combine them, and not one after the other."""
    state = state_of()
    worse = replace(MIXTURE, variances=MIXTURE.variances * 3)
    cond, uncond = (MIXTURE.eps(state.x, state.t, y).numpy() for y in (Y, None))
    bad = worse.eps(state.x, state.t, Y).numpy()
    cfg, auto = guidance.ClassifierFreeGuidance(2.5), guidance.AutoGuidance(model_of(worse, steps=1000), 1.8)
    for guide in (cfg + auto, auto + cfg, guidance.Interval(auto) + cfg):
        expected = cond + 1.5 * (cond - uncond) + 0.8 * (cond - bad)
        np.testing.assert_allclose(guide.modify_prediction(state).eps, expected, atol=3e-5, rtol=1e-4)
    twice = (guidance.ClassifierFreeGuidance(2.0) + guidance.ClassifierFreeGuidance(1.5)).modify_prediction(state)
    torch.testing.assert_close(twice.eps, cfg.modify_prediction(state).eps)
    for other in (guidance.APG(2.0, eta=1.0, momentum=0.0), guidance.GradientFreeGuidance(MIXTURE.classifier, 2.0)):
        gained = other.modify_prediction(state).eps + cfg.modify_prediction(state).eps - state.pred.eps
        for guide in (cfg + other, other + cfg):
            torch.testing.assert_close(guide.modify_prediction(state).eps, gained, atol=3e-5, rtol=1e-4)


def test_perturbed_attention_adds_to_classifier_free_guidance(tiny_model):
    state = state_of(3, tiny_model.respace(6), normal(3, (1, 8, 8)), torch.tensor([1, 2, 0]))
    cfg, perturbed = guidance.ClassifierFreeGuidance(2.5), guidance.PerturbedAttentionGuidance(3.0)
    expected = cfg.modify_prediction(state).eps + perturbed.modify_prediction(state).eps - state.pred.eps
    for guide in (cfg + perturbed, perturbed + cfg):
        torch.testing.assert_close(guide.modify_prediction(state).eps, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("before", [guidance.ClassifierFreeGuidance(2.0), guidance.ILVR(normal(N, SHAPE) / 3, 2)])
def test_nothing_that_changes_a_prediction_comes_before_cfg_plus_plus(before):
    state = state_of()
    with pytest.raises(ValueError, match=r"CFG\+\+ .* no guide may modify them"):
        (before + guidance.CFGPlusPlus()).modify_prediction(state)
    neutral = guidance.Interval(before, 1e9) + guidance.CFGPlusPlus()
    torch.testing.assert_close(neutral.modify_prediction(state).x0, guidance.CFGPlusPlus().modify_prediction(state).x0)


def test_a_states_prediction_is_clipped_once_and_anew_after_a_change():
    state = state_of(15, clip=True)
    assert state.prediction is state.prediction
    changed = state.with_pred(state.with_x0(state.pred.x0 * 0 + 3.0))
    assert (changed.prediction.x0 == 1).all() and not (state.prediction.x0 == 1).all()


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_new_guides_on_a_real_network(sampler, tiny_model, tiny_classifier):
    """Through sample(), and none of an image's depends on the batch."""
    image, target = torch.full((1, 1, 8, 8), 0.3), torch.tensor([1.0, -1.0])
    guides = {
        "divergence": guidance.ExtendedClassifierGuidance(tiny_classifier, 3.0, divergence=Divergence(1.0, "js")),
        "free": guidance.GradientFreeGuidance(tiny_classifier, 3.0),
        "ilvr": guidance.ILVR(image, 4, guidance.ClassifierGuidance(tiny_classifier, 3.0)),
        "embedding": guidance.LossGuidance(guidance.EmbeddingDistance(lambda x: x[:, 0, 2:4, 5], target), 5.0),
    }
    options = {"steps": 5, "progress": False, "sampler": sampler}
    plain = admg.sample(tiny_model, ["one", "two"], **options).x
    for name, guide in guides.items():
        x = admg.sample(tiny_model, ["one", "two"], guide=guide, **options).x
        assert x.isfinite().all() and ((x - plain).abs().amax((1, 2, 3)) > 1e-4).all(), name
        alone = admg.sample(tiny_model, ["one", "two"], guide=guide, batch_size=1, **options).x
        torch.testing.assert_close(x, alone, atol=1e-3, rtol=1e-3)
