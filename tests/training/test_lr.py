"""Learning rates of each step, against closed forms."""

from __future__ import annotations

import csv
import json
import math

import pytest
from helpers import refused, succeed

from admg.training import TrainConfig
from admg.training.lr import lr_at_step


def rates(config: TrainConfig, *steps: int) -> list[float]:
    return [lr_at_step(config, step) for step in steps]


def test_a_constant_rate_after_the_warm_up():
    config = TrainConfig(lr=0.8, warmup=4, steps=100)
    assert rates(config, 0, 1, 3, 4, 99) == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8])


def test_linear_annealing_is_that_of_guided_diffusion():
    """lr (1 - step / lr_anneal_steps), which ends with the run unless told otherwise."""
    config = TrainConfig(lr=0.8, warmup=0, steps=100, lr_schedule="linear")
    assert rates(config, 0, 25, 50, 99, 100, 150) == pytest.approx([0.8, 0.6, 0.4, 0.008, 0, 0])
    longer = TrainConfig(lr=0.8, warmup=0, steps=100, lr_schedule="linear", lr_anneal_steps=200)
    assert rates(longer, 50, 100) == pytest.approx([0.6, 0.4])


def test_cosine_annealing():
    config = TrainConfig(lr=0.8, warmup=0, steps=100, lr_schedule="cosine")
    expected = [0.8, 0.4 * (1 + math.sqrt(0.5)), 0.4, 0.4 * (1 - math.sqrt(0.5)), 0, 0]
    assert rates(config, 0, 25, 50, 75, 100, 130) == pytest.approx(expected)


def test_the_inverse_square_root_is_that_of_edm2():
    """lr / sqrt(max(step / t_ref, 1))."""
    config = TrainConfig(lr=0.8, warmup=0, steps=100, lr_schedule="inverse-sqrt", lr_anneal_steps=16)
    assert rates(config, 0, 16, 64, 256) == pytest.approx([0.8, 0.8, 0.4, 0.2])
    usual = TrainConfig(lr=0.8, warmup=0, steps=100, lr_schedule="inverse-sqrt")  # a tenth of the steps
    assert rates(usual, 10, 40, 90) == pytest.approx([0.8, 0.4, 0.8 / 3])


@pytest.mark.parametrize("schedule,left", [("linear", 0.98), ("cosine", 0.9990134), ("inverse-sqrt", 1.0)])
def test_warm_up_and_annealing_are_multiplied(schedule, left):
    config = TrainConfig(lr=0.8, warmup=12, steps=100, lr_schedule=schedule)
    assert rates(config, 2) == pytest.approx([0.8 * 3 / 12 * left])


def test_steps_that_do_not_fit_the_schedule_are_refused():
    with pytest.raises(ValueError, match="lr_anneal_steps applies only to lr_schedule linear, cosine and inverse-sqrt"):
        TrainConfig(lr_anneal_steps=10)
    for schedule in ("linear", "cosine"):
        with pytest.raises(ValueError, match=r"lr_anneal_steps must be at least the 20 steps of the run.* got 10"):
            TrainConfig(lr_schedule=schedule, steps=20, lr_anneal_steps=10)
    assert TrainConfig(lr_schedule="inverse-sqrt", steps=20, lr_anneal_steps=10).lr_anneal_steps == 10
    with pytest.raises(ValueError, match="lr_schedule must be one of constant, linear, cosine, inverse-sqrt"):
        TrainConfig(lr_schedule="step")


@pytest.mark.thorough
def test_the_options_of_the_loss_and_of_the_learning_rate_are_recorded_and_refused(digits, tmp_path, capsys):
    """By the commands: bad combinations are one line that begins with the option, and nothing is written."""
    small = ["--image-size", 8, "--channels", 32, "--channel-mult", "1,1", "--num-res-blocks", 1, "--head-channels", 32]
    common = [*small, "--data", digits, "--diffusion-steps", 20, "--noise-schedule", "cosine", "--batch-size", 4]
    for options, message in (
        (
            ["--weighting", "min-snr", "--weighting-k", 2],
            "--weighting-k applies only to the weighting p2",
        ),
        (["--weighting-gamma", 2], "--weighting-gamma applies only to the weightings min-snr and p2, not to uniform"),
        (["--weighting-gamma", -1], "--weighting-gamma must be above 0, got -1.0"),
        (["--weighting", "p2", "--objective", "vlb"], "weighting must be uniform for objective vlb"),
        (
            ["--vlb-weight", 1, "--objective", "simple"],
            "--vlb-weight applies only to the objective hybrid",
        ),
        (["--vlb-weight", 1, "--variance", "fixed_small"], "--vlb-weight needs a learned variance, got fixed_small"),
        (
            ["--timesteps-mean", 1],
            "--timesteps-mean applies only to the timesteps logit-normal and log-normal, not to uniform",
        ),
        (["--timesteps", "log-normal", "--timesteps-std", 0], "--timesteps-std must be above 0, got 0.0"),
        (["--timesteps", "lognormal"], "'lognormal' is not one of uniform, loss-second-moment, logit-normal, log-n"),
        (["--lr-anneal-steps", 9], "--lr-anneal-steps applies only to --lr-schedule linear, cosine and inverse-sqrt"),
        (["--lr-schedule", "linear", "--steps", 9, "--lr-anneal-steps", 8], "--lr-anneal-steps must be at least the 9"),
    ):
        assert message in refused(capsys, "train", *common, *options, "--out", tmp_path / "bad")
    assert "unknown option '--timesteps'" in refused(
        capsys, "train-classifier", *common, "--timesteps", "log-normal", "--out", tmp_path / "bad"
    )
    assert not (tmp_path / "bad").exists()

    options = ["--weighting", "p2", "--weighting-gamma", 0.5, "--timesteps", "loss-second-moment", "--vlb-weight", 0.01]
    options += ["--lr-schedule", "linear", "--lr", 1e-3, "--warmup", 0, "--steps", 4, "--log-every", 1]
    for command in (["train"], ["train-upsampler", "--small-size", 4]):
        out = tmp_path / command[0]
        succeed(capsys, *command, *common, *options, "--out", out)
        training = json.loads((out / "model" / "config.json").read_text())["training"]
        assert training["objective"]["weighting_gamma"] == 0.5 and training["objective"]["vlb_weight"] == 0.01
        assert training["objective"]["timesteps"] == "loss-second-moment"
        assert training["train"]["lr_schedule"] == "linear"
        with (out / "log.csv").open() as file:
            found = [float(row["lr"]) for row in csv.DictReader(file)]
        assert found == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4], rel=1e-5)
