"""benchmarks/speed.py: its sides compute the same results, and its measurements and errors are right."""

from __future__ import annotations

import json
import re
import sys

import cases
import numpy as np
import pytest
import speed
import torch
from torch import nn
from turns import Memory

import admg
from admg.models import NoisyClassifier, UNet
from admg.models.blocks import AttentionBlock, AttentionPool, Conv1x1

TINY = cases.Setting("tiny", batch=2)


@pytest.mark.slow
def test_the_table_of_a_tiny_model(tmp_path, capsys):
    options = [
        "--models",
        "tiny",
        "--batch",
        "2",
        "--threads",
        "1",
        "--rounds",
        "2",
        "--seconds",
        "0",
        "--device",
        "cpu",
    ]
    options += ["--precision", "fp32", "--compile", "off", "--parts", "forward,gradient,training"]
    assert speed.main([*options, "--json", str(tmp_path / "speed.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("1 threads" in line and f"torch {torch.__version__}" in line for line in lines)
    table = [line.strip("| ").split(" | ") for line in lines if re.match(r"\| (forward|gradient|training) ", line)]
    sides = ["admg", "diffusers"]
    assert [cells[:2] for cells in table] == [
        [part, side] for part in ("forward", "gradient", "training") for side in sides
    ]
    assert table[3][3] == "no noisy classifier and no guidance"
    for cells in (table[1], table[5]):
        ratio, least, largest = (float(n) for n in re.findall(r"[\d.]+", cells[3]))
        assert 0 < least <= ratio <= largest and float(cells[2]) > 0

    content = json.loads((tmp_path / "speed.json").read_text())
    (model,) = content["models"]
    assert model["setting"]["model"] == "tiny" and "torch" in content["machine"]
    rows = {(row["part"], row["side"]): row for row in model["rows"]}
    for part in ("forward", "training"):
        assert rows[part, "diffusers"]["difference"] < 1e-4
        assert len(rows[part, "admg"]["seconds"]) == 2 and min(rows[part, "admg"]["seconds"]) > 0
    if sys.platform == "linux":
        assert rows["training", "admg"]["memory"] > 1e6


class Told:
    """A fake worker with a given result and given times of its measurements."""

    def __init__(self, side: str, result: float, seconds: list[float]):
        self.side, self.result, self.list = side, np.array([1.0, result]), iter([9.0, *seconds])  # 9.0: warm-up

    def prepare(self, part):
        return self.result

    def seconds(self, at_least):
        return next(self.list)

    def matmul(self, dtype):
        return 4e9

    def peak(self):
        return 5_000_000

    def finish(self):
        pass


def test_ratios_are_those_of_each_round():
    """In the second round the machine is slower for both sides."""
    admg, other = Told("admg", 2.0, [1.0, 3.0, 1.0]), Told("reference", 2.0, [2.0, 4.5, 1.0])
    rows = list(speed.measure_part("step", [admg, other], TINY, 3, 0.0))
    ours, theirs = (speed.line(row, rows[0], 2_000_000_000) for row in rows)
    assert ours == "| step | admg | 1 |  | 5 | 2 | 50 % |  |"
    assert theirs == "| step | reference | 2 | 1.50 (1.00 to 2.00) | 5 | 1 | 25 % | 0.0e+00 |"
    # 250 steps of guided-diffusion, compared with 10 of admg
    assert speed.good_sample({"step": rows}).endswith(": 37.5 (25.0 to 50.0) times as fast, from the time per step")


def test_sides_that_compute_something_else_are_not_timed():
    with pytest.raises(ValueError, match=r"tiny, step: reference computes a different result \(difference 0\.045\)"):
        list(speed.measure_part("step", [Told("admg", 2.0, []), Told("reference", 2.1, [])], TINY, 3, 0.0))
    assert speed.difference(np.array([1.0, -4.0, 2.0]), np.array([1.0])) == 0.0
    assert speed.difference(np.array([1.0, -4.0, 2.0]), np.array([2.0, -4.0, 2.0])) == pytest.approx(21**-0.5)


def by_hand(network: nn.Module, *arguments: torch.Tensor) -> int:
    """Return the FLOPs of a forward pass from the shapes of its layers: 2 per product, and 4 T T' C for attention."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        x = inputs[0]
        if isinstance(layer, nn.Conv2d):
            total += 2 * output.numel() * layer.weight[0].numel()
        elif isinstance(layer, Conv1x1 | nn.Linear):
            total += (
                2 * output.numel() * layer.in_features
                if isinstance(layer, nn.Linear)
                else 2 * output.numel() * layer.in_channels
            )
        elif isinstance(layer, AttentionBlock):
            n, c, h, w = x.shape
            total += 4 * n * (h * w) ** 2 * c
        elif isinstance(layer, AttentionPool):
            n, c, h, w = x.shape
            total += 4 * n * (h * w + 1) * c  # the only query is the mean pixel

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    with torch.no_grad():
        network(*arguments)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.slow
def test_flops_are_those_of_the_layers():
    """The gradient with respect to x costs as much as the convolution, and so does that of the weights in training."""
    (unet, _), (encoder, _) = cases.architectures("tiny")
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([500]), torch.tensor([0, 1])
    forward, classifier = by_hand(UNet(unet), x, t, y), by_hand(NoisyClassifier(encoder), x, t)
    assert cases.flops(TINY, "forward") == pytest.approx(forward, rel=1e-3)
    gradient = cases.flops(TINY, "gradient")
    assert gradient == pytest.approx(2 * classifier, rel=0.03)  # attention's backward pass costs more than that
    assert cases.flops(TINY, "step") == cases.flops(TINY, "forward") + gradient
    assert cases.flops(TINY, "training") == pytest.approx(3 * forward, rel=0.03)


@pytest.mark.thorough
def test_models_are_the_same_in_every_process_and_nowhere_zero():
    a, b = (cases.build(TINY) for _ in range(2))
    for part in ("model", "classifier"):
        pairs = [getattr(case, part).network.named_parameters() for case in (a, b)]
        for (name, p), (_, q) in zip(*pairs, strict=True):
            assert torch.equal(p, q) and p.abs().max() > 0, name
    assert torch.equal(a.x, b.x) and a.y.tolist() == [0, 1]


def test_the_demo_model_is_the_shipped_one_with_the_process_of_the_other_sides():
    case = cases.build(cases.Setting("fashion-mnist", batch=1))
    shipped = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    for part, original in zip((case.model, case.classifier), shipped, strict=True):
        assert part.network.config == original.network.config
        assert (part.config.predict, part.config.noise_schedule) == ("eps", "linear")


@pytest.mark.thorough
def test_memory_is_the_most_since_it_began():
    memory, found = Memory("cpu"), []
    if memory.before is None:  # the system does not report it
        assert memory.peak() is None
        return
    for megabytes in (200, 20):
        memory.begin()
        torch.ones(megabytes * 250_000)
        found.append(memory.peak() / 1e6)
    assert 190 < found[0] < 300 and found[1] < 100


@pytest.mark.parametrize(
    "options,message",
    [
        (["--models", "adm-65"], "--models: unknown 'adm-65', expected one of fashion-mnist, adm-64"),
        (["--parts", "forward,sleep"], "--parts: unknown 'sleep', expected one of forward, gradient, step, training"),
        (["--reference", "/nowhere"], "--reference /nowhere: not a checkout of guided-diffusion"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--device", "gpu"], "device 'gpu' cannot be used"),
        (["--precision", "fp8"], "precision must be one of auto, fp32"),
        (["--compile", "yes"], "unknown compile mode 'yes': auto, on, off"),
    ],
)
def test_bad_input(options, message, capsys):
    assert speed.main(["--models", "tiny", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
