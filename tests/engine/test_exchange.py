"""Layers whose forward is exchanged for a while, and biases that a convolution leaves to what follows it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import TRUNK, randomised
from torch import Tensor, nn

from admg.engine.compiling import fast
from admg.engine.cpu.packing import packed
from admg.engine.exchange import Exchanged, exchanged
from admg.models import UNet, UNetConfig
from admg.models.blocks import Conv1x1, ResBlock, exchangeable


class WithoutBias(Exchanged):
    """As a halved convolution on a GPU."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.plain(x)

    def apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer._conv_forward(x, self.layer.weight, None), self.layer.bias


def block(scale_shift_norm: bool = True) -> ResBlock:
    torch.manual_seed(0)
    made = ResBlock(32, 64, 16, scale_shift_norm=scale_shift_norm)
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made


@pytest.mark.parametrize("scale_shift_norm", [True, False])
@pytest.mark.parametrize("apart", ["in", "out", "skip", "in out", "out skip", "in out skip"])
@torch.no_grad()
def test_biases_that_are_left_are_added(scale_shift_norm, apart):
    made = block(scale_shift_norm)
    x, emb = torch.randn(2, 32, 6, 6), torch.randn(1, 16)
    expected = made(x, emb)
    convs = {"in": made.in_layers[2], "out": made.out_layers[3], "skip": made.skip_connection}
    with exchanged({convs[name]: WithoutBias(convs[name]) for name in apart.split()}):
        torch.testing.assert_close(made(x, emb), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hook", ["forward", "forward_pre", "full_backward"])
def test_a_layer_that_is_heard_adds_its_own_bias(hook):
    made, heard = block(), []
    conv = made.out_layers[3]
    getattr(conv, f"register_{hook}_hook")(lambda *_: heard.append(1))
    with exchanged({conv: WithoutBias(conv)}):
        made(torch.randn(2, 32, 6, 6, requires_grad=True), torch.randn(1, 16)).sum().backward()
    assert heard == [1]


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class LowRank(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def test_layers_that_compute_in_their_own_way_are_left_alone():
    kept = [nn.Conv2d(4, 4, 3), Conv1x1(4, 4), nn.Linear(4, 4)]
    assert all(exchangeable(layer) for layer in kept)
    hooked, double, inference = nn.Linear(4, 4), nn.Linear(4, 4).double(), nn.Linear(4, 4)
    hooked.register_forward_pre_hook(lambda *_: None)
    with torch.inference_mode():
        inference.weight = nn.Parameter(torch.ones(4, 4), requires_grad=False)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    left = [Standardised(4, 4, 3), LowRank(4, 4), hooked, double, inference, normed, nn.Conv1d(4, 4, 1)]
    assert not any(exchangeable(layer) for layer in left)


def test_what_was_exchanged_first_stays():
    layer = nn.Linear(3, 3)
    first, second = (lambda x, k=k: x + k for k in (1, 2))
    with exchanged({layer: first}):
        with exchanged({layer: second}):
            assert layer(torch.zeros(1)) == 1
        assert layer(torch.zeros(1)) == 1
    assert "forward" not in vars(layer)


def test_changed_weights_are_noticed():
    layer = nn.Linear(3, 3)
    made = Exchanged(layer)
    assert made.is_current()
    with torch.no_grad():
        layer.weight.mul_(2)
    assert not made.is_current() and Exchanged(layer).is_current()
    made = Exchanged(layer)
    layer.bias = nn.Parameter(torch.zeros(3))
    assert not made.is_current()


def test_fast_lays_out_for_the_precision_that_is_computed_in():
    network = randomised(UNet(UNetConfig(**TRUNK)), 0)
    conv = network.input_blocks[1][0].in_layers[2]
    with fast([network], torch.device("cpu"), precision="fp32"):
        assert conv.forward.dtypes == (torch.float32,)
        with fast([network], torch.device("cpu"), precision="fp32"):
            assert conv.forward.dtypes == (torch.float32,)
        assert "forward" in vars(conv)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with fast([network], torch.device("cpu"), precision="bf16"):
            assert torch.bfloat16 in conv.forward.dtypes
    assert "forward" not in vars(conv)


def test_a_copy_is_without_it():
    layer = nn.Conv2d(32, 32, 3, padding=1)
    with packed(layer):
        clone = copy.deepcopy(layer)
    x = torch.randn(1, 32, 8, 8)
    torch.testing.assert_close(clone(x), F.conv2d(x, layer.weight, layer.bias, padding=1), rtol=1e-4, atol=1e-4)
