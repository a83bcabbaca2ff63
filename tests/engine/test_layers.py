"""Layers with prepared weights, which of them can be prepared, and biases that a fused block adds later."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import TRUNK, randomised
from torch import Tensor, nn

from admg.engine import accelerate
from admg.engine.blocks import fused
from admg.engine.cpu.prepack import PrepackedConv, prepacked
from admg.engine.layers import PreparedLayer, can_be_prepared
from admg.models import UNet, UNetConfig, with_replaced
from admg.models.blocks import Conv1x1, ResBlock


class BiasLater(PreparedLayer):
    """As a convolution cast to half precision on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the bias is to be added later")

    def without_bias(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer._conv_forward(x, self.layer.weight, None), self.layer.bias


def block(scale_shift_norm: bool = True) -> ResBlock:
    torch.manual_seed(0)
    made = ResBlock(32, 64, 16, scale_shift_norm=scale_shift_norm)
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made


@pytest.mark.parametrize("scale_shift_norm", [True, False])
@pytest.mark.parametrize("later", ["in", "out", "skip", "in out", "out skip", "in out skip"])
@torch.no_grad()
def test_biases_that_are_split_off_are_added(scale_shift_norm, later):
    made = block(scale_shift_norm)
    x, emb = torch.randn(2, 32, 6, 6), torch.randn(1, 16)
    convs = {"in": made.in_layers[2], "out": made.out_layers[3], "skip": made.skip_connection}
    chosen = [convs[name] for name in later.split()]
    fast = with_replaced(made, lambda name, m: BiasLater(m) if m in chosen else fused(name, m))
    torch.testing.assert_close(fast(x, emb), made(x, emb), rtol=1e-4, atol=1e-4)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class LowRank(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def test_layers_with_their_own_forward_are_left_alone():
    kept = [nn.Conv2d(4, 4, 3), Conv1x1(4, 4), nn.Linear(4, 4)]
    assert all(can_be_prepared(layer) for layer in kept)
    hooked, double, inference = nn.Linear(4, 4), nn.Linear(4, 4).double(), nn.Linear(4, 4)
    hooked.register_forward_pre_hook(lambda *_: None)
    with torch.inference_mode():
        inference.weight = nn.Parameter(torch.ones(4, 4), requires_grad=False)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    left = [Standardised(4, 4, 3), LowRank(4, 4), hooked, double, inference, normed, nn.Conv1d(4, 4, 1)]
    assert not any(can_be_prepared(layer) for layer in left)


def test_changed_weights_are_noticed():
    layer = nn.Linear(3, 3)
    made = PreparedLayer(layer)
    assert made.is_current()
    with torch.no_grad():
        layer.weight.mul_(2)
    assert not made.is_current() and PreparedLayer(layer).is_current()
    made = PreparedLayer(layer)
    layer.weight.data = layer.weight.data.clone()  # which changes no version
    assert not made.is_current()
    made = PreparedLayer(layer)
    layer.bias = nn.Parameter(torch.zeros(3))
    assert not made.is_current()


def test_changes_that_torch_does_not_count_are_noticed():
    for change in (lambda p: p.data.mul_(2), lambda p: p.detach().numpy().__imul__(2), lambda p: p.data[-1].add_(1)):
        layer = nn.Conv2d(3, 5, 3)
        made, version = PreparedLayer(layer), layer.weight._version
        assert made.is_current()
        change(layer.weight)
        assert layer.weight._version == version and not made.is_current()
    transposed = nn.Linear(4, 6)
    transposed.weight = nn.Parameter(torch.randn(4, 6).T)  # not dense in the usual order: not looked at
    assert PreparedLayer(transposed).is_current()
    assert copy.deepcopy(PreparedLayer(nn.Linear(3, 3)))(torch.ones(1, 3)).shape == (1, 3)


def test_weights_are_prepacked_for_the_precision_that_is_computed_in():
    network = randomised(UNet(UNetConfig(**TRUNK)), 0)

    def dtypes(precision: str) -> tuple[torch.dtype, ...]:
        fast = accelerate(network, precision=precision)
        return fast._function().network.input_blocks[1][0].in_layers[2].dtypes

    assert dtypes("fp32") == (torch.float32,)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert torch.bfloat16 in dtypes("bf16")


def test_swapped_or_changed_weights_are_noticed_when_prepacked():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 8, 3, padding=1), torch.randn(2, 8, 8, 8)
    fast = prepacked(conv, torch.float32)
    assert isinstance(fast, PrepackedConv)
    zeros = {name: torch.zeros_like(p) for name, p in fast.named_parameters()}
    with torch.no_grad():
        fast(x)
        assert torch.func.functional_call(fast, zeros, x).abs().max() == 0
        conv.weight.zero_()
        torch.testing.assert_close(fast(x), conv.bias[None, :, None, None].expand(2, 8, 8, 8))
