"""Averages of any length from snapshots: the least squares, the files, and the average that training itself tracks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import TRUNK, learned, make, run_example, snapshot, state_file
from torch import nn

import admg
from admg.checkpoints import tuned
from admg.training import EMA, TrainConfig, TrainingRun, posthoc, snapshots, start
from admg.training.posthoc import Reconstruction, fit, inner_product, reconstruct_ema
from admg.training.profiles import SNAPSHOT_PROFILES, Power

GRID = 200_000


@pytest.fixture(autouse=True, scope="module")
def without_pictures():
    """Runs of a few steps, without previews and curves."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("admg.training.tasks.DiffusionTask.preview", lambda *arguments: {})
        monkeypatch.setattr("admg.training.trackers.plot_log", lambda *arguments: None)
        yield


def profile(length: float, t: float, until: float) -> np.ndarray:
    """The profile of an average at step t, at the midpoints of GRID intervals of [0, until]."""
    tau, gamma = (np.arange(GRID) + 0.5) * until / GRID, Power(length).gamma
    return np.where(tau < t, (gamma + 1) * (tau / t) ** gamma / t, 0.0)


@pytest.mark.parametrize(("t_a", "t_b"), [(60.0, 60.0), (20.0, 60.0), (60.0, 33.0)])
@pytest.mark.parametrize(("a", "b"), [(0.05, 0.05), (0.05, 0.1), (0.1, 0.28), (0.25, 0.02)])
def test_inner_products_by_numerical_integration(t_a, t_b, a, b):
    numbers = (profile(a, t_a, 60) * profile(b, t_b, 60)).mean() * 60
    formula = inner_product(t_a, Power(a).gamma, t_b, Power(b).gamma)
    assert formula == pytest.approx(numbers, rel=2e-4, abs=1e-9)  # the grid cuts profiles off within an interval


@pytest.mark.parametrize("length", [0.03, 0.07, 0.2])
def test_the_coefficients_are_those_of_least_squares_on_a_grid(length):
    """Among combinations whose coefficients sum to 1, by QR on the sampled profiles."""
    steps, t = (10, 20, 30, 40, 55), 55
    columns = np.stack([profile(p.length, s, t) for s in steps for p in SNAPSHOT_PROFILES], axis=1)
    target = profile(length, t, t)
    rest = np.linalg.lstsq(columns[:, :-1] - columns[:, -1:], target - columns[:, -1], rcond=None)[0]
    expected = np.append(rest, 1 - rest.sum())
    found = fit(steps, length, t)
    assert found.coefficients == pytest.approx(expected, abs=2e-3)
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-12)
    error = np.linalg.norm(columns @ found.coefficients - target) / np.linalg.norm(target)
    assert found.error == pytest.approx(error, rel=1e-3) and error > 1e-3


def test_a_length_that_snapshots_hold_is_taken_as_it_is():
    for position, tracked in enumerate(SNAPSHOT_PROFILES):
        expected = np.zeros(8)
        expected[6 + position] = 1
        assert fit((2, 4, 6, 8), tracked.length, 8).coefficients == pytest.approx(expected, abs=1e-9)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.moving, self.frozen = nn.Parameter(torch.zeros(20)), nn.Parameter(torch.full((3,), 7.0))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))


