"""NaN and infinite numbers anywhere in a run: a step is skipped, the run goes back, or it ends with one line.

Overflows in fp16 are in test_fp16.py.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make, refused
from safetensors.torch import load_file, save_file
from torch import nn

from admg.data import open as open_dataset
from admg.training import TrainConfig, TrainingRun, checkpointing
from admg.training.step import Learner

pytestmark = pytest.mark.usefixtures("simple_pictures")
NAN, INF = float("nan"), float("inf")
STEPS, AT = 18, 5
"""Steps of a run, and the step, counted from 0, at which something happens."""
OPTIONS = {"batch_size": 10, "precision": "fp32", "warmup": 1, "log": ("none",), "checkpoint_every": 2, "log_every": 3,
           "preview_every": 1000, "steps": STEPS, "rollback_lr": 1.0}  # fmt: skip
Event = Callable[[Learner], None]


def begin(digits: str, out: Path, **options) -> TrainingRun:
    return TrainingRun(make(), open_dataset(digits, 8), out, TrainConfig(**OPTIONS | options))


def disturbed(training: TrainingRun, event: Event, at: range) -> TrainingRun:
    """Let something happen before these steps, the first time that they are taken."""
    step, waiting = training.learner.step, set(at)

    def disturbed_step(number, drawn):
        if number in waiting:
            waiting.remove(number)
            event(training.learner)
        return step(number, drawn)

    training.learner.step = disturbed_step
    return training


def finished(training: TrainingRun) -> tuple[list[dict[str, float]], list[str]]:
    """Return the measurements of all steps, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        rows = list(training)
    return rows, [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def weights(training: TrainingRun) -> list[torch.Tensor]:
    learner = training.learner
    return [p.detach().clone() for network in (learner.network, learner.average.network) for p in network.parameters()]


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory) -> list[torch.Tensor]:
    training = begin(digits, tmp_path_factory.mktemp("plain"))
    list(training)
    return weights(training)


def first(network: nn.Module) -> nn.Parameter:
    return next(network.parameters())


def in_loss(value: float) -> Event:
    """Return what makes the next loss this many times as large."""

    def event(learner: Learner) -> None:
        loss = learner.fast_task.loss

        def once(*drawn):
            object.__delattr__(learner.fast_task, "loss")
            terms = loss(*drawn)
            return terms | {"loss": terms["loss"] * value}

        object.__setattr__(learner.fast_task, "loss", once)

    return event


