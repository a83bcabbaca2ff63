"""3x3 convolutions by the kernel in C: the numbers of a direct convolution, whatever the batch and the threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from helpers import randomised
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from admg.engine import accelerate, acceleration
from admg.engine import cpu as native
from admg.engine.cpu import winograd
from admg.engine.cpu.prepack import prepacked
from admg.engine.cpu.training import trainable
from admg.models import UNet, UNetConfig

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")

SHAPES = [
    (1, 32, 64, 1, 1),
    (1, 64, 32, 2, 3),
    (3, 32, 32, 5, 7),
    (2, 96, 64, 9, 8),
    (5, 64, 160, 4, 6),
    (2, 288, 32, 13, 9),
]
"""n, c, k, height, width"""
EPS = torch.finfo(torch.float32).eps  # of numbers about 1


def rms(t: Tensor) -> float:
    return t.double().square().mean().sqrt().item()


def example(n: int, c: int, k: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, c, height, width), torch.randn(k, c, 3, 3) / (9 * c) ** 0.5, torch.randn(k)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution(shape, m):
    """As exact as torch's direct one, within a factor, with a bias and without; even and odd sides."""
    x, weight, bias = example(*shape)
    u = winograd.transform_weight(weight, m)
    for b in (bias, None):
        exact = F.conv2d(x.double(), weight.double(), None if b is None else b.double(), padding=1)
        got = winograd.convolve(x, u, b)
        assert rms(got - exact) < 3 * rms(F.conv2d(x, weight, b, padding=1) - exact) + 2 * EPS
        assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flipped_weights_give_the_gradient_in_x(shape, m):
    x, weight, _ = example(*shape)
    dy = torch.randn(shape[0], shape[2], *shape[3:])
    exact = torch.nn.grad.conv2d_input(x.shape, weight.double(), dy.double(), padding=1)
    got = winograd.convolve(dy, winograd.transform_weight(weight, m, turned=True), None)
    assert rms(got - exact) < 3 * rms(torch.nn.grad.conv2d_input(x.shape, weight, dy, padding=1) - exact) + 2 * EPS


@pytest.mark.parametrize("m", [2, 4])
def test_results_depend_on_neither_batch_nor_threads(m):
    """Bit for bit: one image or many, few channels shared out or blocks of tiles."""
    x, weight, bias = example(40, 64, 96, 7, 10)
    u = winograd.transform_weight(weight, m)
    with threads(1):
        expected = winograd.convolve(x, u, bias)
        assert torch.equal(torch.cat([winograd.convolve(one, u, bias) for one in x.split(1)]), expected)
    for number in (2, 3):
        with threads(number):
            assert torch.equal(winograd.convolve(x, u, bias), expected)
            assert torch.equal(winograd.convolve(x[:1], u, bias), expected[:1])
            assert torch.equal(winograd.transform_weight(weight, m), u)


@pytest.mark.parametrize("turned", [False, True], ids=["output", "gradient"])
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("shape", [*SHAPES, (9, 64, 96, 16, 16)], ids=str)
def test_weights_that_are_transformed_on_the_way(shape, m, turned):
    """Bit for bit what packed ones give: any number of channels, several blocks of tiles, any number of threads."""
    x, weight, bias = example(*shape)
    if turned:
        x, bias = torch.randn(shape[0], shape[2], *shape[3:]), torch.randn(shape[1])
    for b in (bias, None):
        expected = winograd.convolve(x, winograd.transform_weight(weight, m, turned), b)
        for number in (1, 2, 3):
            with threads(number):
                assert torch.equal(winograd.convolve_unpacked(x, weight, b, m, turned), expected)
    laid_out = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(winograd.convolve_unpacked(x, laid_out, None, m, turned), expected)


@pytest.mark.parametrize("turned", [False, True], ids=["output", "gradient"])
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images_in_bf16(shape, m, turned):
    """Bit for bit what float32 gives, rounded once; infinities and what is no number included."""
    x, weight, bias = example(*shape)
    if turned:
        x, bias = torch.randn(shape[0], shape[2], *shape[3:]), torch.randn(shape[1])
    x[0, 0, 0, 0], x[-1, 1, -1, -1] = torch.inf, torch.nan
    x = x.bfloat16()
    u = winograd.transform_weight(weight, m, turned)
    for b in (bias, None):
        expected = winograd.convolve(x.float(), u, b).bfloat16()
        for number in (1, 2):
            with threads(number):
                for got in (winograd.convolve(x, u, b), winograd.convolve_unpacked(x, weight, b, m, turned)):
                    assert got.dtype == torch.bfloat16 and got.is_contiguous(memory_format=torch.channels_last)
                    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def asked_again() -> Iterator[None]:
    """Whether the kernels pay is found out in the test, and again after it."""
    yield
    winograd.pays.cache_clear()