@pytest.mark.parametrize(("length", "step"), [(0.03, 64), (0.07, 64), (0.15, 48), (0.2, 64)])
def test_a_reconstruction_is_the_average_that_training_tracks(tmp_path, length, step):
    """Weights on a random walk. The difference of the averages is Σ_k θ_k d_k, where d_k is the integral of the
    difference of the profiles over step k. By Cauchy and Schwarz it is at most |θ - θ_0| |d|, and |d| at most the error
    of the fit.
    """
    network = Pair()
    averages = [EMA(network, p) for p in (Power(length), *SNAPSHOT_PROFILES)]
    generator, walk = torch.Generator().manual_seed(0), []
    for number in range(1, step + 1):
        network.moving.data += torch.randn(20, generator=generator)
        network.seen += 1
        walk.append(network.moving.detach().double().clone())
        for average in averages:
            average.update(network)
        if number % 2 == 0:
            snapshots.save(tmp_path, averages, number, every=2, writes=True)
    plan = Reconstruction.plan(tmp_path, length, step)
    other = Pair()
    posthoc.fill(other, tmp_path, plan.steps, plan.fit.coefficients)
    assert other.seen == step and len(plan.steps) == step // 2
    path = torch.stack(walk) - walk[0]
    norm = inner_product(step, Power(length).gamma, step, Power(length).gamma) ** 0.5
    rounding = step * 2**-24 * (1 + np.abs(plan.fit.coefficients).sum()) * torch.stack(walk).abs().max()
    bound = path.norm(dim=0) * plan.fit.error * norm + rounding
    difference = (other.moving.double() - averages[0].network.moving.double()).abs()
    assert (difference < bound).all() and 0 < bound.max() < 0.1 * path.norm(dim=0).max()
    assert (other.frozen - 7).abs().max() <= 7 * 2**-23 * np.abs(plan.fit.coefficients).sum()


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3, 10])
def test_the_number_of_snapshots_is_bounded(every):
    """Whatever is removed would also be removed later, so that an interrupted run ends with the same snapshots."""
    kept: set[int] = set()
    for step in range(every, 500 * every, every):
        now = snapshots.kept_steps(step, every)
        assert now <= kept | {step} and len(now) <= snapshots.MAX_SNAPSHOTS + 1
        assert step < 40 * every or len(now) > snapshots.MAX_SNAPSHOTS / 2
        kept = now
    assert snapshots.kept_steps(10 * every + 1, every) == {*range(every, 10 * every + 1, every), 10 * every + 1}


