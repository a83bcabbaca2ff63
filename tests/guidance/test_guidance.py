"""Guides that modify a prediction, and options of classifier guidance, agree with exact answers and with NumPy."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import exact
import numpy as np
import pytest
import torch
from exact import EVEN, Mixture, normal
from rounding import with_rounded_weights

import admg
from admg import guidance, samplers
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.diffusion.gaussian import Diffusion
from admg.diffusion.schedule import NoiseSchedule
from admg.guidance import State
from admg.models import UNet, UNetConfig, with_identity_attention
from admg.models.blocks import AttentionBlock
from admg.models.surgery import IdentityAttention

rng = np.random.default_rng(0)
MIXTURE = Mixture.of((3, 2, 2), [20, 10, 25, 15, 10, 20], rng.uniform(-0.3, 0.3, (6, 3, 2, 2)),
                     rng.uniform(0.05, 0.2, (6, 3, 2, 2)), [0, 0, 1, 1, 1, 2])  # fmt: skip
N = 24
Y = torch.arange(N) % 3


def model_of(mixture: Mixture = MIXTURE, conditional: bool = True, steps: int | str = 20) -> Model:
    return exact.model_of(mixture, conditional=conditional).respace(steps)


def state_of(index: int = 8, model: Model | None = None, x: torch.Tensor | None = None, y=Y, **changes) -> State:
    """Return the state of a sampler before any guide, at a step in the middle."""
    model, x = model or model_of(), normal(N, MIXTURE.shape) if x is None else x
    return replace(State(x, index, y, y if model.conditional else None, model, clip=False), **changes)


def made_up(seed: int = 0, n: int = 4) -> tuple[State, np.ndarray, np.ndarray]:
    """Return a state whose model predicts two random eps, conditional and unconditional, and these in float64."""
    cond, uncond = normal(n, MIXTURE.shape, seed=10 + seed), normal(n, MIXTURE.shape, seed=20 + seed)
    state = state_of(x=normal(n, MIXTURE.shape, seed=30 + seed), y=Y[:n])

    class Fixed:
        diffusion = state.diffusion
        conditional = True

        def predict(self, x, t, y=None, clip=True):
            p = state.diffusion.predict(cond if y is not None else uncond, x, t, clip=clip)
            return replace(p, eps=cond if y is not None else uncond)

    return replace(state, model=Fixed()), cond.double().numpy(), uncond.double().numpy()


def x0_of(state: State, eps: np.ndarray) -> np.ndarray:
    alpha_bar = EVEN[int(state.t)]
    return (state.x.double().numpy() - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum((1, 2, 3), keepdims=True)


def run(guide, model: Model | None = None, sampler=samplers.ddim, clip: bool = False, y=Y, **options) -> torch.Tensor:
    return list(sampler(model or model_of(), normal(N, MIXTURE.shape), y=y, guide=guide, clip=clip, **options))[-1].x


def assert_eps(prediction, state: State, eps: np.ndarray) -> None:
    """The prediction has this eps, and x0 and mean as they follow from it by DDPM's equations."""
    np.testing.assert_allclose(prediction.eps, eps, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(prediction.x0, x0_of(state, eps), atol=2e-5, rtol=1e-4)
    timesteps = state.diffusion.schedule.timesteps
    alpha_bar, before = EVEN[int(state.t)], EVEN[int(timesteps[state.index - 1])]
    beta = 1 - alpha_bar / before
    mean = (state.x.double().numpy() - beta / math.sqrt(1 - alpha_bar) * eps) / math.sqrt(1 - beta)  # DDPM, eq. 11
    np.testing.assert_allclose(prediction.mean, mean, atol=2e-5, rtol=1e-4)


# -- classifier-free guidance and the classifier ------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.dpmpp_2m, samplers.heun])
def test_cfg_at_1_is_conditional_and_at_0_unconditional(sampler):
    torch.testing.assert_close(run(guidance.ClassifierFreeGuidance(1.0), sampler=sampler), run(None, sampler=sampler))
    unconditional = run(None, model_of(conditional=False), sampler, y=None)
    torch.testing.assert_close(run(guidance.ClassifierFreeGuidance(0.0), sampler=sampler), unconditional)


@pytest.mark.parametrize("w", [0.5, 1.0, 2.5])
def test_cfg_is_the_exact_classifier_on_the_unconditional_model(w):
    """s_c - s_u = ∇ log p(y | x_t), so both follow the same trajectory, to float32's rounding."""
    classifier = guidance.ClassifierGuidance(MIXTURE.classifier, w)
    by_classifier = run(classifier, model_of(conditional=False))
    torch.testing.assert_close(run(guidance.ClassifierFreeGuidance(w)), by_classifier, atol=2e-5, rtol=1e-4)


def test_cfg_and_the_classifier_add_up():
    """w of the one and s of the other are the classifier at w + s, on the unconditional network."""
    both = guidance.ClassifierFreeGuidance(1.7) + guidance.ClassifierGuidance(MIXTURE.classifier, 0.8)
    alone = run(guidance.ClassifierGuidance(MIXTURE.classifier, 2.5), model_of(conditional=False))
    torch.testing.assert_close(run(both), alone, atol=2e-5, rtol=1e-4)


def test_autoguidance_by_the_model_itself_is_none():
    model = model_of()
    torch.testing.assert_close(run(guidance.AutoGuidance(model, 3.0), model), run(None, model), atol=1e-5, rtol=1e-5)


def test_autoguidance_extrapolates_from_the_worse_model():
    worse = model_of(replace(MIXTURE, variances=MIXTURE.variances * 3), steps=1000)
    state = state_of()
    good, bad = (m.eps(state.x, state.t, Y) for m in (MIXTURE, worse.network.mixture))
    assert_eps(guidance.AutoGuidance(worse, 2.5).modify_prediction(state), state, (bad + 2.5 * (good - bad)).numpy())


def test_unsuitable_pairs_are_refused():
    unconditional = model_of(conditional=False)
    for guide in (
        guidance.ClassifierFreeGuidance(), guidance.APG(), guidance.CFGZeroStar(), guidance.CFGPlusPlus(),
        guidance.Rescaled(guidance.ClassifierFreeGuidance()),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="conditional model"):
            run(guide, unconditional)
    with pytest.raises(ValueError, match="same noise schedule"):
        other = replace(MIXTURE, alpha_bars=EVEN**2)
        run(guidance.AutoGuidance(model_of(other, steps=1000)))
    with pytest.raises(ValueError, match="attention"):
        run(guidance.PerturbedAttentionGuidance())
    with pytest.raises(ValueError, match="needs labels"):
        run(guidance.ClassifierGuidance(MIXTURE.classifier), y=None)


@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.heun, samplers.dpmpp_2m, samplers.unipc])
def test_cfg_plus_plus_is_refused_by_samplers_that_do_not_combine_x0_and_eps(sampler):
    with pytest.raises(ValueError, match="combines x0 and eps"):
        run(guidance.CFGPlusPlus(), sampler=sampler)


