"""Averages of the weights: exponential and power-function profiles, several at once, and what a resumed run does."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from helpers import CPU, learned, make, refused, run, snapshot
from torch import nn

import admg
from admg.checksums import write_json
from admg.training import EMA, TrainConfig, TrainingRun, checkpointing
from admg.training.profiles import Decay, Power, parse_profiles
from admg.training.step import Learner

SMALL = ["--image-size", 8, "--channels", 32, "--channel-mult", "1,1", "--num-res-blocks", 1, "--head-channels", 32,
         "--attention-resolutions", 4, "--diffusion-steps", 50, "--batch-size", 4, "--precision", "fp32",
         "--unlabelled"]  # fmt: skip


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Runs of a few steps, without previews and curves."""
    monkeypatch.setattr("admg.training.tasks.DiffusionTask.preview", lambda *arguments: {})
    monkeypatch.setattr("admg.training.trackers.plot_log", lambda *arguments: None)


def weights(model) -> list[torch.Tensor]:
    return [p.detach() for p in model.network.parameters()]


def equal(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(weights(a), weights(b), strict=True))


# -- profiles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_exponents_of_the_paper(length, gamma):
    assert Power(length).gamma == pytest.approx(gamma, abs=0.005)  # Karras et al. 2024, section 3.1


@pytest.mark.parametrize("length", [0.01, 0.15, 0.28])
def test_the_length_is_the_relative_standard_deviation_of_the_profile(length):
    """By the midpoint rule on a million intervals."""
    tau, gamma = (np.arange(10**6) + 0.5) / 10**6, Power(length).gamma
    p = (gamma + 1) * tau**gamma
    mean = (p * tau).mean()
    assert p.mean() == pytest.approx(1, rel=1e-6)
    assert np.sqrt((p * (tau - mean) ** 2).mean()) == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("length", [0.05, 0.1, 0.28])
@pytest.mark.parametrize("sequence", ["constant", "linear", "random"])
def test_a_power_average_is_the_normalised_profile_of_all_past_weights(length, sequence):
    """The weights of step k count with the integral of the profile from k - 1 to k."""
    steps = 300
    values = {"constant": np.full(steps, 3.5), "linear": 100.0 - np.arange(steps),
              "random": np.random.default_rng(0).normal(size=steps)}[sequence]  # fmt: skip
    network = nn.Linear(1, 1, bias=False).double()
    average = EMA(network, Power(length))
    for value in values:
        nn.init.constant_(network.weight, value)
        average.update(network)
    exponent = Power(length).gamma + 1
    profile = np.diff((np.arange(steps + 1) / steps) ** exponent)
    assert profile.sum() == pytest.approx(1)
    # Each update rounds its result and 1 - β; the errors decay as the average does.
    bound = 4 * steps * 2**-53 * np.abs(values).max()
    assert abs(average.network.weight.item() - profile @ values) < bound


def test_what_names_an_average():
    assert parse_profiles("0.9999") == (Decay(0.9999),) and parse_profiles(0.5) == (Decay(0.5),)
    assert parse_profiles(" 10%, 0.999,5.5%") == (Power(0.10), Decay(0.999), Power(0.055))
    assert [str(p) for p in parse_profiles(("7%", 0))] == ["7%", "0.0"]
    assert TrainConfig(ema="0.999").ema == 0.999 and TrainConfig(ema=("10%", 0.9)).ema == ("10%", 0.9)
    assert TrainConfig().profiles == (Power(0.10),)
    for wrong in ("1", "10", "-0.1", "nan", "0%", "28.5%", "-5%", "%", "", "high", "0.9,,0.8", True):
        with pytest.raises(ValueError, match=r"ema must be a decay of at least 0 and below 1 such as 0.9999, or a len"):
            TrainConfig(ema=wrong)
    for wrong in ("0.9,0.90", ("10%", "10.0%"), ()):
        with pytest.raises(ValueError, match="ema must be one average or several distinct ones, got"):
            TrainConfig(ema=wrong)
    with pytest.raises(ValueError, match="ema_snapshots must be at least 0"):
        TrainConfig(ema_snapshots=-1)


# -- several averages --------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_several_averages_are_what_each_is_alone(digits):
    _, several = learned(digits, make(), ema="0.5,10%,0.25", steps=4)
    for position, spec in enumerate((0.5, "10%", 0.25)):
        _, alone = learned(digits, make(), ema=spec, steps=4)
        assert equal(several.averages[position], alone.average)
    assert not equal(several.averages[0], several.averages[2])


@pytest.mark.thorough
def test_the_first_average_is_the_model_and_the_others_have_folders(capsys, digits, tmp_path):
    command = ["train", "--data", digits, *SMALL, "--steps", 3, "--out", tmp_path / "a"]
    code, out, _ = run(capsys, *command, "--ema", "0.5,10%,0.25")
    assert code == 0 and f"another average: {tmp_path / 'a' / 'model-ema-length-0.1'}\n" in out
    names = sorted(path.name for path in (tmp_path / "a").glob("model*"))
    assert names == ["model", "model-ema-0.25", "model-ema-length-0.1"]
    for spec, name in (("0.5", "model"), ("10%", "model-ema-length-0.1"), ("0.25", "model-ema-0.25")):
        assert run(capsys, *command[:-1], tmp_path / name, "--ema", spec)[0] == 0
        model, alone = admg.load(tmp_path / "a" / name), admg.load(tmp_path / name)
        assert equal(model, alone)
        assert model.training["average"] == spec and model.training["steps"] == 3
        assert model.training["train"]["ema"] == [0.5, "10%", 0.25] and alone.training["average"] == spec


