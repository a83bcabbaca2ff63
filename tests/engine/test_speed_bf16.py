"""bf16 on a CPU: each optimisation against float64, with errors no larger than those of plain autocast."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TRUNK, by_formula, randomised
from torch import Tensor, nn

import admg
from admg import guidance
from admg.engine import accelerate, acceleration
from admg.engine import blocks as fused_blocks
from admg.engine import cpu as native
from admg.engine.cpu import norm as native_norm
from admg.engine.cpu import winograd
from admg.engine.cpu.prepack import PrepackedLayer, prepacked
from admg.engine.ops import group_norm
from admg.guidance.classifier import log_prob_gradient
from admg.models import ClassifierConfig, NoisyClassifier, UNet, UNetConfig, blocks
from admg.models.blocks import GroupNorm32
from admg.training import DiffusionTask, TrainConfig
from admg.training.step import Learner

CPU = torch.device("cpu")
FOUR_ROUNDINGS = 4**0.5 * 1.7e-3
"""The relative error, root mean square, of numbers that were rounded to bf16 four times."""


def in_bf16():
    return torch.autocast("cpu", torch.bfloat16)


T_QUANTILE = 5.9  # of Student's distribution with 5 degrees of freedom: 99.9 %


def error(value: Tensor, exact: Tensor) -> float:
    """Root mean square, relative to that of the exact values."""
    return ((value.double() - exact).norm() / exact.norm()).item()


@pytest.fixture
def plain(monkeypatch):
    """A context of the plain computation: one operation after the other, nothing prepared."""

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr(native_norm, "takes", lambda x: False)
            patch.setattr(fused_blocks, "FEW_TOKENS", 0)
            patch.setattr(acceleration, "prepacked", lambda layer, dtype: layer)
            yield

    return context


# -- norm, modulation and SiLU in one --------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 10.0])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_norm_with_modulation_and_silu_and_its_gradients(plain, rows, silu, mean):
    """Rounded up to four times in a row, where the plain computation rounds at every operation."""
    torch.manual_seed(0)
    norm = GroupNorm32(64)
    for p in norm.parameters():
        nn.init.normal_(p)
    x = (torch.randn(3, 64, 8, 12) + mean * torch.randn(64, 1, 1)).bfloat16().to(memory_format=torch.channels_last)
    given = list(torch.randn(2, rows, 64).bfloat16()) if rows else []
    weights = torch.randn(x.shape).bfloat16()

    def results(dtype: torch.dtype, function) -> list[Tensor]:
        """In float64, or with x and the modulation in bf16."""
        module = copy.deepcopy(norm).to(torch.float64 if dtype == torch.float64 else torch.float32)
        inputs = [i.to(dtype).clone(memory_format=torch.preserve_format).requires_grad_() for i in (x, *given)]
        y = function(module, *inputs)
        leaves = [*inputs, module.weight, module.bias]
        return [y.detach(), *torch.autograd.grad(y, leaves, weights.to(dtype))]

    exact = results(torch.float64, lambda module, x, scale=None, shift=None: by_formula(x, module, scale, shift, silu))
    ours = results(torch.bfloat16, lambda module, *inputs: group_norm(module, *inputs, silu=silu))
    with plain():
        theirs = results(torch.bfloat16, lambda module, *inputs: group_norm(module, *inputs, silu=silu))
    for got, usual, value in zip(ours, theirs, exact, strict=True):
        assert got.dtype == usual.dtype
        assert error(got, value) < max(FOUR_ROUNDINGS, 1.1 * error(usual, value))
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in ours[:2])
    with torch.no_grad():
        assert torch.equal(group_norm(norm, x, *given, silu=silu), ours[0])


def test_second_derivatives_of_the_norm():
    torch.manual_seed(0)
    norm, scale, shift = GroupNorm32(64), torch.randn(2, 64), torch.randn(2, 64)
    x = torch.randn(2, 64, 4, 4).bfloat16().to(memory_format=torch.channels_last)
    w = torch.randn(x.shape).bfloat16()

    def second(function, dtype: torch.dtype) -> Tensor:
        leaf = x.to(dtype).requires_grad_()
        first = torch.autograd.grad((function(leaf) * w.to(dtype)).sum(), leaf, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    got = second(lambda x: group_norm(norm, x, scale, shift, silu=True), torch.bfloat16)
    exact = copy.deepcopy(norm).double()
    expected = second(lambda x: by_formula(x, exact, scale.double(), shift.double(), True), torch.float64)
    assert error(got, expected) < 1e-2


def test_the_backward_pass_saves_less_memory():
    """Of a norm with its modulation and SiLU, the input alone, as it is."""
    norm, kept = GroupNorm32(64), []
    x = torch.randn(2, 64, 16, 16).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    scale, shift = torch.randn(2, 2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        group_norm(norm, x, scale, shift, silu=True)
    (image,) = [t for t in kept if t.numel() >= x.numel()]
    assert image.data_ptr() == x.data_ptr()


# -- layers with prepacked weights ----------------------------------------------------------------------------------

LAYERS = {
    "3x3": (lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 6, 6)),
    "1x1": (lambda: nn.Conv2d(12, 8, 1), (2, 12, 6, 6)),
    "one image": (lambda: nn.Conv2d(8, 12, 3, padding=1, bias=False), (8, 6, 6)),
    "wide": (lambda: nn.Conv2d(192, 192, 3, padding=1), (1, 192, 16, 16)),  # by Winograd's algorithm
    "wide, no multiple of 32": (lambda: nn.Conv2d(200, 200, 3, padding=1), (1, 200, 16, 16)),
    "linear": (lambda: nn.Linear(8, 12), (2, 8)),
    "pointwise": (lambda: blocks.Conv1x1(8, 12), (2, 5, 8)),
}


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_prepacked_layers_and_their_gradients(name, amx, monkeypatch):
    monkeypatch.setattr(winograd, "pays", lambda dtype: dtype == torch.float32 or (native.available() and not amx))
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    w = torch.randn_like(layer(x))

    def results(module: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        """The output, the gradient of sum(w y²), and the gradient of its square."""
        leaf = x.to(dtype).requires_grad_()
        y = module(leaf)
        first = torch.autograd.grad((w.to(dtype) * y * y).sum(), leaf, create_graph=True)[0]
        return [y.detach(), first.detach(), torch.autograd.grad(first.square().sum(), leaf)[0]]

    exact = results(twin := copy.deepcopy(layer).double(), torch.float64)
    leaf = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(twin(leaf).sum(), leaf)
    layer.requires_grad_(False)
    with in_bf16():
        usual = results(layer, torch.float32)
        fast = prepacked(layer, torch.bfloat16)
        assert isinstance(fast, PrepackedLayer) or not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        got = results(fast, torch.float32)
        assert fast(x.bfloat16()).dtype == fast(x).dtype == torch.bfloat16
        leaf = x.requires_grad_()
        outputs = [module(leaf) for module in (fast, layer)]
    ours, plain = (error(torch.autograd.grad(y.float().sum(), leaf)[0], slope) for y in outputs)  # outside of autocast
    assert ours < 1.2 * plain
    for ours, plain, value in zip(got, usual, exact, strict=True):
        assert error(ours, value) < min(2e-2, 1.2 * error(plain, value))


def test_layers_prepacked_for_bf16_still_compute_in_float32():
    """As the last layer, which autocast leaves in float32; and double precision stays what it is."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(144, 3))
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        expected = net(x)
        fast = nn.Sequential(*[prepacked(layer, torch.bfloat16) for layer in net])
        with in_bf16():
            with torch.autocast("cpu", enabled=False):
                torch.testing.assert_close(fast(x), expected)
            net[3].weight.zero_()
            torch.testing.assert_close(fast(x), net[3].bias.bfloat16().expand(2, 3))  # a changed weight counts
            net.double()
            assert fast(x.double()).dtype == torch.float64