def trained(digits, out, steps: int, stop: int | None = None, **changes) -> TrainingRun:
    options = {"batch_size": 4, "precision": "fp32", "lr": 1e-2, "warmup": 1, "checkpoint_every": 3, "ema": "15%"}
    config = TrainConfig(steps=steps, **options | {"ema_snapshots": 1} | changes)
    run = TrainingRun(make(), admg.data.open(digits, 8), out, config)
    for step in run:
        if step["step"] == stop:
            break
    run.close()
    return run


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A run directory with snapshots of all of 8 steps."""
    folder = tmp_path_factory.mktemp("whole")
    trained(digits, folder, 8)
    return folder


@pytest.mark.thorough
def test_snapshots_of_an_interrupted_run_are_those_of_an_undisturbed_one(digits, whole, tmp_path):
    """Stopped at step 5, after the checkpoint of step 3, and started for 7 steps at first."""
    trained(digits, tmp_path, 7, stop=5)
    assert snapshots.steps_of(tmp_path) == [1, 2, 3, 4, 5]
    run = trained(digits, tmp_path, 7, stop=4)
    assert run.first_step == 3 and snapshots.steps_of(tmp_path) == [1, 2, 3, 4]
    trained(digits, tmp_path, 7)
    trained(digits, tmp_path, 8)
    assert snapshot(tmp_path / "ema") == snapshot(whole / "ema") and len(snapshot(whole / "ema")) == 8


@pytest.mark.thorough
def test_the_model_of_a_run_with_an_average_of_another_length(whole):
    """Its own 15% average; lengths that snapshots hold are exact; the provenance says what was done."""
    model, tracked = reconstruct_ema(whole, "15%"), admg.load(whole)
    pairs = [*zip(model.network.parameters(), tracked.network.parameters(), strict=True)]
    distance = sum((p - q).square().sum() for p, q in pairs).sqrt()
    raw = torch.load(state_file(whole), weights_only=True)["network"].values()
    moved = sum((p - q).square().sum() for p, q in zip(raw, tracked.network.parameters(), strict=True)).sqrt()
    assert distance < 0.02 * moved and moved > 0.1
    assert model.training["average"] == "15%" and model.training["steps"] == 8 and model.training["images"] == 32
    record = model.training["ema"]
    assert (record["length"], record["step"], record["snapshots"]) == (0.15, 8, 8) and 0 < record["error"] < 0.05
    assert model.labels.names == tracked.labels.names and model.shape == tracked.shape and not model.network.training


@pytest.mark.thorough
def test_nothing_that_was_measured_with_other_weights_is_said_of_an_average(digits, tmp_path):
    """Neither of a reconstructed one, nor of the further ones that --ema names."""
    measured = lambda self, task, network, *_: {"val_loss": 0.5, "mine": 1.0}  # noqa: E731
    measure = type("Measure", (), {"every": 2, "__call__": measured})()
    config = TrainConfig(steps=4, batch_size=4, ema="28%,0.01", ema_snapshots=1, log=("none",), checkpoint_every=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "measures_of", lambda *_: [measure])
        small = {"channels": 32, "channel_mult": (1, 1), "head_channels": 32}
        for _ in admg.train_diffusion(admg.data.open(digits, 8), tmp_path, config, network=small):
            pass
    tuned.store(tmp_path / "model", {2: {"steps": "at1+2"}})
    first, other = admg.load(tmp_path).training, admg.load(tmp_path / "model-ema-0.01").training
    assert (first["val_loss"], first["mine"]) == (0.5, 1.0) and first["loss"] == other["loss"]
    assert (
        not {"val_loss", "mine"} & other.keys()
        and "val_loss" not in (tmp_path / "model-ema-0.01/README.md").read_text()
    )
    made = reconstruct_ema(tmp_path, "10%", step=3).training
    assert not {"val_loss", "mine", "loss", "lr", tuned.KEY} & made.keys() and made["steps"] == 3
    assert made["label_dropout"] == first["label_dropout"] and made["train"] == first["train"]


@pytest.mark.thorough
def test_an_earlier_step(digits, whole, tmp_path):
    run = trained(digits, tmp_path, 5, ema="10%")
    model = reconstruct_ema(whole, 0.10, step=5)
    assert model.training["steps"] == 5
    for p, q in zip(model.network.parameters(), run.learner.average.network.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-6)


def test_what_cannot_be_reconstructed_is_refused(whole, tmp_path):
    for length in (0, -0.1, 0.29, 1, "29%", "long", "nan"):
        with pytest.raises(ValueError, match=r"length must be above 0 and at most 0.28, or up to 28%, got"):
            reconstruct_ema(whole, length)
    with pytest.raises(ValueError, match=r"step 12 of .* has no snapshot; the nearest are 7 and 8, and the last is 8"):
        reconstruct_ema(whole, 0.1, step=12)
    with pytest.raises(ValueError, match=r"length 0.01 cannot be made from the 8 snapshots of .* until step 8"):
        reconstruct_ema(whole, 0.01)
    with pytest.raises(ValueError, match=r"has no snapshots of averages: training writes them with --ema-snapshots N"):
        reconstruct_ema(tmp_path, 0.1)


@pytest.mark.thorough
def test_a_damaged_snapshot_is_refused(whole, digits, tmp_path):
    trained(digits, tmp_path, 3)
    path = snapshots.path_of(tmp_path, 2)
    data = path.read_bytes()
    for damaged, message in ((data[:-1000], "truncated"), (data[:-3] + b"abc", "is damaged: its checksum")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            reconstruct_ema(tmp_path, 0.1)
    path.write_bytes(data)
    reconstruct_ema(tmp_path, 0.1)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_every_average_of_the_snapshots_is_tracked_once(digits, kind):
    _, learner = learned(digits, make(kind), steps=1, ema="0.5,10%", ema_snapshots=2)
    assert [str(average.profile) for average in learner.averages] == ["0.5", "10%", "5%"]


@pytest.mark.slow
def test_the_example_of_the_docstring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = admg.data.from_arrays(np.zeros((4, 8, 8), np.uint8))
    small = {name: value for name, value in TRUNK.items() if not name.startswith("image_")}
    run_example(reconstruct_ema, admg=admg, dataset=dataset, small=small)
