"""Gradients of convolutions' weights by the kernel in C, and training with it, against float64 and the plain way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers import CPU, learned, make, resume
from torch import Tensor, nn

import admg.engine.cpu.training as module
from admg.engine import acceleration
from admg.engine import cpu as native
from admg.engine.cpu import winograd
from admg.engine.cpu.training import trainable
from admg.engine.cpu.weight_gradient import bias_gradient, pays, weight_gradient

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")


@pytest.fixture
def counted(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the gradients that the kernel computes."""
    shapes: list[tuple[int, ...]] = []

    def count(x: Tensor, dy: Tensor) -> Tensor:
        shapes.append((dy.shape[1], x.shape[1]))
        return weight_gradient(x, dy)

    monkeypatch.setattr(module, "weight_gradient", count)
    return shapes


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def exact(x: Tensor, dy: Tensor) -> Tensor:
    """In float64, by autograd."""
    weight = torch.zeros(dy.shape[1], x.shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    F.conv2d(x.double(), weight, padding=1).backward(dy.double())
    return weight.grad


def error(a: Tensor, b: Tensor) -> float:
    """Rms, relative."""
    return ((a - b).square().mean() / b.square().mean()).sqrt().item()


@pytest.mark.parametrize(
    "n, c, k, height, width",
    [
        (1, 32, 32, 1, 1),
        (2, 32, 64, 7, 5),
        (3, 64, 32, 4, 9),
        (1, 96, 160, 8, 8),
        (5, 224, 96, 6, 3),
        (9, 32, 32, 32, 32),
    ],
)
def test_the_gradient_equals_float64(n, c, k, height, width):
    torch.manual_seed(0)
    x, dy = torch.randn(n, c, height, width), torch.randn(n, k, height, width) + 0.2
    gradient = weight_gradient(x, dy)
    assert gradient.is_contiguous() and error(gradient, exact(x, dy)) < 1e-6
    last = weight_gradient(x.to(memory_format=torch.channels_last), dy.flip(0).flip(0).transpose(2, 3).transpose(2, 3))
    assert torch.equal(last, gradient)


@pytest.mark.parametrize("n, c, k, height, width", [(2, 32, 64, 7, 5), (5, 224, 96, 6, 3), (9, 32, 32, 32, 32)])
def test_images_in_bf16(n, c, k, height, width):
    """Bit for bit what the same numbers give in float32, in which the gradient is."""
    torch.manual_seed(0)
    x, dy = torch.randn(n, c, height, width).bfloat16(), torch.randn(n, k, height, width).bfloat16()
    gradient = weight_gradient(x, dy)
    assert gradient.dtype == torch.float32 and torch.equal(gradient, weight_gradient(x.float(), dy.float()))


@pytest.mark.parametrize("shape", [(1, 32, 1, 1), (2, 96, 5, 7), (9, 32, 32, 32), (0, 64, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_bias(threads, shape, dtype):
    """As exact as a sum of blocks of 64 rows; the same for any number of threads and any layout."""
    torch.manual_seed(0)
    dy = (torch.randn(shape) + 0.2).to(dtype)
    found = bias_gradient(dy)
    exact, size = dy.double().sum((0, 2, 3)), dy.double().abs().sum((0, 2, 3))
    longest = 16 + 4 + dy[:, 0].numel() / 16 / 64 + 16  # additions in a row: of a block, of blocks, of ranges
    assert found.dtype == torch.float32 and ((found - exact).abs() <= longest * 2**-24 * size).all()
    for number in (1, 2, 3):
        threads(number)
        assert torch.equal(bias_gradient(dy.to(memory_format=torch.channels_last)), found)


@pytest.mark.parametrize("size", [8, 3])  # by the kernels, and too small for that of the output
def test_a_layer_that_learns_in_bf16(monkeypatch, counted, size):
    """No gradient, of any order, is further from float64 than with autocast alone; weights keep theirs in float32."""
    monkeypatch.setattr(winograd, "pays", lambda dtype: True)
    torch.manual_seed(0)
    conv, x, w = nn.Conv2d(160, 96, 3, padding=1), torch.randn(2, 160, size, size), torch.randn(2, 96, size, size)

    def results(layer: nn.Module, dtype: torch.dtype, autocast: bool) -> list[Tensor]:
        """Gradients of sum(w y²), and of the squared norm of that in x."""
        leaves = [x.to(dtype).requires_grad_(), *layer.parameters()]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(leaves[0])
            assert y.dtype == (torch.bfloat16 if autocast else dtype)
            first = torch.autograd.grad((w.to(y.dtype) * y * y).sum(), leaves, create_graph=True)
        found = [*first, *torch.autograd.grad(first[0].square().sum(), leaves)]
        assert all(gradient.dtype == leaf.dtype for gradient, leaf in zip(found, leaves * 2))
        return [y.detach(), *(gradient.detach() for gradient in found)]

    exact = results(copy.deepcopy(conv).double(), torch.float64, False)
    usual, got = results(conv, torch.float32, True), results(trainable(conv), torch.float32, True)
    for ours, plain, value in zip(got, usual, exact, strict=True):
        assert error(ours.double(), value) < 1.2 * error(plain.double(), value)
    y = trainable(conv)(x)
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(trainable(conv)(x).sum(), list(conv.parameters()))
    assert y.dtype == torch.float32 and [g.dtype for g in gradients] == [torch.float32] * 2 and counted


def test_long_sums_are_as_precise_as_torchs():
    """Of 16384 pixels, which processors without AVX-512 sum with three times the error."""
    torch.manual_seed(0)
    x, dy = torch.randn(16, 32, 32, 32), torch.randn(16, 32, 32, 32)
    plain = torch.zeros(32, 32, 3, 3, requires_grad=True)
    F.conv2d(x, plain, padding=1).backward(dy)
    assert error(weight_gradient(x, dy), exact(x, dy)) < 2 * error(plain.grad, exact(x, dy))


@pytest.mark.parametrize("n, c, k, size", [(2, 160, 96, 5), (8, 32, 32, 32)])
def test_threads_do_not_change_the_result(threads, n, c, k, size):
    """With panels of channels, and with parts of the images, shared out among them."""
    torch.manual_seed(0)
    x, dy = torch.randn(n, c, size, size), torch.randn(n, k, size, size)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(weight_gradient(x, dy))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_shapes_that_it_is_used_for(monkeypatch):
    def fits(k: int, c: int, n: int = 2, height: int = 8, width: int = 8) -> bool:
        return pays(torch.empty(k, c, 3, 3), torch.empty(n, c, height, width))

    assert fits(32, 96) and fits(32, 96, height=5, n=1) and fits(32, 96, n=2, height=3, width=2)
    assert not fits(32, 1) and not fits(2, 32) and not fits(48, 32)
    assert not fits(32, 96, n=1, height=4, width=4) and not fits(32, 96, n=16, height=1)
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert not fits(32, 96)


def test_no_images():
    assert torch.equal(weight_gradient(torch.empty(0, 32, 8, 8), torch.empty(0, 64, 8, 8)), torch.zeros(64, 32, 3, 3))


# -- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 32, 6, 7), (1, 32, 9, 2), (16, 32, 8, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_gradients(counted, shape, bias):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(32, 64, 3, padding=1, bias=bias), torch.randn(shape, requires_grad=True)
    twin, z = copy.deepcopy(conv).double(), x.detach().double().requires_grad_()
    dy = torch.randn(shape[0], 64, *shape[2:])
    y = trainable(conv)(x)
    y.backward(dy)
    exact_y = twin(z)
    exact_y.backward(dy.double())
    assert counted == [(64, 32)]
    for found, wanted in [(y, exact_y), (x.grad, z.grad), *((p.grad, q.grad) for p, q in both(conv, twin))]:
        assert error(found, wanted) < 1e-6


def both(a: nn.Module, b: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    return list(zip(a.parameters(), b.parameters(), strict=True))


def test_second_derivatives():
    """Of a penalty on the norm of the gradient."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(32, 32, 3, padding=1), torch.randn(2, 32, 5, 6, requires_grad=True)
    twin, z = copy.deepcopy(conv).double(), x.detach().double().requires_grad_()

    def penalty(layer: nn.Module, x: Tensor) -> Tensor:
        loss = layer(x).pow(3).sum()
        return sum(g.square().sum() for g in torch.autograd.grad(loss, [x, *layer.parameters()], create_graph=True))

    penalty(trainable(conv), x).backward()
    penalty(twin, z).backward()
    for found, wanted in [(x.grad, z.grad), *((p.grad, q.grad) for p, q in both(conv, twin))]:
        assert error(found, wanted) < 3e-6


def test_modules_that_are_left_alone(counted, monkeypatch):
    """Other convolutions, other formats, frozen weights, and what is computed without gradients."""
    monkeypatch.setattr(winograd, "pays", lambda dtype: dtype == torch.float32)  # as on processors with AMX
    x = torch.randn(2, 32, 8, 8)
    others = [
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Conv2d(32, 32, 3),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(32, 8, 3, padding=1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 32, 3, padding=1)),
    ]
    frozen, conv = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(2))
    frozen.weight.requires_grad_(False)
    for layer in [*others, frozen]:
        trainable(layer)(x).sum().backward()
    fast = trainable(conv)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16
        fast(x).float().sum().backward()
    assert not fast(x[0]).grad_fn.name().startswith("_Convolution")
    with torch.no_grad():
        fast(x)
    assert not counted
    fast(x).sum().backward()
    assert counted == [(32, 32)] and "forward" not in vars(conv)


def test_transforms_of_functions(counted):
    """Which know the plain convolution alone."""
    torch.manual_seed(0)
    conv, x, dx = nn.Conv2d(32, 32, 3, padding=1), *torch.randn(2, 2, 32, 6, 6)

    def loss(x: Tensor) -> Tensor:
        return conv(x).pow(2).sum()

    expected = torch.func.grad(loss)(x)
    fast = trainable(conv)
    assert torch.equal(torch.func.grad(lambda x: fast(x).pow(2).sum())(x), expected)
    slope = torch.func.jvp(lambda x: fast(x).pow(2).sum(), (x,), (dx,))[1]
    assert slope.item() == pytest.approx((expected * dx).sum().item(), rel=1e-4) and not counted


def test_no_additional_memory_for_the_gradient():
    """Bytes of different tensors."""
    network, kept = nn.Sequential(*[nn.Conv2d(32, 32, 3, padding=1) for _ in range(3)]), []
    x = torch.randn(4, 32, 8, 8).to(memory_format=torch.channels_last)
    for layers in (network, nn.Sequential(*map(trainable, network))):
        saved: dict[int, int] = {}

        def keep(t: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = layers(x)
        kept.append(sum(saved.values()))
        del y
    assert kept[1] == kept[0] > 0


# -- training --------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("kind, changes", [("diffusion", {}), ("classifier", {}), ("diffusion", {"checkpoint": True})])
def test_training_gives_the_same_losses(digits, monkeypatch, counted, kind, changes):
    """Losses and norms of the gradient of a few steps."""
    ours, _ = learned(digits, make(kind, **changes), steps=4)
    assert counted
    monkeypatch.setattr(acceleration, "trainable", lambda layer: layer)
    plain, _ = learned(digits, make(kind, **changes), steps=4)
    for a, b in zip(ours, plain, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


@pytest.mark.thorough
def test_training_of_the_plain_network_continues_with_the_kernel(digits, tmp_path, monkeypatch, counted):
    from admg.data import batches
    from admg.data import open as open_dataset
    from admg.training import TrainConfig, checkpointing
    from admg.training.prefetch import prefetch
    from admg.training.step import Learner

    monkeypatch.setattr(acceleration, "trainable", lambda layer: layer)
    figures, _ = learned(digits, make(), steps=4)
    _, first = learned(digits, make(), steps=2)
    assert not counted
    checkpointing.save(tmp_path, checkpointing.checkpoint_state(first, 2))
    monkeypatch.undo()
    second = Learner(make(), TrainConfig(batch_size=10, precision="fp32", warmup=1), CPU)
    fed = prefetch(second.task, batches(open_dataset(digits, 8), 10, seed=0, start=2), 0, 2, CPU)
    assert resume(tmp_path, second) == 2
    for k in (2, 3):
        assert second.step(k, next(fed))["loss"].item() == pytest.approx(figures[k]["loss"], rel=1e-5)