def test_without_bf16_kernels_layers_are_prepacked_for_float32_only(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    conv, linear = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(6, 3)
    fast = prepacked(conv, torch.bfloat16)
    assert fast.dtypes == (torch.float32,) and prepacked(linear, torch.bfloat16) is linear
    with in_bf16(), torch.no_grad():
        assert linear(fast(torch.randn(2, 8, 6, 6))).dtype == torch.bfloat16


# -- attention -------------------------------------------------------------------------------------------------------


def test_attention_and_its_gradient():
    torch.manual_seed(0)
    given, w = (2 * torch.randn(3, 2, 2, 16, 32)).bfloat16(), torch.randn(2, 2, 16, 32).bfloat16()

    def results(function, dtype: torch.dtype) -> list[Tensor]:
        leaf = given.to(dtype).requires_grad_()
        y = function(*leaf)
        return [y.detach(), torch.autograd.grad(y, leaf, w.to(dtype))[0]]

    exact = results(F.scaled_dot_product_attention, torch.float64)
    with in_bf16():
        got, usual = (
            results(f, torch.bfloat16) for f in (fused_blocks.FusedAttention(), F.scaled_dot_product_attention)
        )
    for ours, plain, value in zip(got, usual, exact, strict=True):
        assert ours.dtype == torch.bfloat16 and error(ours, value) < 1.2 * error(plain, value)


# -- whole networks --------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_networks_and_gradients_in_bf16(plain):
    """Accelerated, as in sample(): on average over networks no further from float32 than plain autocast."""
    t, y = torch.tensor([50]), torch.arange(4)

    def results(seed: int, precision: str) -> list[Tensor]:
        network = randomised(UNet(UNetConfig(**TRUNK, num_classes=5)), seed)
        classifier = randomised(NoisyClassifier(ClassifierConfig(**TRUNK, num_classes=5)), seed + 100)
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        network, classifier = (accelerate(n, precision=precision) for n in (network, classifier))
        with torch.no_grad():
            prediction = network(x, t, y)
        return [prediction, log_prob_gradient(classifier, x, t, y)]

    seeds = range(6)
    exact, got = ([results(seed, precision) for seed in seeds] for precision in ("fp32", "bf16"))
    with plain():
        usual = [results(seed, "bf16") for seed in seeds]
    for kind in (0, 1):
        ours, theirs = (
            np.array([error(values[kind], value[kind].double()) for values, value in zip(side, exact, strict=True)])
            for side in (got, usual)
        )
        more = ours - theirs
        assert ours.min() > 0 and more.any()
        bound = T_QUANTILE * more.std(ddof=1) / len(seeds) ** 0.5
        assert more.mean() < bound < 0.6 * theirs.mean()


@pytest.mark.thorough
def test_images_of_a_seed_equal_the_plain_networks(plain, tiny_model, tiny_classifier):
    options = {"guide": guidance.ClassifierGuidance(tiny_classifier, 2.0), "steps": 5, "progress": False, "seed": 3}
    labels = [
        i % 5 for i in range(64)
    ]  # many, since this network magnifies rounding, of some images more than of others
    exact = admg.sample(tiny_model, labels, precision="fp32", **options).x.double()
    got = admg.sample(tiny_model, labels, precision="bf16", **options).x
    with plain():
        usual = admg.sample(tiny_model, labels, precision="bf16", **options).x
    assert error(got, exact) < 2 * error(usual, exact)


@pytest.mark.thorough
def test_gradients_of_training_in_bf16(plain, tiny_model):
    """Of all weights together, channels last as large batches are."""
    model = copy.deepcopy(tiny_model)
    model.network.requires_grad_(True)
    torch.manual_seed(0)
    x, y = torch.rand(256, 1, 8, 8) * 2 - 1, torch.arange(256) % 5

    def gradient(precision: str) -> Tensor:
        task = DiffusionTask(model, label_dropout=0.0)
        learner = Learner(task, TrainConfig(batch_size=len(x), precision=precision, compile="off"), CPU)
        drawn = x, y, *task.draw(x.shape, torch.Generator().manual_seed(2))
        learner.optimizer.zero_grad()
        learner.backward(drawn)
        return torch.cat([p.grad.flatten() for p in learner.network.parameters()])

    exact = gradient("fp32").double()
    got = gradient("bf16")
    with plain():
        usual = gradient("bf16")
    assert 0 < error(got, exact) < 1.2 * error(usual, exact)
