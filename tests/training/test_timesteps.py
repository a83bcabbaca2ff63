"""How timesteps are drawn: frequencies by chi-square, unbiased losses, and the history of the importance sampler."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers import CPU, PROCESS, make, resume
from scipy.stats import chisquare, norm

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.data import batches
from admg.data import open as open_dataset
from admg.diffusion import NoiseSchedule
from admg.models import UNet
from admg.training import ClassifierTask, DiffusionTask, TrainConfig, checkpointing
from admg.training.importance import ImportanceSampler
from admg.training.prefetch import prefetch
from admg.training.step import Learner
from admg.training.timesteps import Timesteps

SCHEDULE = NoiseSchedule.linear(40)
SIGMA = np.sqrt(1 / SCHEDULE.alpha_bar.numpy() - 1)
BY_IMPORTANCE = Timesteps(kind="loss-second-moment")


def between(edges: np.ndarray, mean: float, std: float) -> np.ndarray:
    return np.diff(norm.cdf(np.concatenate([[-np.inf], edges, [np.inf]]), mean, std))


DENSITIES = {  # P(t), by integrating the normal density over what is nearest to t
    "uniform": (Timesteps(), np.full(40, 1 / 40)),
    "logit-normal": (
        Timesteps(kind="logit-normal"),
        between(np.log(np.arange(1, 40) / np.arange(39, 0, -1)), 0.0, 1.0),
    ),
    "logit-normal, moved": (
        Timesteps(kind="logit-normal", mean=-0.5, std=0.6),
        between(np.log(np.arange(1, 40) / np.arange(39, 0, -1)), -0.5, 0.6),
    ),
    "log-normal": (Timesteps(kind="log-normal"), between(np.log(SIGMA[1:] * SIGMA[:-1]) / 2, -1.2, 1.2)),
    "log-normal, moved": (
        Timesteps(kind="log-normal", mean=0.3, std=0.5),
        between(np.log(SIGMA[1:] * SIGMA[:-1]) / 2, 0.3, 0.5),
    ),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_timesteps_are_as_frequent_as_the_density_says(name):
    timesteps, p = DENSITIES[name]
    np.testing.assert_allclose(timesteps.probabilities(SCHEDULE), p, atol=1e-12)
    t = timesteps.draw(SCHEDULE, 40_000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.int64 and t.shape == (40_000,)
    often = p > 5 / 40_000  # the chi-square needs five of each
    count = np.bincount(t, minlength=40)
    assert count[~often].sum() < 100
    found, expected = count[often], p[often]
    assert chisquare(found, found.sum() * expected / expected.sum()).pvalue > 0.001
    if name != "uniform":
        assert chisquare(np.bincount(t, minlength=40)).pvalue < 1e-9


def test_log_normal_timesteps_never_train_pure_noise_and_are_refused_there():
    schedule = NoiseSchedule.from_betas([0.1, 0.5, 1.0])
    with pytest.raises(ValueError, match=r"log-normal never draws pure noise .* choose uniform, logit-normal or"):
        Timesteps(kind="log-normal").check_schedule(schedule)
    assert Timesteps(kind="log-normal").probabilities(schedule)[-1] == 0
    assert Timesteps(kind="logit-normal").probabilities(schedule)[-1] > 0.1
    for timesteps in (Timesteps(), Timesteps(kind="logit-normal"), BY_IMPORTANCE):
        timesteps.check_schedule(schedule)


def test_numbers_that_a_distribution_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"mean applies only to the timesteps .*, not to uniform"):
        Timesteps(mean=0.0)
    with pytest.raises(ValueError, match=r"std applies only to the timesteps .*, not to loss-second-moment"):
        Timesteps(kind="loss-second-moment", std=1.0)
    with pytest.raises(ValueError, match=r"std must be above 0, got 0\.0"):
        Timesteps(kind="log-normal", std=0.0)


# -- the importance sampler --------------------------------------------------------------------------------------------


class ByThePaper:
    """Improved DDPM, section 3.3: the previous ten values of each term, uniform until all have ten."""

    def __init__(self, steps: int):
        self.values: list[list[float]] = [[] for _ in range(steps)]

    def add(self, t: list[int], losses: list[float]) -> None:
        for step, loss in zip(t, losses):
            self.values[step] = [*self.values[step], loss][-10:]

    @property
    def p(self) -> np.ndarray:
        if any(len(values) < 10 for values in self.values):
            return np.ones(len(self.values)) / len(self.values)
        roots = np.array([np.mean(np.square(values)) ** 0.5 for values in self.values])
        return 0.999 * roots / roots.sum() + 0.001 / len(roots)


def test_probabilities_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    ours, paper = ImportanceSampler(6), ByThePaper(6)
    was_uniform = []
    for _ in range(40):
        t, losses = rng.integers(0, 6, 5), rng.gamma(2.0, size=5)
        for sampler in (ours.update, lambda a, b: paper.add(a.tolist(), b.tolist())):
            sampler(torch.from_numpy(t), torch.from_numpy(losses))
        np.testing.assert_allclose(ours.probabilities(), paper.p, rtol=1e-12)
        was_uniform.append(np.ptp(ours.probabilities()) == 0)
    assert was_uniform[0] and not was_uniform[-1]


def warmed(losses: np.ndarray) -> ImportanceSampler:
    """A sampler that has seen ten losses of each timestep."""
    sampler = ImportanceSampler(len(losses))
    for _ in range(10):
        sampler.update(torch.arange(len(losses)), torch.from_numpy(losses))
    return sampler


def test_the_weighted_loss_has_the_expectation_of_uniform_timesteps_and_less_variance():
    """The loss of t is known, and noisy. Exactly, Σ p_t L_t / (T p_t) = mean of L; and so within three errors."""
    known = np.exp(np.linspace(-6, 0, 40))
    sampler = warmed(known)
    p = sampler.probabilities()
    assert p.sum() == pytest.approx(1) and p.min() >= 0.001 / 40
    t, weights = sampler.choose(torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert chisquare(np.bincount(t, minlength=40), 100_000 * p).pvalue > 0.001
    np.testing.assert_allclose(weights, 1 / (40 * p[t]), rtol=1e-12)
    noise = np.random.default_rng(0).uniform(0.5, 1.5, len(t))
    estimates, uniform = weights.numpy() * known[t] * noise, known[np.arange(100_000) % 40] * noise
    assert abs(estimates.mean() - known.mean()) < 3 * estimates.std() / len(t) ** 0.5
    assert estimates.var() < uniform.var() / 10
    assert torch.equal(sampler.choose(torch.tensor([0.0, 1.0]).double())[0], torch.tensor([0, 39]))


def test_losses_that_are_not_finite_are_forgotten():
    sampler = warmed(np.ones(4))
    sampler.update(torch.tensor([1, 2]), torch.tensor([torch.inf, torch.nan]))
    np.testing.assert_allclose(sampler.probabilities(), 0.25)


def importance_task() -> DiffusionTask:
    """A task with four timesteps, so that the history of each is soon full."""
    process = dataclass_with(PROCESS, diffusion_steps=4, noise_schedule="cosine")
    network: UNet = make().network
    return DiffusionTask(Model(network, process.build(), (1, 8, 8), Labels(10), process), timesteps=BY_IMPORTANCE)


def dataclass_with(config, **changes):
    return type(config)(**{**vars(config), **changes})


def trained(digits: str, learner: Learner, first: int, last: int) -> list[float]:
    stream = batches(open_dataset(digits, 8), 10, seed=0, start=first)
    fed = prefetch(learner.task, stream, 0, first, CPU)
    return [learner.step(k, next(fed))["loss"].item() for k in range(first, last)]


def learner(**changes) -> Learner:
    return Learner(importance_task(), TrainConfig(batch_size=10, precision="fp32", warmup=1, **changes), CPU)


def test_a_step_weights_the_losses_and_remembers_them(digits):
    """A warm history: the logged loss is that of the chosen t times 1/(T p), and the history gets the plain one."""
    one = learner()
    one.importance = warmed(np.array([8.0, 4.0, 2.0, 1.0]))
    before = copy.deepcopy(one.importance)
    x, y, u, noise, dropped = next(prefetch(one.task, batches(open_dataset(digits, 8), 10, seed=0), 0, 0, CPU))
    t, weights = before.choose(u)
    assert len(set(t.tolist())) > 1
    with torch.no_grad():
        terms = one.task.loss(x, y, t, noise, dropped)
    means = one.step(0, (x, y, u, noise, dropped))
    assert means.keys() == {"loss", "mse", "vb", "grad_norm", "skipped"}
    for name in ("loss", "mse", "vb"):
        assert means[name].item() == pytest.approx((weights * terms[name]).mean().item(), rel=1e-5)
    before.update(t, terms["loss"])
    np.testing.assert_allclose(one.importance.losses, before.losses, rtol=1e-5)
    assert (one.importance.counts == before.counts).all() and one.importance.counts.sum() == 50


@pytest.mark.thorough
def test_the_history_is_resumed_and_does_not_depend_on_the_parts_of_a_batch(digits, tmp_path):
    whole, first = learner(), learner(accumulate=2)
    losses = trained(digits, whole, 0, 9)
    found = trained(digits, first, 0, 6)
    checkpointing.save(tmp_path, checkpointing.checkpoint_state(first, 6))
    second = learner(accumulate=2)
    assert resume(tmp_path, second) == 6
    assert (second.importance.losses == first.importance.losses).all() and second.importance.counts.sum() == 60
    found += trained(digits, second, 6, 9)
    assert found == pytest.approx(losses, rel=1e-4)
    assert (second.importance.counts == whole.importance.counts).all()
    np.testing.assert_allclose(second.importance.losses, whole.importance.losses, rtol=1e-4)
    assert np.ptp(second.importance.probabilities()) > 0.01  # no longer uniform


@pytest.mark.thorough
def test_a_run_with_uniform_timesteps_may_continue_with_importance_sampling(digits, tmp_path):
    """Its checkpoint has no history, which then begins."""
    plain = Learner(make(), TrainConfig(batch_size=10, precision="fp32"), CPU)
    state = checkpointing.checkpoint_state(plain, 3)
    assert state.pop("learner") == {}  # and older checkpoints have no such entry
    checkpointing.save(tmp_path, state)
    task = make()
    task = DiffusionTask(task.model, timesteps=BY_IMPORTANCE)
    other = Learner(task, TrainConfig(batch_size=10, precision="fp32"), CPU)
    assert resume(tmp_path, other) == 3 and other.importance.counts.sum() == 0


# -- classifiers -------------------------------------------------------------------------------------------------------


def test_a_classifier_of_clean_images():
    """Without noise, the loss is the cross-entropy of the images themselves at timestep 0."""
    task = make("classifier")
    clean = ClassifierTask(task.classifier, noised=False)
    x, y = torch.rand(4, 1, 8, 8) * 2 - 1, torch.arange(4)
    t, noise = clean.draw(x.shape, torch.Generator().manual_seed(0))
    assert t.min() > 0  # and yet 0 is given to the network
    logits = task.network(x, torch.zeros(4, dtype=torch.int64))
    expected = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    assert torch.allclose(clean.loss(x, y, t, noise)["loss"], expected, rtol=1e-5)
    assert not torch.allclose(task.loss(x, y, t, noise)["loss"], expected, rtol=1e-3)