# -- Interval ----------------------------------------------------------------------------------------------------


class Counted:
    """The exact classifier, which records the noise level of each call."""

    def __init__(self):
        self.sigmas: list[float] = []

    def __call__(self, x, timesteps):
        alpha_bar = EVEN[int(timesteps[0])]
        self.sigmas.append(math.sqrt((1 - alpha_bar) / alpha_bar))
        return MIXTURE.classifier(x, timesteps)


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.heun, samplers.dpmpp_2m])
@pytest.mark.parametrize(
    "guide", [guidance.ClassifierGuidance(MIXTURE.classifier, 2.0), guidance.ClassifierFreeGuidance(2.0)]
)
def test_an_interval_of_everything_is_the_guide(guide, sampler):
    assert torch.equal(run(guidance.Interval(guide), sampler=sampler), run(guide, sampler=sampler))


def test_an_interval_costs_nothing_outside():
    classifier = Counted()
    run(guidance.Interval(guidance.ClassifierGuidance(classifier, 2.0), 0.3, 5.0))
    alpha_bars = EVEN[model_of().diffusion.schedule.timesteps.numpy()]
    sigmas = np.sqrt((1 - alpha_bars) / alpha_bars)
    inside = sigmas[(sigmas >= 0.3) & (sigmas <= 5.0)][::-1]
    assert 0 < len(inside) < 20
    np.testing.assert_allclose(classifier.sigmas, inside)

    model = model_of()
    run(guidance.Interval(guidance.ClassifierFreeGuidance(2.0), 0.3, 5.0), model)
    assert len(model.network.timesteps) == 20 + len(inside)
    never = guidance.Interval(guidance.ClassifierGuidance(classifier, 2.0) + guidance.ClassifierFreeGuidance(2.0), 1e6)
    assert torch.equal(run(never), run(None)) and len(classifier.sigmas) == len(inside)