def test_processors_on_which_bf16_is_convolved_in_float32(monkeypatch, asked_again):
    """Those without AMX, if the kernels are there; in float32 it does not matter."""
    for amx, kernels, faster in ((False, True, True), (True, True, False), (False, False, False)):
        winograd.pays.cache_clear()
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(winograd, "available", lambda kernels=kernels: kernels)
        assert winograd.pays(torch.bfloat16) is faster and winograd.pays(torch.float32)
        assert not winograd.pays(torch.float16) and not winograd.pays(torch.float64)
        assert acceleration.prefers_channels_last("bf16", torch.device("cpu")) is not faster
        assert acceleration.prefers_channels_last("bf16", torch.device("cpu"), accelerated=False)
        assert not acceleration.prefers_channels_last("fp32", torch.device("cpu"), accelerated=False)


@pytest.mark.parametrize("m", [2, 4])
def test_images_and_weights_in_any_layout(m):
    x, weight, bias = example(2, 64, 64, 6, 6)
    u = winograd.transform_weight(weight, m)
    expected = winograd.convolve(x, u, bias)
    strided = torch.zeros(2, 64, 6, 12)[..., ::2].copy_(x)
    for same in (
        strided,
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert torch.equal(winograd.convolve(same, u, bias), expected)
    laid_out = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(winograd.transform_weight(laid_out, m), u)
    assert torch.equal(winograd.convolve(x, u, torch.stack([bias, bias], 1)[:, 0]), expected)


@pytest.mark.parametrize("m", [2, 4])
def test_distant_pixels_have_no_influence(m):
    """Infinite ones and those that are no numbers spoil the tiles that see them, and no others."""
    x, weight, bias = example(2, 32, 32, 16, 16)
    u = winograd.transform_weight(weight, m)
    expected = winograd.convolve(x, u, bias)
    x[0, 3, 0, 0], x[0, 5, 1, 1] = torch.inf, torch.nan
    got = winograd.convolve(x, u, bias)
    assert not got[0, :, :2, :2].isfinite().any()
    assert torch.equal(got[1], expected[1]) and torch.equal(got[0, :, 5:, 5:], expected[0, :, 5:, 5:])


def test_the_choice_of_tiles():
    def tile(c: int, k: int, *image: int, kernel: int = 3) -> int:
        return winograd.tile(torch.empty(k, c, kernel, kernel, device="meta", dtype=torch.float32), torch.empty(image))

    assert tile(64, 64, 1, 64, 32, 32) == tile(64, 64, 1, 64, 2, 2) == tile(768, 768, 4, 768, 8, 8) == 4
    assert tile(768, 768, 1, 768, 8, 8) == tile(128, 128, 1, 128, 4, 4) == 2
    assert tile(768, 768, 1, 768, 4, 4) == tile(3, 64, 16, 3, 32, 32) == tile(64, 2, 16, 64, 32, 32) == 0
    assert tile(64, 64, 1, 64, 32, 32, kernel=1) == 0


def test_the_choice_of_tiles_in_bf16():
    """F(2x2, 3x3) is slower than oneDNN there."""
    for c, k, n, side, m in ((768, 768, 4, 8, 4), (768, 768, 1, 16, 4), (768, 768, 1, 8, 0), (128, 128, 1, 8, 4),
                             (128, 128, 1, 4, 0), (3, 64, 16, 32, 0)):  # fmt: skip
        weight = torch.empty(k, c, 3, 3, device="meta", dtype=torch.float32)
        assert winograd.tile(weight, torch.empty(n, c, side, side, dtype=torch.bfloat16)) == m


@pytest.mark.parametrize(("c", "k", "kernel"), [(64, 96, 3), (192, 256, 3), (192, 256, 1)])
def test_derivatives_of_any_order(c, k, kernel):
    torch.manual_seed(0)
    conv = nn.Conv2d(c, k, kernel, padding=kernel // 2)
    x, w = torch.randn(2, c, 11, 12), torch.randn(2, k, 11, 12)
    assert winograd.tile(conv.weight, x) == (4 if kernel == 3 else 0)
    assert winograd.is_kept(conv.weight) == (c == 64)

    def results(layer: nn.Module, dtype: torch.dtype) -> list[Tensor]:
        """Of sum(w y³): the gradient, that of its square, and that of the square of this."""
        leaf = x.to(dtype).requires_grad_()
        value, found = (w.to(dtype) * layer(leaf) ** 3).sum(), []
        for _ in range(3):
            found.append(torch.autograd.grad(value, leaf, create_graph=True)[0])
            value = found[-1].square().sum()
        return found

    got = results(prepacked(conv, torch.float32), torch.float32)
    for value, expected in zip(got, results(conv.double(), torch.float64), strict=True):
        assert (value - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_fused_network_equals_the_plain_one():
    config = UNetConfig(
        image_size=16, channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), head_channels=32
    )
    torch.manual_seed(0)
    network, x, t = randomised(UNet(config), 0), torch.randn(2, 3, 16, 16), torch.tensor([5])
    with torch.no_grad():
        expected = network(x, t)
        got = accelerate(network, precision="fp32")(x, t)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "kernels", lambda: None)
            without = accelerate(network, precision="fp32")(x, t)
    for value in (got, without):
        assert (value - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not torch.equal(got, without)


# -- prepared layers -------------------------------------------------------------------------------------------------


def test_one_layout_for_batches_of_one_size():
    """Where batches of other sizes want another, it takes the place of the first."""
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 96, 3, padding=1).requires_grad_(False)
    x = torch.randn(16, 128, 4, 4)
    expected = conv(x)
    fast = prepacked(conv, torch.float32)
    there, _ = fast.layouts[torch.float32]
    for n, layout in ((1, 2), (16, 4), (1, 2)):
        assert (fast(x[:n]) - expected[:n]).abs().max() < 1e-5
        assert there.kept[0] == layout


def test_large_weights_have_the_layout_of_onednn_for_one_small_image_and_no_other():
    torch.manual_seed(0)
    conv = nn.Conv2d(288, 256, 3, padding=1).requires_grad_(False)
    x = torch.randn(16, 288, 4, 4)
    expected = conv(x)
    fast = prepacked(conv, torch.float32)
    there, _ = fast.layouts[torch.float32]
    for n in (1, 4, 16, 1):
        assert (fast(x[:n]) - expected[:n]).abs().max() < 1e-5
        assert there.kept[0] == (1, 288, 4, 4)


@pytest.mark.parametrize("kernel", [1, 3])
def test_large_weights_are_not_copied(kernel):
    torch.manual_seed(0)
    conv = nn.Conv2d(288, 256, kernel, padding=kernel // 2)
    x = torch.randn(4, 288, 8, 8, requires_grad=True)
    fast = prepacked(conv, torch.float32)
    (got,) = torch.autograd.grad(fast(x).square().sum(), x)
    (expected,) = torch.autograd.grad(conv(x).square().sum(), x)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    assert [layout.kept for layout in fast.layouts[torch.float32]] == [None, None]


PREPARED = {"prepacked": lambda conv: prepacked(conv, torch.float32), "trainable": trainable}


@pytest.mark.parametrize("k", [64, 576, 3])  # by winograd.c, with packed weights and without, by narrow.c
@pytest.mark.parametrize("prepare", PREPARED.values(), ids=PREPARED)
def test_mismatches_are_refused(prepare, k):
    conv = nn.Conv2d(64, k, 3, padding=1)
    fast = prepare(conv)
    assert fast(torch.empty(0, 64, 8, 8)).shape == (0, k, 8, 8)
    for channels in (3, 32, 128, 4096):
        with pytest.raises(RuntimeError, match=f"to have 64 channels, but got {channels}"):
            fast(torch.randn(2, channels, 8, 8))
    assert fast(torch.empty(2, 64, 8, 8, device="meta")).is_meta
    for bias in (torch.zeros(k, dtype=torch.bfloat16), torch.zeros(k, dtype=torch.float64)):
        conv.bias = nn.Parameter(bias)
        with pytest.raises(RuntimeError, match="should be the same"):
            prepare(conv)(torch.randn(2, 64, 8, 8))


@pytest.mark.parametrize("prepare", PREPARED.values(), ids=PREPARED)
def test_defaults_of_devices_and_formats_are_not_for_scratch(prepare):
    conv, x = nn.Conv2d(64, 64, 3, padding=1), torch.randn(8, 64, 16, 16, requires_grad=True)
    expected, fast = conv(x), prepare(conv)
    with torch.device("meta"):
        torch.set_default_dtype(torch.float16)
        try:
            got = fast(x)
            got.sum().backward()
        finally:
            torch.set_default_dtype(torch.float32)
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("prepare", PREPARED.values(), ids=PREPARED)
def test_a_trace_contains_the_computation(prepare):
    conv, x, other = nn.Conv2d(64, 64, 3, padding=1), torch.randn(2, 64, 8, 8), torch.randn(2, 64, 8, 8)
    traced = make_fx(prepare(conv))(x)
    assert (traced(other) - conv(other)).abs().max() < 1e-5
