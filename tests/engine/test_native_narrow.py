"""3x3 convolutions to a few channels by the kernel in C."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import up_to_second_derivatives
from torch import nn

from admg.engine import cpu as native
from admg.engine.cpu import narrow
from admg.engine.cpu.prepack import prepacked

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")


@pytest.mark.parametrize("shape", [(1, 32, 1, 1, 1), (3, 64, 2, 5, 7), (2, 96, 6, 8, 16), (5, 192, 3, 4, 9)], ids=str)
def test_convolution(shape):
    """No less exact than torch's; with a bias and without; whatever the layout, the batch and the threads."""
    n, c, k, height, width = shape
    torch.manual_seed(0)
    x, weight, bias = torch.randn(n, c, height, width), torch.randn(k, c, 3, 3) / (9 * c) ** 0.5, torch.randn(k)
    assert narrow.pays(weight)
    arranged = narrow.reorder_weight(weight)
    for b in (bias, None):
        exact = F.conv2d(x.double(), weight.double(), None if b is None else b.double(), padding=1)
        got = narrow.convolve(x, arranged, b)
        bound = 2 * (F.conv2d(x, weight, b, padding=1) - exact).abs().max() + torch.finfo(torch.float32).eps
        assert (got - exact).abs().max() < bound
    assert got.is_contiguous(memory_format=torch.channels_last)
    alone = [narrow.convolve(one.contiguous(memory_format=torch.channels_last), arranged, None) for one in x.split(1)]
    assert torch.equal(torch.cat(alone), got)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    assert torch.equal(narrow.convolve(x, arranged, None), got)
    torch.set_num_threads(threads)


def test_which_convolutions_are_narrow():
    assert narrow.pays(torch.empty(6, 32, 3, 3)) and not narrow.pays(torch.empty(8, 32, 3, 3))
    assert not narrow.pays(torch.empty(2, 32, 1, 1)) and not narrow.pays(torch.empty(2, 24, 3, 3))


@pytest.mark.parametrize("c_in,c_out", [(64, 2), (3, 64)])  # few channels in the output, or in the gradient
def test_prepacked_networks_and_their_gradients(c_in, c_out):
    torch.manual_seed(0)
    conv = nn.Conv2d(c_in, c_out, 3, padding=1)
    x, w = torch.randn(2, c_in, 9, 10), torch.randn(2, c_out, 9, 10)

    got = up_to_second_derivatives(prepacked(conv, torch.float32), x, w, torch.float32)
    for value, expected in zip(got, up_to_second_derivatives(conv, x, w, torch.float64), strict=True):
        assert (value - expected).abs().max() < 1e-5 * expected.abs().max()