def test_an_interval_ends_at_its_noise_levels_and_includes_them():
    state, guide = state_of(), guidance.ClassifierGuidance(MIXTURE.classifier)
    sigma = math.sqrt(1 / EVEN[int(state.t)] - 1)
    assert state.sigma == pytest.approx(sigma, rel=1e-6)
    assert guidance.Interval(guide, state.sigma, state.sigma)(state) is not None
    assert guidance.Interval(guide, high=state.sigma * 0.999)(state) is None
    assert guidance.Interval(guide, low=state.sigma * 1.001)(state) is None


def test_intervals_compose_and_pass_on_the_classifier():
    low, high = (
        guidance.Interval(guidance.ClassifierGuidance(MIXTURE.classifier, 2.0), *ends) for ends in ((0, 1), (1, 1e9))
    )
    torch.testing.assert_close(run(low + high), run(guidance.ClassifierGuidance(MIXTURE.classifier, 2.0)))
    assert (guidance.ClassifierFreeGuidance() + low).classifier == MIXTURE.classifier
    assert guidance.Interval(lambda state: None).classifier is None


@pytest.mark.parametrize("low, high", [(-1, 2), (2, 1), (math.nan, 1), (0, math.nan)])
def test_invalid_intervals_are_refused(low, high):
    with pytest.raises(ValueError, match="low <= high"):
        guidance.Interval(guidance.ClassifierFreeGuidance(), low, high)


# -- the classifier's options, of logits z = W x + b ---------------------------------------------------------------

K = 4
WEIGHT, BIAS = rng.normal(size=(K, 12)), rng.normal(size=K)


def linear(x: torch.Tensor, timesteps: torch.Tensor | None = None) -> torch.Tensor:
    return x.flatten(1) @ torch.from_numpy(WEIGHT).float().T + torch.from_numpy(BIAS).float()


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def by_hand(x: np.ndarray, weights: np.ndarray, temperature: float = 1.0, joint: float = 0.0) -> np.ndarray:
    """∇ Σ_k w_k (z_k/T - (1 - j) log Σ exp(z/T)), (N, 12)."""
    p = softmax((x @ WEIGHT.T + BIAS) / temperature)
    return (weights @ WEIGHT - weights.sum(1, keepdims=True) * (1 - joint) * (p @ WEIGHT)) / temperature


ONE_HOT = np.eye(K)[Y.numpy()]


def score(state: State, **options) -> np.ndarray:
    return guidance.ExtendedClassifierGuidance(linear, **options)(state).flatten(1).numpy()


def flat(state: State) -> np.ndarray:
    return state.x.double().flatten(1).numpy()


@pytest.mark.parametrize("temperature, joint", [(1.0, 0.0), (2.5, 0.0), (1.0, 1.0), (1.0, 0.3), (0.5, 0.7)])
def test_temperature_and_joint_logits(temperature, joint):
    state = state_of()
    found = score(state, scale=1.5, temperature=temperature, joint=joint)
    np.testing.assert_allclose(found, 1.5 * by_hand(flat(state), ONE_HOT, temperature, joint), atol=2e-5)