# -- resuming ----------------------------------------------------------------------------------------------------------


def trained(digits, out, steps: int, **changes) -> TrainingRun:
    options = {"batch_size": 4, "precision": "fp32", "lr": 1e-2, "warmup": 1, "checkpoint_every": 2}
    run = TrainingRun(make(), admg.data.open(digits, 8), out, TrainConfig(steps=steps, **options | changes))
    for _ in run:
        pass
    return run


@pytest.mark.thorough
def test_a_resumed_run_keeps_all_averages(digits, tmp_path):
    """Without being told again, and with a rule of its own for each."""
    whole = trained(digits, tmp_path / "whole", 4, ema="5%,0.5")
    trained(digits, tmp_path / "broken", 2, ema="5%,0.5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        broken = trained(digits, tmp_path / "broken", 4)
    assert broken.config.ema == ("5%", 0.5)
    for a, b in zip(whole.learner.averages, broken.learner.averages, strict=True):
        assert equal(a, b) and a.count == b.count == 4


@pytest.mark.thorough
def test_other_averages_begin_from_the_weights_and_are_named(digits, tmp_path):
    first = trained(digits, tmp_path / "a", 3, ema="5%,0.5")
    message = "the average 0.25 begins from the weights at step 3; the average 0.5 is not continued"
    with pytest.raises(ValueError, match=r"is finished, so that the average 0\.25 would only begin: raise steps, or"):
        trained(digits, tmp_path / "a", 3, ema="0.25,5%")
    assert sorted(path.name for path in (tmp_path / "a").glob("model*")) == ["model", "model-ema-0.5"]
    with pytest.warns(UserWarning, match=message) as caught:
        second = trained(digits, tmp_path / "a", 4, ema="0.25,5%")
    assert len(caught) == 1
    begun, kept = second.learner.averages
    assert equal(begun, second.learner) and begun.count == 1  # its first update copies the weights
    assert not equal(kept, first.learner.average) and kept.count == 4


@pytest.mark.thorough
def test_averages_in_another_order_leave_no_older_model(digits, tmp_path):
    trained(digits, tmp_path, 2, ema="5%,0.5")
    run = trained(digits, tmp_path, 4, ema="0.5,5%")
    names = {path.name: admg.load(path).training for path in tmp_path.glob("model*")}
    assert {name: (found["average"], found["steps"]) for name, found in names.items()} == {
        "model": ("0.5", 4), "model-ema-length-0.05": ("5%", 4)
    }  # fmt: skip
    assert run.other_models == [tmp_path / "model-ema-length-0.05"]


def old_checkpoint(folder, learner: Learner, decay: float | None) -> None:
    """Write a checkpoint as it was when there was one average, whose decay config.json had."""
    state = checkpointing.checkpoint_state(learner, 3)
    checkpointing.save(folder, {key: state[key] for key in ("step", "optimizer", "network", "average")})
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text())
    config["training"]["train"] = {} if decay is None else {"ema": decay}
    write_json(path, config)


@pytest.mark.thorough
@pytest.mark.parametrize(("recorded", "expected"), [(0.98, 0.98), (None, 0.9999)])
def test_an_older_run_keeps_its_exponential_average(digits, tmp_path, recorded, expected):
    first = trained(digits, tmp_path, 3, ema=0.98)
    old_checkpoint(tmp_path, first.learner, recorded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = trained(digits, tmp_path, 4)
    average = copy.deepcopy(first.learner.average)
    average.profile = Decay(expected)
    average.update(second.learner.network)
    assert equal(second.learner.average, average) and second.learner.average.profile == Decay(expected)
    assert admg.load(tmp_path).training["train"]["ema"] == expected


@pytest.mark.thorough
def test_snapshots_cannot_begin_in_the_middle_of_a_run(capsys, digits, tmp_path):
    command = ["train", "--data", digits, *SMALL, "--out", tmp_path]
    assert run(capsys, *command, "--steps", 2)[0] == 0
    before = snapshot(tmp_path)
    line = refused(capsys, *command, "--steps", 4, "--ema-snapshots", 2)
    assert line.startswith("admg train: error: --ema-snapshots must be 0 for the run in") and "5%" in line
    assert snapshot(tmp_path) == before
    assert run(capsys, *command, "--steps", 4, "--ema", "10%,5%")[0] == 0
    assert "5% from its first step" in refused(capsys, *command, "--steps", 6, "--ema-snapshots", 2)


@pytest.mark.thorough
def test_bad_averages_are_refused_in_one_line(capsys, digits, tmp_path):
    command = ["train", "--data", digits, *SMALL, "--steps", 1, "--out", tmp_path / "a"]
    line = refused(capsys, *command, "--ema", "10")
    assert "--ema must be a decay of at least 0 and below 1 such as 0.9999, or a length" in line and "'10'" in line
    (tmp_path / "c.toml").write_text('ema = [0.5, "10%"]\n')
    assert run(capsys, *command, "--config", tmp_path / "c.toml")[0] == 0
    assert admg.load(tmp_path / "a").training["train"]["ema"] == [0.5, "10%"]
    assert (tmp_path / "a" / "model-ema-length-0.1").is_dir() and TrainConfig(ema=(0.5, "10%")).ema == (0.5, "10%")
    assert Learner(make(), TrainConfig(ema="0.5,10%"), CPU).average.profile == Decay(0.5)