def in_gradient(value: float) -> Event:
    """Return what puts a value into the next gradient of one weight, whose loss is finite."""

    def event(learner: Learner) -> None:
        def spoil(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            weight.grad.view(-1)[0] = value
            handle.remove()

        handle = first(learner.network).register_post_accumulate_grad_hook(spoil)

    return event


def in_state(value: float, find: Callable[[Learner], torch.Tensor]) -> Event:
    """Return what puts a value into one number of a tensor."""

    def event(learner: Learner) -> None:
        with torch.no_grad():
            find(learner).view(-1)[0] = value

    return event


def moment(name: str) -> Callable[[Learner], torch.Tensor]:
    return lambda learner: learner.optimizer.state[first(learner.network)][name]


ONE, TEN = range(AT, AT + 1), range(AT, AT + 10)
SKIPPED: dict[str, tuple[Event, range]] = {
    "an infinite loss": (in_loss(INF), ONE),
    "a loss that is NaN": (in_loss(NAN), ONE),
    "an infinite gradient": (in_gradient(INF), ONE),
    "a gradient that is NaN": (in_gradient(NAN), ONE),
    "nine infinite losses": (in_loss(INF), range(AT, AT + 9)),
}
"""Events after which a run goes on without the steps."""
BACK: dict[str, tuple[Event, range]] = {
    "ten infinite losses": (in_loss(INF), TEN),
    "ten losses that are NaN": (in_loss(NAN), TEN),
    "ten infinite gradients": (in_gradient(INF), TEN),
    "ten gradients that are NaN": (in_gradient(NAN), TEN),
    "NaN in a weight": (in_state(NAN, lambda learner: first(learner.network)), ONE),
    "an infinite weight": (in_state(INF, lambda learner: first(learner.network)), ONE),
    "a weight of 1e38": (in_state(1e38, lambda learner: first(learner.network)), ONE),
    "an infinite embedding of a label": (in_state(INF, lambda learner: learner.network.label_emb.weight), ONE),
    "NaN in a first moment": (in_state(NAN, moment("exp_avg")), ONE),
    "NaN in a second moment": (in_state(NAN, moment("exp_avg_sq")), ONE),
    "an infinite second moment": (in_state(INF, moment("exp_avg_sq")), ONE),
    "NaN in the averaged weights": (in_state(NAN, lambda learner: first(learner.average.network)), ONE),
    "infinite averaged weights": (in_state(-INF, lambda learner: first(learner.average.network)), ONE),
}
"""Events after which a run goes back, and ends as if nothing had happened."""


def some_slow(names: Iterable[str], quick: str) -> list[object]:
    """Return the names as parameters of a test, of which all but one are marked slow."""
    return [name if name == quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some_slow(SKIPPED, "a gradient that is NaN"))
def test_steps_are_skipped(name, digits, tmp_path, undisturbed):
    event, at = SKIPPED[name]
    training = disturbed(begin(digits, tmp_path), event, at)
    rows, notes = finished(training)
    assert [row["skipped"] for row in rows] == [float(k in at) for k in range(STEPS)] and not notes
    assert training.learner.first_nonfinite() is None
    assert max((a - b).abs().max() for a, b in zip(weights(training), undisturbed)) < 0.1


@pytest.mark.parametrize("name", some_slow(BACK, "NaN in the averaged weights"))
def test_a_run_goes_back_and_ends_as_if_nothing_had_happened(name, digits, tmp_path, undisturbed):
    """Also, no checkpoint ever holds NaN."""
    training = disturbed(begin(digits, tmp_path, keep_checkpoints=100), *BACK[name])
    rows, notes = finished(training)
    assert len(notes) == 1 and f"to the checkpoint of step {AT - 1}" in notes[0] and len(rows) > STEPS
    assert all(torch.equal(a, b) for a, b in zip(weights(training), undisturbed, strict=True))
    for path in checkpointing.saved_checkpoints(tmp_path):
        state = checkpointing.read(path)
        assert all(value.isfinite().all() for part in ("network", "average") for value in state[part].values())


@pytest.mark.slow
def test_nan_in_a_saved_checkpoint_brings_the_run_back_to_the_one_before(digits, tmp_path, undisturbed):
    """Such as one that another program has written, whose checksums are right."""
    list(begin(digits, tmp_path, steps=6))
    path = checkpointing.saved_checkpoints(tmp_path)[-1]
    state = checkpointing.read(path)
    next(iter(state["network"].values())).view(-1)[0] = NAN
    torch.save(state, path / checkpointing.STATE)
    (path / checkpointing.CHECKSUMS).unlink()
    checkpointing.write_checksums(path)
    training = begin(digits, tmp_path)
    _, notes = finished(training)
    assert [note.split("to the checkpoint of step ")[1] for note in notes] == ["6", "4"]
    assert all(torch.equal(a, b) for a, b in zip(weights(training), undisturbed, strict=True))


@pytest.mark.thorough
def test_a_run_that_stops_while_it_fails_goes_back_beyond_the_checkpoint_of_the_stop(digits, tmp_path, undisturbed):
    """That checkpoint lacks the steps that were skipped before the stop; the ten count across it."""
    training = disturbed(begin(digits, tmp_path), in_loss(INF), TEN)
    for row in training:
        if row["step"] == AT + 3:
            training.stop()
    assert checkpointing.step_of(checkpointing.saved_checkpoints(tmp_path)[-1]) == AT + 4
    resumed = disturbed(begin(digits, tmp_path), in_loss(INF), range(AT + 4, AT + 10))
    _, notes = finished(resumed)
    assert len(notes) == 1 and f"returning from step {AT + 10} to the checkpoint of step {AT - 1}" in notes[0]
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), undisturbed, strict=True))


@pytest.mark.thorough
def test_nan_without_a_checkpoint_ends_with_one_line(digits, tmp_path):
    event = in_state(NAN, lambda learner: first(learner.average.network))
    with pytest.raises(FloatingPointError, match="the averaged weights are not finite at step 6, and there is no chec"):
        list(disturbed(begin(digits, tmp_path, checkpoint_every=6), event, ONE))
    assert not checkpointing.saved_checkpoints(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("lr", [1e3, 1e9, 1e30])
def test_a_learning_rate_that_ruins_the_weights_ends_with_one_line_or_in_finite_weights(lr, digits, tmp_path):
    training = begin(digits, tmp_path, lr=lr, steps=60, rollback_lr=0.5)
    try:
        finished(training)
    except FloatingPointError as error:
        assert "checkpoint to go back to: choose a smaller lr" in str(error)
    for path in checkpointing.saved_checkpoints(tmp_path):
        state = checkpointing.read(path)
        assert all(value.isfinite().all() for part in ("network", "average") for value in state[part].values())


@pytest.mark.thorough
def test_weights_and_images_that_are_nan_are_refused(capsys, digits, tmp_path):
    list(begin(digits, tmp_path / "run", steps=1))
    model = tmp_path / "run" / "model"
    state = load_file(model / "model.safetensors")
    next(iter(state.values())).view(-1)[0] = NAN
    save_file(state, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in ("checksum", "sha256")}
    (model / "config.json").write_text(json.dumps(kept))
    options = ["train", "--data", digits, "--steps", 1, "--out", tmp_path / "o"]
    assert "has NaN or infinite numbers in" in refused(capsys, *options, "--init", model)
    images = np.zeros((4, 8, 8, 1), np.float32)
    for value in (NAN, INF):
        images[2, 3, 4, 0] = value
        np.save(tmp_path / "x.npy", images)
        refused(capsys, "train", "--data", tmp_path / "x.npy", "--steps", 1, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()