def test_labels_that_cannot_be_weighted_are_refused(tiny_classifier):
    names = tiny_classifier.label_names
    for labels in ({names[2]: 4.0, 2: -1.0}, {names[2]: 4.0, names[2].upper(): 1.0}):
        with pytest.raises(ValueError, match=r"labels has two weights for label 2, 4\.0 and"):
            guidance.ExtendedClassifierGuidance(tiny_classifier, labels=labels)
    with pytest.raises(ValueError, match=r"labels must be names or integers, got 1\.0"):
        guidance.ExtendedClassifierGuidance(tiny_classifier, labels={1.0: 1.0})


def test_weights_of_labels_and_labels_to_avoid():
    state, x = state_of(), flat(state_of())
    weights = np.array([0.0, 1.5, 0.0, -0.7])
    expected = by_hand(x, np.tile(weights, (N, 1)))
    np.testing.assert_allclose(score(state, labels={1: 1.5, 3: -0.7}), expected, atol=2e-5)
    np.testing.assert_allclose(score(state, labels=torch.tensor(weights)), expected, atol=2e-5)
    each = rng.normal(size=(N, K))
    np.testing.assert_allclose(score(state, labels=torch.from_numpy(each)), by_hand(x, each), atol=2e-5)
    np.testing.assert_allclose(
        score(replace(state, y=None), labels={2: 1.0}), by_hand(x, np.eye(K)[[2] * N]), atol=2e-5
    )


def test_an_avoided_label_is_avoided():
    """The share of label 1, by the exact classifier, where it is avoided, ignored and followed."""
    model, ends = model_of(conditional=False), {}
    for weight in (-1.0, 0.0, 1.0):
        ends[weight] = run(
            guidance.ExtendedClassifierGuidance(MIXTURE.classifier, 1.0, labels={1: weight}), model, y=None
        )
    shares = {w: MIXTURE.classifier(x, torch.tensor([0])).softmax(1)[:, 1].mean().item() for w, x in ends.items()}
    assert shares[-1.0] < shares[0.0] / 2
    conditional = run(None, y=torch.ones(N).long())  # p(x | y = 1)
    torch.testing.assert_close(ends[1.0], conditional, atol=2e-5, rtol=1e-4)


def test_entropy_is_added_with_its_weight():
    """∇ H = -Σ_k p_k (log p_k + H) W_k."""
    state, x = state_of(), flat(state_of())
    p = softmax(x @ WEIGHT.T + BIAS)
    h = -(p * np.log(p)).sum(1, keepdims=True)
    gradient = -(p * (np.log(p) + h)) @ WEIGHT
    np.testing.assert_allclose(score(state, entropy=0.6), by_hand(x, ONE_HOT) + 0.6 * gradient, atol=3e-5)


def test_images_without_a_label_are_left_alone():
    y = torch.where(torch.arange(N) % 2 == 0, Y, -1)
    state = replace(state_of(), y=y)
    for options in ({}, {"entropy": 0.5}, {"joint": 1.0}, {"normalise": True}):
        found = score(state, **options)
        assert (found[1::2] == 0).all() and (np.linalg.norm(found[::2], axis=1) > 1e-3).all()
        assert np.isfinite(found).all()


def test_normalised_and_bounded_gradients():
    state = state_of()
    g = by_hand(flat(state), ONE_HOT)
    norms = np.linalg.norm(g, axis=1, keepdims=True)
    bound = float(np.median(norms))
    np.testing.assert_allclose(score(state, scale=2.0, normalise=True), 2 * g / norms, atol=2e-5)
    np.testing.assert_allclose(score(state, max_norm=bound), g * np.minimum(1, bound / norms), atol=2e-5)


def test_the_scale_may_follow_the_noise_level():
    state = state_of()
    expected = (0.5 + math.sqrt(1 / EVEN[int(state.t)] - 1)) * by_hand(flat(state), ONE_HOT)
    np.testing.assert_allclose(score(state, scale=lambda sigma: 0.5 + sigma), expected, atol=1e-4, rtol=1e-5)
    assert guidance.ExtendedClassifierGuidance(linear, lambda sigma: 0.0)(state) is None
    with pytest.raises(ValueError, match=r"noise level .* finite"):
        guidance.ExtendedClassifierGuidance(linear, lambda sigma: math.nan)(state)


