"""fp16: the loss is scaled, steps whose gradient overflows are skipped, and the scale is resumed."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from helpers import CPU, learned, make, resume

from admg.cli.main import main
from admg.data import batches
from admg.data import open as open_dataset
from admg.engine import precision
from admg.training import TrainConfig, checkpointing
from admg.training.prefetch import prefetch
from admg.training.scaling import LossScaler
from admg.training.step import Learner


def learner(**changes) -> Learner:
    return Learner(make(), TrainConfig(**{"batch_size": 10, "precision": "fp16", "warmup": 1} | changes), CPU)


def batch(digits: str, one: Learner) -> tuple[torch.Tensor, ...]:
    return next(prefetch(one.task, batches(open_dataset(digits, 8), 10, seed=0), 0, 0, CPU))


def weights(one: Learner) -> list[torch.Tensor]:
    return [p.detach().clone() for p in [*one.network.parameters(), *one.average.network.parameters()]]


def counts(one: Learner) -> list[int]:
    return [average.count for average in one.averages]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_losses_in_fp16_are_those_of_fp32(digits, kind, monkeypatch):
    """With 11 bits of matrix products. The scale of the loss cancels: without unscaling, gradients would be 65536 times
    as large."""
    expected, _ = learned(digits, make(kind), lr=1e-4)
    config = TrainConfig(batch_size=10, precision="fp16", warmup=1, lr=1e-4)
    one = Learner(make(kind), config, CPU)
    fed = prefetch(one.task, batches(open_dataset(digits, 8), 10, seed=0), 0, 0, CPU)
    for k, row in enumerate(expected):
        found = one.step(k, next(fed))
        assert found["loss"].item() == pytest.approx(row["loss"], rel=5e-3)
        assert found["grad_norm"].item() == pytest.approx(row["grad_norm"], rel=2e-2)
        assert found["loss_scale"] == 65536 and found["skipped"] == 0
    assert all(p.dtype == torch.float32 for p in one.network.parameters())


@pytest.mark.thorough
def test_a_step_whose_gradient_overflows_is_skipped_and_halves_the_scale(digits):
    """Scales of 2^60 and 2^30: the gradients overflow in fp16 (65504), weights, average and moments stay.

    A power-function average counts the step: its weights at step k are those of step k.
    """
    one = learner(ema=(0.9999, "10%"))
    drawn = batch(digits, one)
    one.step(0, drawn)
    before, moments = weights(one), one.optimizer.state_dict()["state"][0]
    moments = {name: value.clone() for name, value in moments.items()}
    one.scaler.load_state_dict(one.scaler.state_dict() | {"scale": 2.0**60})
    found = one.step(1, drawn)
    assert found["skipped"] == 1 and found["loss_scale"] == 2.0**59 and not found["grad_norm"].isfinite()
    assert found["loss"].isfinite()
    assert same(weights(one), before) and counts(one) == [1, 2]
    assert all(torch.equal(v, moments[n]) for n, v in one.optimizer.state_dict()["state"][0].items())
    assert all(p.grad is None for p in one.network.parameters())
    one.scaler.load_state_dict(one.scaler.state_dict() | {"scale": 1024.0})
    found = one.step(2, drawn)
    assert found["skipped"] == 0 and found["grad_norm"] > 0
    assert not same(weights(one), before) and counts(one) == [2, 3]


@pytest.mark.thorough
def test_the_scale_is_saved_and_resumed(digits, tmp_path):
    one = learner()
    drawn = batch(digits, one)
    one.step(0, drawn)
    one.scaler.load_state_dict(one.scaler.state_dict() | {"scale": 2.0**60})
    one.step(1, drawn)
    state = one.scaler.state_dict()
    checkpointing.save(tmp_path, checkpointing.checkpoint_state(one, 2))
    other, plain = learner(), learner(precision="fp32")
    assert resume(tmp_path, other) == resume(tmp_path, plain) == 2
    assert other.scaler.state_dict() == state and state["scale"] == 2.0**59
    assert plain.state() == {}
    assert other.step(2, drawn)["loss_scale"] == 2.0**58  # it overflows again, and goes on where the first was
    checkpointing.save(tmp_path, checkpointing.checkpoint_state(plain, 2))
    assert resume(tmp_path, fresh := learner()) == 2 and fresh.scaler.state_dict()["scale"] == 65536


def test_a_gradient_that_overflows_at_every_scale_stops_the_training():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    scaler, taken = LossScaler(CPU, enabled=True), []
    with pytest.raises(FloatingPointError, match="gradient of step 30 overflows in fp16 at any scale; try fp32 or"):
        for number in range(60):
            scaler.scale((parameter * torch.inf).sum()).backward()
            scaler.unscale(optimizer)
            taken.append(scaler.step(optimizer, number))
            optimizer.zero_grad()
    assert taken == [False] * 30 and parameter.tolist() == [1, 1]


def test_other_precisions_do_not_scale(digits):
    one = learner(precision="fp32")
    drawn = batch(digits, one)
    assert one.step(0, drawn).keys() == {"loss", "mse", "vb", "grad_norm", "skipped"} and not one.scaler.enabled
    loss = torch.tensor(2.0)
    assert one.scaler.scale(loss) is loss


@pytest.mark.parametrize("capability,taken", [((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16")])
def test_auto_is_fp16_on_gpus_with_tensor_cores_but_without_bf16(monkeypatch, capability, taken):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    precision.native_bf16.cache_clear()
    try:
        gpu = torch.device("cuda")
        assert precision.resolve_training("auto", gpu) == taken
        assert precision.resolve("auto", gpu) == ("bf16" if taken == "bf16" else "fp32")  # for sampling, as before
        assert precision.resolve_training("fp16", CPU) == "fp16" and precision.resolve_training("fp32", gpu) == "fp32"
    finally:
        precision.native_bf16.cache_clear()
    assert precision.resolve_training("auto", CPU) in ("fp32", "bf16")


@pytest.mark.thorough
def test_the_command_logs_the_scale(digits, tmp_path):
    command = ["train", "--data", digits, "--image-size", "8", "--channels", "32", "--channel-mult", "1,1",
               "--num-res-blocks", "1", "--head-channels", "32", "--diffusion-steps", "50", "--batch-size", "4",
               "--precision", "fp16", "--log-every", "1", "--unlabelled", "--out", str(tmp_path)]  # fmt: skip
    assert main([*command, "--steps", "2"]) == 0
    assert main([*command, "--steps", "3"]) == 0
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss_scale"]) for row in rows] == [65536] * 3 and len(rows) == 3
    assert all(np.isfinite(float(row["loss"])) for row in rows)
