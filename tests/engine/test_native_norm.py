"""The kernels for norms and for resampling, against float64; and neither threads nor the batch change a bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import by_formula
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from admg.engine import cpu as native
from admg.engine import ops
from admg.engine.cpu import norm as native_norm
from admg.engine.ops import group_norm
from admg.models.blocks import GroupNorm32

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not built")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
both_dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
SHAPES = [(1, 32, 3, 5), (3, 64, 7, 9), (2, 96, 33, 21), (16, 128, 4, 4), (1, 192, 40, 24), (2, 1056, 5, 5)]


def images(*shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.0) -> Tensor:
    return (torch.randn(shape) + mean).to(dtype).to(memory_format=torch.channels_last)


def error(value: Tensor, exact: Tensor) -> float:
    """Root mean square, relative to that of the exact values."""
    return ((value.double() - exact).norm() / exact.norm()).item()


def module(channels: int) -> GroupNorm32:
    made = GroupNorm32(channels)
    for p in made.parameters():
        nn.init.normal_(p)
    return made


def output_and_gradients(function, module: nn.Module, given: list[Tensor], dy: Tensor) -> list[Tensor]:
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in given]
    y = function(module, *leaves)
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *module.parameters()], dy.to(y.dtype))]


@both_dtypes
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("rows", ["none", "one", "each"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_and_its_gradients(shape, rows, silu, dtype):
    torch.manual_seed(0)
    norm, x, dy = module(shape[1]), images(*shape, dtype=dtype, mean=0.5), images(*shape, dtype=dtype)
    count = {"none": 0, "one": 1, "each": len(x)}[rows]
    given = [x, *(torch.randn(count, 2 * shape[1]).to(dtype).chunk(2, dim=1) if count else ())]

    def exactly(module, x, scale=None, shift=None):
        return by_formula(x, module, scale, shift, silu)

    got = output_and_gradients(lambda module, *t: group_norm(module, *t, silu=silu), norm, given, dy)
    exact = output_and_gradients(exactly, norm.double(), [t.double() for t in given], dy)
    rounding = 2e-6 if dtype == torch.float32 else 3e-3
    for value, expected in zip(got, exact, strict=True):
        assert error(value, expected) < rounding
    assert all(t.dtype == dtype and t.is_contiguous(memory_format=torch.channels_last) for t in got[:2])


def test_sums_are_more_accurate_than_torch():
    """Of one large image; and of one whose mean is 300 deviations, where float32 leaves five digits of x - mean."""
    torch.manual_seed(0)
    for x, most in ((images(1, 32, 256, 256, mean=1.0), 1e-7), (images(2, 64, 32, 32, mean=300.0), 3e-5)):
        exact = F.group_norm(x.double(), 32)
        theirs, ours = error(F.group_norm(x, 32), exact), error(group_norm(GroupNorm32(x.shape[1]), x).detach(), exact)
        assert ours < most and ours < 1.1 * theirs


@both_dtypes
def test_silu_over_the_whole_range(dtype):
    """SiLU(z) for x = 0 and z the shift: to two roundings, and for the largest numbers neither NaN nor overflow."""
    sizes = torch.logspace(-40, 38.5, 1 << 12, dtype=torch.float64)
    z = torch.cat([sizes, -sizes, torch.linspace(-100, 100, 1 << 14, dtype=torch.float64)]).float().view(-1, 1024)
    x = torch.zeros(len(z), 1024, 1, 2, dtype=dtype).to(memory_format=torch.channels_last)
    y = native_norm.normalised(x, torch.ones(1024), torch.zeros(1024), torch.zeros_like(z), z, 32, 1e-5, True)[
        :, :, 0, 0
    ]
    exact = F.silu(z.double())
    shown = exact.abs() > 1e-33  # below are the rests of large negative z
    relative = ((y.double() - exact) / exact)[shown].abs().max().item()
    assert relative < (3e-7 if dtype == torch.float32 else 2**-8)
    assert y.isfinite().all() and (y - exact)[~shown].abs().max() < 1e-33
    assert (y[z < -90].abs() < 1e-33).all() and torch.equal(y[z > 20], z[z > 20].to(dtype))


@both_dtypes
def test_derivatives_of_silu_over_the_whole_range(dtype):
    """As dshift, for x = 0 and z the shift."""
    z = torch.linspace(-110, 110, 32 * 64).view(64, 32).requires_grad_()
    x = torch.zeros(64, 32, 1, 2, dtype=dtype).to(memory_format=torch.channels_last)
    y = native_norm.normalised(x, torch.ones(32), torch.zeros(32), torch.zeros_like(z), z, 32, 1e-5, True)
    got = torch.autograd.grad(y.float().sum() / 2, z)[0]
    exact = torch.autograd.grad(F.silu(z.double()).sum(), z)[0]
    assert got.isfinite().all() and (got - exact).abs().max() < (1e-6 if dtype == torch.float32 else 2e-5)


@both_dtypes
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_non_finite_values_are_shown(bad, dtype):
    x = images(2, 64, 5, 7, dtype=dtype)
    x[1, 5, 2, 3] = bad
    y = group_norm(GroupNorm32(64), x, silu=True)
    assert y[1, 4:6].isnan().all()  # its group
    y[1, 4:6] = 0
    assert y.isfinite().all()


def test_nan_stays_nan_in_bf16():
    """One whose bits are all ones, which rounding would carry over to zero."""
    weight = torch.full((64,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    y = native_norm.normalised(
        images(2, 64, 3, 3, dtype=torch.bfloat16), weight, torch.zeros(64), None, None, 32, 1e-5, False
    )
    assert y.isnan().all()


def test_bf16_is_rounded_to_the_nearest_even():
    """Of x = ±1 in each group, y = ±weight; with weights halfway between neighbours."""
    x = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2).expand(1, 64, 1, 2).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    weight = (1 + torch.arange(64) / 256) * 2.0 ** torch.arange(-32, 32)  # every second one is halfway
    y = native_norm.normalised(x, weight, torch.zeros(64), None, None, 32, 0.0, False)
    assert torch.equal(y[0, :, 0, 0], weight.bfloat16()) and torch.equal(y[0, :, 0, 1], -weight.bfloat16())


@both_dtypes
@pytest.mark.parametrize("shape", [(16, 64, 9, 15), (5, 96, 24, 31), (3, 32, 32, 40), (1, 64, 33, 33)], ids=str)
def test_threads_and_batch_do_not_change_a_bit(shape, dtype):
    torch.manual_seed(0)
    norm, x, dy = module(shape[1]), images(*shape, dtype=dtype), images(*shape, dtype=dtype)
    given = list(torch.randn(2, len(x), shape[1]))

    def results(threads: int, part: slice) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            leaves = [t[part].requires_grad_() for t in (x, *given)]
            y = group_norm(norm, *leaves, silu=True)
            return [y, *torch.autograd.grad(y, leaves, dy[part])]
        finally:
            torch.set_num_threads(before)

    whole = results(1, slice(None))
    for threads in (2, 3):
        assert all(map(torch.equal, results(threads, slice(None)), whole))
    for i in (0, len(x) - 1):
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(results(2, slice(i, i + 1)), whole))


def test_unneeded_gradients_are_not_computed(monkeypatch):
    norm, x, calls = GroupNorm32(64), images(2, 64, 4, 4).requires_grad_(), []
    call = native_norm.call
    monkeypatch.setattr(native_norm, "call", lambda name, *args: calls.append((name, args)) or call(name, *args))
    for frozen in (True, False):
        group_norm(norm, x, *torch.randn(2, 1, 64), silu=True).sum().backward()
        norm.requires_grad_(False)
        assert (calls[-1][0], [t is None for t in calls[-1][1][3:5]]) == ("norm_backward", [not frozen] * 2)
    with torch.no_grad():
        group_norm(norm, x)
    assert calls[-1][0] == "norm_forward"


@both_dtypes
@pytest.mark.parametrize("leaf", ["x", "scale", "weight"])
def test_second_derivatives(leaf, dtype):
    """Of |d/d leaf sum(y w)|², with respect to x."""
    torch.manual_seed(0)
    norm, x, w = module(64), images(2, 64, 4, 5, dtype=dtype), images(2, 64, 4, 5, dtype=dtype)
    scale, shift = torch.randn(2, 1, 64).to(dtype)

    def second(function, module: nn.Module, of: torch.dtype) -> Tensor:
        leaves = {"x": x, "scale": scale, "shift": shift}
        leaves = {name: t.to(of).requires_grad_() for name, t in leaves.items()}
        of_leaf = module.weight if leaf == "weight" else leaves[leaf]
        y = function(module, *leaves.values())
        first = torch.autograd.grad((y * w.to(of)).sum(), of_leaf, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), leaves["x"])[0]

    got = second(lambda module, *t: group_norm(module, *t, silu=True), norm, dtype)
    exact = second(lambda module, x, *t: by_formula(x, module, *t, True), norm.double(), torch.float64)
    assert error(got, exact) < (1e-4 if dtype == torch.float32 else 2e-2)


@both_dtypes
def test_without_kernels_torch_computes_the_same(monkeypatch, dtype):
    torch.manual_seed(0)
    norm, x, dy = module(64), images(3, 64, 6, 7, dtype=dtype), images(3, 64, 6, 7, dtype=dtype)
    given = [x, *torch.randn(2, 3, 64)]
    results = []
    for _ in range(2):
        results.append(output_and_gradients(lambda module, *t: group_norm(module, *t, silu=True), norm, given, dy))
        results[-1].append(ops.resampled(x, up=False))
        monkeypatch.setattr(native, "kernels", lambda: None)
        monkeypatch.setattr(native_norm, "call", None)
    for ours, theirs in zip(*results, strict=True):
        assert error(ours, theirs.double()) < (1e-6 if dtype == torch.float32 else 5e-3)


# -- resampling ------------------------------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("shape", [(3, 32, 8, 6), (2, 96, 7, 5), (1, 48, 2, 3)], ids=str)
def test_resampling_and_its_gradients(shape, up, dtype):
    """The output, the gradient of sum(w y²), and the gradient of its square, for odd sizes too."""
    torch.manual_seed(0)
    x = images(*shape, dtype=dtype)

    def plain(x: Tensor, up: bool) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest") if up else F.avg_pool2d(x, 2)

    w = images(*plain(x, up).shape, dtype=dtype)

    def results(function, of: torch.dtype) -> list[Tensor]:
        leaf = x.to(of).requires_grad_()
        y = function(leaf, up)
        first = torch.autograd.grad((w.to(of) * y * y).sum(), leaf, create_graph=True)[0]
        return [y.detach(), first.detach(), torch.autograd.grad(first.square().sum(), leaf)[0]]

    assert native_norm.resamples(x)
    got, exact = results(ops.resampled, dtype), results(plain, torch.float64)
    for value, expected in zip(got, exact, strict=True):
        assert value.dtype == dtype and error(value, expected) < (1e-6 if dtype == torch.float32 else 1e-2)
    assert got[0].is_contiguous(memory_format=torch.channels_last)


# -- what is not for the kernels -------------------------------------------------------------------------------------


def test_scale_and_shift_that_differ_in_format_or_rows():
    torch.manual_seed(0)
    norm, x, row, rows = module(64), images(3, 64, 4, 5), torch.randn(1, 64), torch.randn(3, 64)
    for scale, shift in ((rows.bfloat16(), rows), (rows, rows.bfloat16()), (row, rows), (rows, row), (row, row)):
        exact = by_formula(x.double(), copy.deepcopy(norm).double(), scale.double(), shift.double(), True)
        assert error(group_norm(norm, x, scale, shift, silu=True).detach(), exact.detach()) < 2e-6


def test_mismatches_are_refused():
    norm, x = module(64), images(3, 64, 4, 4)
    for other in (images(2, 32, 4, 4), images(2, 40, 4, 4), images(2, 96, 4, 4)):
        with pytest.raises(RuntimeError, match="channels"):
            group_norm(norm, other)
    for rows in ((2, 64), (3, 32)):
        with pytest.raises(RuntimeError, match="must match"):
            group_norm(norm, x, *torch.randn(2, *rows))
    with pytest.raises(RuntimeError, match="device"):
        group_norm(norm.to("meta"), x)
    with pytest.raises(RuntimeError, match="too small"):
        ops.resampled(images(2, 32, 1, 5), up=False)


def test_a_trace_contains_the_computation():
    norm, x, other = module(64).requires_grad_(False), images(2, 64, 4, 4), images(2, 64, 4, 4)

    def function(x: Tensor) -> Tensor:
        return ops.resampled(group_norm(norm, x, silu=True), up=False)

    for traced in (torch.jit.trace(function, x, check_trace=False), make_fx(function)(x)):
        assert error(traced(other), function(other).double()) < 1e-6
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert function(torch.empty(2, 64, 4, 4).to(memory_format=torch.channels_last)).shape == (2, 64, 2, 2)


def test_lazily_negated_images():
    norm, x = module(64), images(2, 64, 4, 4)
    assert torch.allclose(group_norm(norm, torch._neg_view(x)), group_norm(norm, -x), atol=1e-5)


def test_the_gradient_of_images_saved_in_another_layout():
    norm, x = module(64), images(2, 64, 4, 5).requires_grad_()
    dy, found = torch.randn_like(x), []
    for layout in (torch.channels_last, torch.contiguous_format):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t, lambda t, layout=layout: t.clone(memory_format=layout) if t.ndim == 4 else t
        ):
            found.append(torch.autograd.grad(group_norm(norm, x, silu=True), x, dy)[0])
    assert torch.equal(*found)


def test_transforms_of_functions():
    """Which know what torch computes alone. Its norm, with channels last, can not be differentiated forward."""
    torch.manual_seed(0)
    norm, x, dx = module(64).requires_grad_(False), images(2, 64, 4, 4), images(2, 64, 4, 4)

    def resized(x: Tensor) -> Tensor:
        return ops.resampled(ops.resampled(x, up=False), up=True).pow(3).sum()

    for function in (resized, lambda x: group_norm(norm, x, silu=True).pow(3).sum()):
        leaf = x.clone().requires_grad_()
        gradient = torch.autograd.grad(function(leaf), leaf)[0]
        assert error(torch.func.grad(function)(x), gradient.double()) < 1e-5
        if function is resized:
            slope = torch.func.jvp(function, (x,), (dx,))[1]
            assert slope.item() == pytest.approx((gradient * dx).sum().item(), rel=1e-4)