@pytest.mark.parametrize("index", [2, 10, 17])
def test_the_gradient_at_x0_goes_through_the_network(index):
    """Against central differences in float64 of log p(y | x0-hat(x_t)), the exact posterior mean."""
    state = state_of(index)
    classifier = guidance.ExtendedClassifierGuidance(linear, 1.0, at="x0")
    with torch.no_grad():  # as in a sampler
        found = classifier(state)

    def log_p(x: torch.Tensor) -> np.ndarray:
        z = MIXTURE.posterior_mean(x, state.t, Y).flatten(1).numpy() @ WEIGHT.T + BIAS
        return np.log(softmax(z))[np.arange(N), Y.numpy()]

    x, h, expected = state.x.double(), 1e-5, np.zeros((N, 12))
    for d in range(12):
        step = torch.zeros(12, dtype=torch.float64)
        step[d] = h
        step = step.view(3, 2, 2)
        expected[:, d] = (log_p(x + step) - log_p(x - step)) / (2 * h)
    np.testing.assert_allclose(found.flatten(1), expected, atol=1e-4, rtol=1e-3)
    assert found.dtype == torch.float32 and not found.requires_grad and not state.x.requires_grad


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scale": math.nan}, "finite"), ({"scale": math.inf}, "finite"), ({"at": "x1"}, "'x' or 'x0'"),
        ({"temperature": 0.0}, "temperature"), ({"temperature": math.nan}, "temperature"), ({"joint": 1.1}, "joint"),
        ({"joint": math.nan}, "joint"), ({"entropy": math.inf}, "entropy"), ({"max_norm": 0.0}, "norm"),
        ({"max_norm": math.nan}, "norm"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        guidance.ExtendedClassifierGuidance(linear, **options)


@pytest.mark.parametrize(
    "labels, message",
    [({4: 1.0}, "got 4"), ({-1: 1.0}, "got -1"), (torch.ones(3), r"\(3,\)"), (torch.ones(5, 4), r"\(5, 4\)"),
     ({0: math.nan}, "finite"), ({"coat": 1.0}, "no label names, got 'coat'"), ("coat", "floating-point weights"),
     ([2, 0, 1, 3], "floating-point weights"), (torch.tensor([2, 0, 1, 3]), "target labels are the sampler's y")],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        guidance.ExtendedClassifierGuidance(linear, labels=labels)(state_of())


def test_weights_of_named_labels(tiny_classifier):
    names = tiny_classifier.labels.names
    guide = guidance.ExtendedClassifierGuidance(tiny_classifier, labels={names[2]: 1.5, 0: -1.0})
    assert guide.labels == {2: 1.5, 0: -1.0}


# -- variants of classifier-free guidance, on made-up predictions --------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaled(phi):
    state, cond, uncond = made_up()
    guided = uncond + 3 * (cond - uncond)
    ratio = cond.std((1, 2, 3), keepdims=True) / guided.std((1, 2, 3), keepdims=True)
    found = guidance.Rescaled(guidance.ClassifierFreeGuidance(3.0), phi).modify_prediction(state)
    assert_eps(found, state, phi * ratio * guided + (1 - phi) * guided)
    if phi == 1:
        np.testing.assert_allclose(found.eps.std((1, 2, 3)), cond.std((1, 2, 3), ddof=1), rtol=1e-4)


def test_rescaled_leaves_scores():
    classifier, state = guidance.ClassifierGuidance(linear, 2.0), state_of()
    rescaled = guidance.Rescaled(classifier)
    assert torch.equal(rescaled(state), classifier(state)) and rescaled.modify_prediction(state) is state.pred


def test_apg_over_three_steps():
    """Δ̄ = Δ + β Δ̄', with a limited norm, without most of its component along x0(y). The memory lasts for one run."""
    apg, average, bounded = guidance.APG(4.0, eta=0.3, momentum=-0.6, max_norm=2.0), 0.0, []
    one_run = apg.begin()
    for step in range(3):
        state, cond, uncond = made_up(step)
        x0, x0_u = x0_of(state, cond), x0_of(state, uncond)
        average = x0 - x0_u - 0.6 * average
        norm = np.sqrt(dot(average, average))
        bounded.append(norm > 2.0)
        delta = average * np.minimum(1, 2.0 / norm)
        along = dot(delta, x0) / dot(x0, x0) * x0
        expected = x0 + 3 * (delta - along + 0.3 * along)
        p = one_run.modify_prediction(state)
        alpha_bar = EVEN[int(state.t)]
        eps = (state.x.double().numpy() - math.sqrt(alpha_bar) * expected) / math.sqrt(1 - alpha_bar)
        assert_eps(p, state, eps)
    assert np.concatenate(bounded).any()
    again = apg.begin().modify_prediction(made_up(0)[0])
    torch.testing.assert_close(again.x0, apg.modify_prediction(made_up(0)[0]).x0)


def test_apg_with_everything_off_is_cfg_and_its_change_is_orthogonal():
    plain = run(guidance.APG(2.5, eta=1.0, momentum=0.0))
    torch.testing.assert_close(plain, run(guidance.ClassifierFreeGuidance(2.5)), atol=2e-5, rtol=1e-4)
    state, _, _ = made_up()
    x0 = state.pred.x0.double().numpy()
    moved = guidance.APG(4.0).modify_prediction(state).x0.double().numpy() - x0
    cosine = dot(moved, x0) / np.sqrt(dot(moved, moved) * dot(x0, x0))
    assert np.abs(cosine).max() < 1e-5 < np.sqrt(dot(moved, moved)).min()


def test_cfg_zero_star():
    state, cond, uncond = made_up()
    s = np.array([np.linalg.lstsq(u.reshape(-1, 1), c.reshape(-1), rcond=None)[0][0] for c, u in zip(cond, uncond)])
    s = s.reshape(-1, 1, 1, 1)
    assert_eps(guidance.CFGZeroStar(3.0).modify_prediction(state), state, s * uncond + 3 * (cond - s * uncond))


def test_cfg_plus_plus_renoises_with_the_unconditional_eps():
    """Whole trajectories of DDIM by hand: x0 from the guided ε, the rest from the unconditional one."""
    model, x_T = model_of(), normal(N, MIXTURE.shape)
    alpha_bars = EVEN[model.diffusion.schedule.timesteps.numpy()]
    *_, last = samplers.ddim(model, x_T, y=Y, guide=guidance.CFGPlusPlus(0.7), clip=False)
    x = x_T.double()
    for i in range(19, -1, -1):
        alpha_bar, before = alpha_bars[i], alpha_bars[i - 1] if i else 1.0
        cond, uncond = (MIXTURE.eps(x, model.diffusion.timestep(i), y) for y in (Y, None))
        x0 = (x - (1 - alpha_bar) ** 0.5 * (0.3 * uncond + 0.7 * cond)) / alpha_bar**0.5
        x = before**0.5 * x0 + (1 - before) ** 0.5 * uncond
    torch.testing.assert_close(last.x.double(), x, atol=1e-4, rtol=1e-4)


def test_cfg_plus_plus_keeps_its_eps_when_x0_is_clipped():
    state, cond, uncond = made_up()
    state = replace(state, clip=True)
    p = state.with_pred(guidance.CFGPlusPlus(0.7).modify_prediction(state)).prediction
    x0 = x0_of(state, 0.3 * uncond + 0.7 * cond)
    assert (np.abs(x0) > 1).any()
    np.testing.assert_allclose(p.x0, x0.clip(-1, 1), atol=1e-5)
    np.testing.assert_allclose(p.eps, uncond, atol=1e-6)


def test_nothing_comes_after_cfg_plus_plus():
    state, plus = state_of(), guidance.CFGPlusPlus()
    for guide in (plus + guidance.ClassifierFreeGuidance(), plus + guidance.APG(), guidance.Rescaled(plus)):
        with pytest.raises(ValueError, match=r"CFG\+\+"):
            guide.modify_prediction(state)
    scored = plus + guidance.ClassifierGuidance(linear)
    with pytest.raises(ValueError, match=r"CFG\+\+"):
        scored(state.with_pred(scored.modify_prediction(state)))
    alone = guidance.Interval(plus) + (lambda state: None)
    assert alone(state.with_pred(alone.modify_prediction(state))) is None


@pytest.mark.parametrize(
    "make",
    [
        guidance.ClassifierFreeGuidance, guidance.CFGZeroStar, guidance.APG, guidance.CFGPlusPlus,
        guidance.PerturbedAttentionGuidance,
        functools.partial(guidance.AutoGuidance, model_of()), functools.partial(guidance.Rescaled, lambda state: None),
        functools.partial(guidance.APG, 2.0), functools.partial(guidance.APG, 2.0, 0.0),
        functools.partial(guidance.APG, 2.0, 0.0, 0.0),
    ],
)  # fmt: skip
def test_nan_is_refused(make):
    with pytest.raises(ValueError, match="got nan"):
        make(math.nan)


# -- perturbed attention -----------------------------------------------------------------------------------------


def unet(**changes) -> UNet:
    config = {
        "image_size": 8, "image_channels": 1, "channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1,
        "attention_resolutions": (4,), "head_channels": 16, "num_classes": 3,
    }  # fmt: skip
    network = UNet(UNetConfig(**(config | changes)))
    generator = torch.Generator().manual_seed(3)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.1 + (p.data if p.ndim == 1 else 0)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("new_order", [False, True])
def test_identity_attention_returns_the_values(new_order):
    block = AttentionBlock(32, 2, new_order=new_order)
    torch.nn.init.normal_(block.proj_out.weight)
    x, weight = torch.randn(2, 32, 3, 3), block.qkv.weight[:, :, 0]
    rows = weight.view(3, 2, 16, 32)[2] if new_order else weight.view(2, 3, 16, 32)[:, 2]
    bias = block.qkv.bias.view(3, 2, 16)[2] if new_order else block.qkv.bias.view(2, 3, 16)[:, 2]
    values = torch.einsum("oc,nchw->nohw", rows.reshape(32, 32), block.norm(x)) + bias.reshape(1, 32, 1, 1)
    expected = x + torch.einsum("oc,nchw->nohw", block.proj_out.weight[:, :, 0], values)
    expected = expected + block.proj_out.bias.view(1, -1, 1, 1)
    network = torch.nn.ModuleDict({"middle_block": torch.nn.Sequential(block)})
    identical = with_identity_attention(network)["middle_block"]
    torch.testing.assert_close(identical(x), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(block(x), expected, atol=1e-2)


def test_perturbed_attention_extrapolates_from_the_middle_blocks_alone():
    network, x = unet(), normal(3, (1, 8, 8))
    model = Model(network, Diffusion(NoiseSchedule.linear(100)), (1, 8, 8), Labels(3)).respace(10)
    state, y = state_of(4, model, x, Y[:3]), Y[:3]
    own = network(x, state.t, y=y)[:, :1]
    blocks = [m for m in network.middle_block.modules() if isinstance(m, AttentionBlock)]
    others = [m for m in network.modules() if isinstance(m, AttentionBlock)]
    assert len(blocks) == 1 < len(others)
    plain = blocks[0].attention
    blocks[0].attention = IdentityAttention()
    perturbed = network(x, state.t, y=y)[:, :1]
    blocks[0].attention = plain
    found = guidance.PerturbedAttentionGuidance(2.5).modify_prediction(state)
    torch.testing.assert_close(found.eps, perturbed + 2.5 * (own - perturbed), atol=1e-5, rtol=1e-4)
    assert (own - perturbed).abs().max() > 1e-3
    assert guidance.PerturbedAttentionGuidance(1.0).modify_prediction(state) is state.pred
    assert not any(isinstance(block.attention, IdentityAttention) for block in others)


# -- all of them, on a small network ------------------------------------------------------------------------------

GUIDES = {
    "x0": lambda c: guidance.ExtendedClassifierGuidance(lambda x0: c(x0, torch.zeros(1)), 3.0, at="x0", normalise=True),
    "options": lambda c: guidance.ExtendedClassifierGuidance(
        c, lambda s: 2 / (1 + s), temperature=2.0, joint=0.5, entropy=0.3
    ),
    "avoid": lambda c: guidance.ExtendedClassifierGuidance(c, 2.0, labels={0: 1.0, 2: -1.0}, max_norm=1.0),
    "interval": lambda c: (
        guidance.Interval(guidance.ClassifierGuidance(c, 4.0), 0.5, 5.0) + guidance.ClassifierFreeGuidance(2.0)
    ),
    "reused": lambda c: guidance.Reused(guidance.ClassifierGuidance(c, 4.0) + guidance.ClassifierFreeGuidance(2.0)),
    "apg": lambda c: guidance.APG(3.0, momentum=-0.5, max_norm=5.0),
    "rescaled": lambda c: guidance.Rescaled(guidance.ClassifierFreeGuidance(4.0)),
    "zero star": lambda c: guidance.CFGZeroStar(3.0),
    "perturbed": lambda c: guidance.PerturbedAttentionGuidance(3.0) + guidance.ClassifierGuidance(c, 1.0),
    "loss": lambda c: guidance.LossGuidance(lambda x0: x0.square().flatten(1).sum(1), 0.1),
    "inverse": lambda c: guidance.LinearInverse(guidance.Downsample(2), torch.full((1, 1, 4, 4), 0.3), 0.5, 0.5),
    "dps": lambda c: guidance.DPS(guidance.Blur.gaussian(1.0), torch.full((1, 1, 8, 8), 0.3), 0.1),
}


TERMS = 9 * 64
"""Products that are summed for one output of the largest convolution of the small networks."""


@pytest.mark.thorough
@pytest.mark.parametrize("name", GUIDES)
def test_an_image_does_not_depend_on_those_beside_it(name, tiny_model, tiny_classifier):
    """Nor does a guide fail, or do nothing, on a real network in a real sampler.

    Kernels for batches of other sizes round in another way: the bound is what such rounding does to this guide's eps.
    """
    guide, x, y = GUIDES[name](tiny_classifier), normal(3, (1, 8, 8)), torch.tensor([1, 2, 0])
    model = tiny_model.respace(6)

    def eps(which: slice) -> torch.Tensor:
        return run_one(guide, model, x[which], y[which])

    def rounded(seed: int) -> torch.Tensor:
        network, classifier = (
            with_rounded_weights(part.network, TERMS, seed + k) for k, part in enumerate((model, tiny_classifier))
        )
        return run_one(
            GUIDES[name](replace(tiny_classifier, network=classifier)), replace(model, network=network), x, y
        )

    together, alone = eps(slice(3)), torch.cat([eps(slice(i, i + 1)) for i in range(3)])
    amplified = max((rounded(2 * seed) - together).abs().max().item() for seed in range(3))
    assert (together - alone).abs().max().item() < 2 * amplified < 0.01 * together.abs().max().item()
    assert ((together - run_one(None, model, x, y)).abs().amax((1, 2, 3)) > 1e-4).all()
    guided = admg.sample(tiny_model, ["one", "two"], guide=guide, steps=4, progress=False).x
    assert guided.isfinite().all()


def run_one(guide, model: Model, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the guided eps at a step in the middle, evaluated twice so that memory counts."""
    guided = samplers.guided_model(model, x, y, guide, True, False)
    guided.predict_guided(0.9 * x, 3)
    return guided.predict_guided(x, 2).eps


def test_labels_can_be_named_as_by_an_inner_classifier(tiny_classifier):
    model = model_of(replace(MIXTURE, alpha_bars=EVEN[::10]), conditional=False, steps=2)
    model = replace(model, shape=(1, 8, 8), labels=Labels(0), network=unet(num_classes=0))
    model = replace(model, diffusion=Diffusion(model.diffusion.schedule))
    guide = guidance.Interval(guidance.ClassifierGuidance(tiny_classifier), 1.0) + (lambda state: None)
    assert admg.sample(model, ["Ankle boot"], guide=guide, steps=2, progress=False).labels.tolist() == [4]
