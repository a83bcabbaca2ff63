"""The formulas of benchmarks/plan.py agree with what a small network needs and exchanges."""

from __future__ import annotations

import json

import pytest
import torch
from distributed_worker import CPU, SMALL, task_of
from plan import FLOAT32, Machines, Plan, largest_block, main, plan_of
from scaling import main as scaling

from admg.models import UNet, UNetConfig
from admg.training import TrainConfig
from admg.training.recipes.cost import BYTES_PER_PARAMETER
from admg.training.recipes.measure import measure
from admg.training.step import Learner


def test_state_of_a_parameter(monkeypatch):
    """20 bytes: the weight, its gradient, two moments and the average, measured in a step."""
    task = task_of("diffusion", torch.float32)
    learner = Learner(task, TrainConfig(batch_size=2, precision="fp32", ema=(0.999,)), CPU)
    parameters = list(learner.network.parameters())
    gradients: list[int] = []
    step = learner.optimizer.step

    def counted(*args: object) -> object:
        gradients.append(sum(p.grad.nbytes for p in parameters))
        return step(*args)

    monkeypatch.setattr(learner.optimizer, "step", counted)
    x = torch.zeros(2, 1, 8, 8)
    learner.step(0, (x, torch.tensor([0, 1]), *task.draw(x.shape, torch.Generator().manual_seed(0))))
    moments = [v for state in learner.optimizer.state.values() for v in state.values() if v.ndim or v.numel() > 1]
    kept = [*parameters, *moments, *learner.average.network.parameters()]
    count = sum(p.numel() for p in parameters)
    steps = 4 * len(learner.optimizer.state)  # AdamW counts the steps of each weight
    assert sum(tensor.nbytes for tensor in kept) + gradients[0] in (20 * count, 20 * count + steps)
    assert BYTES_PER_PARAMETER == 20


@pytest.mark.slow
def test_bytes_of_collectives(tmp_path, capsys, monkeypatch):
    """DDP gives 4 bytes per parameter to an all-reduce; FSDP2 gathers blocks twice, and all other weights once."""
    monkeypatch.chdir(tmp_path)
    options = ["--processes", "2", "--rounds", "1", "--steps", "1", "--batch-size", "1", "--size", "8"]
    assert scaling([*options, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["2"]
    network = UNet(UNetConfig(image_size=8, channels=32, channel_mult=(1, 2), num_res_blocks=1, head_channels=32,
                              attention_resolutions=(4,)))  # fmt: skip
    count = sum(p.numel() for p in network.parameters())
    inside = sum(p.numel() for blocks in (network.input_blocks, network.middle_block, network.output_blocks)
                 for p in blocks.parameters())  # fmt: skip
    assert found["parameters"] == count
    assert found["bytes"]["accelerated, DDP"] == found["bytes"]["plain, DDP"] == {"all-reduce": 4 * count}
    sharded = found["bytes"]["FSDP2"]
    padding = 1.01  # rows of odd numbers are filled up
    assert 4 * count <= sharded["reduce-scatter"] <= padding * 4 * count
    assert 4 * (inside + count) <= sharded["all-gather"] <= padding * 4 * (inside + count)
    table = capsys.readouterr().out
    assert "| 2 | FSDP2 |" in table and "all-reduce 4.00" in table


@pytest.mark.thorough
def test_bytes_and_efficiency_by_hand():
    """Two GPUs exchange half of everything; one GPU's worth of work takes a second."""
    cost = measure(UNetConfig(**SMALL))
    plan = Plan(cost=cost, largest=100, gpus=2, batch_size=8, accumulate=2)
    assert plan.images == 2
    assert plan.ddp_bytes == 4 * cost.parameters and plan.fsdp_bytes == 10 * cost.parameters
    assert plan.fsdp_memory == pytest.approx(
        (10 + 2 + 4) * cost.parameters + 2e6 * cost.activation_mb_bf16 + 3 * FLOAT32 * 100
    )
    machines = Machines(peak=8 * cost.training_flops, share=0.5, within=4 * cost.parameters, between=1.0)
    assert plan.seconds(machines) == pytest.approx(1.0)
    low, high = plan.efficiency(machines, plan.ddp_bytes, 0.0)  # a second of exchange, two thirds of it hidden
    assert (low, high) == pytest.approx((1 / 2, 1 / (1 + 1 / 3)))
    low, high = plan.efficiency(machines, plan.ddp_bytes / 2, 0.5)  # a quarter of a second in each pass
    assert (low, high) == pytest.approx((1 / 1.5, 1.0))


def test_the_largest_block():
    network = UNet(UNetConfig(**SMALL))
    sizes = [sum(p.numel() for p in block.parameters()) for block in (*network.input_blocks, network.middle_block,
                                                                      *network.output_blocks)]  # fmt: skip
    assert largest_block(network) == max(sizes) < sum(sizes)


@pytest.mark.thorough
def test_the_plan_of_adm_256(capsys):
    plan = plan_of("adm-256", 8, 256, 4)
    assert plan.cost.parameters == 553_838_086 and plan.images == 8
    assert plan.ddp_bytes == pytest.approx(2 * 7 / 8 * 4 * 553_838_086)
    assert main([]) == 0
    table = capsys.readouterr().out
    assert "| GPUs | 8 | 64 | 512 |" in table and "| DDP: memory (GB) | 44.2 | 28.2 | 28.2 |" in table
    assert main(["--gpus", "8,64"]) == 2 and main(["--recipe", "adm-7"]) == 2
