"""Batches in parts: the values and gradients of the whole batch, and no trace in the process."""

from __future__ import annotations

import multiprocessing
import threading

import pytest
import torch
from small_networks import NETWORKS, arguments, build
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import admg
from admg.engine import follow_load
from admg.engine.cpu.parts import InParts, _pool, parts_of
from admg.threads import Reading


@pytest.fixture(params=[2, 3])
def threads(request):
    """The number of threads of the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("images", "threads", "parts"),
    [(16, 1, 1), (16, 2, 2), (1, 2, 1), (3, 2, 1), (7, 2, 2), (8, 16, 8), (1, 16, 1), (5, 16, 1), (50, 16, 8),
     (64, 16, 16), (9, 3, 3), (4, 6, 2), (0, 2, 1)],
)  # fmt: skip
def test_parts_are_about_equal_and_share_out_all_threads(images, threads, parts):
    assert parts_of(images, threads) == parts


def in_float64(name: str, count: int) -> tuple[nn.Module, dict[str, Tensor]]:
    network = build(name).double().eval()
    given = {k: v.double() if v.is_floating_point() else v for k, v in arguments(network, count).items()}
    return network, given


@pytest.mark.parametrize(("name", "positional"), [*((name, False) for name in NETWORKS), ("unet", True)])
def test_values_and_gradients_of_any_order_are_those_of_the_whole_batch(name, positional, threads):
    network, given = in_float64(name, 12)
    given["timesteps"] = torch.arange(12) * 80

    def results(call) -> list[Tensor]:
        x = given["x"].clone().requires_grad_()
        others = {k: v for k, v in given.items() if k != "x"}
        output = call(x, *others.values()) if positional and set(others) <= {"timesteps", "y"} else call(x=x, **others)
        first = torch.autograd.grad(output.square().sum(), x, create_graph=True)[0]
        again = torch.autograd.grad(output.square().sum(), x, retain_graph=True)[0]
        return [output.detach(), first.detach(), again, torch.autograd.grad(first.pow(3).sum(), x)[0]]

    with sdpa_kernel(SDPBackend.MATH):  # the only attention of torch whose gradient has a gradient
        pairs = zip(results(InParts(network, network, "fp32")), results(network), strict=True)
    for found, expected in pairs:
        assert (found - expected).abs().max() <= 1e-11 * expected.abs().max()


def test_one_timestep_for_all_images_and_inference_mode(threads):
    network, given = in_float64("unet", 6)
    with torch.inference_mode():
        found = InParts(network, network, "fp32")(**given)
        assert found.is_inference()
        assert torch.allclose(found, network(**given), rtol=0, atol=1e-12)
    with torch.no_grad():
        assert not InParts(network, network, "fp32")(**given).requires_grad


class Product(nn.Module):
    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return x.pow(3) * timesteps[:, None]


def test_gradients_of_one_timestep_for_all_images(threads):
    network = Product().eval()
    x, t = torch.arange(6.0)[:, None].requires_grad_(), torch.tensor([300.0], requires_grad=True)
    found = torch.autograd.grad(InParts(network, network, "fp32")(x, t).sum(), (x, t))
    assert torch.equal(found[0], 900 * x**2) and found[1].item() == sum(n**3 for n in range(6))


def test_second_derivatives_of_inputs_that_depend_on_one_another(threads):
    network = Product().eval()
    x = torch.arange(6.0)[:, None].requires_grad_()
    output = InParts(network, network, "fp32")(x, 2 * x[:, 0])  # 2 x^4
    (first,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(first, 8 * x**3) and torch.equal(second, 24 * x**2)


class Recorder(nn.Module):
    """Returns its input, and keeps the sizes of the batches and the numbers of threads that it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int, str]] = []

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        self.calls.append((len(x), torch.get_num_threads(), threading.current_thread().name))
        if x.isnan().any():
            raise ValueError("not finite")
        return x + timesteps


def numbers() -> list[int]:
    """The number of threads here, and in a thread that begins now."""
    seen = [torch.get_num_threads()]
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    return seen


def test_each_part_has_a_thread_of_its_own_and_the_process_keeps_its_number(threads):
    network = Recorder().eval()
    call = InParts(network, network, "fp32")
    _pool.cache_clear()  # threads that have not computed yet
    x = torch.arange(12.0)[:, None]
    assert torch.equal(call(x, torch.tensor([1])), x + 1)
    assert [call[:2] for call in network.calls] == [(12 // threads, 1)] * threads
    assert numbers() == [threads, threads]


@pytest.mark.skipif(Reading.now() is None, reason="the load is known on Linux alone")
def test_on_a_busy_machine_a_batch_is_still_divided_into_as_many_parts(threads):
    network = Recorder().eval()
    x = torch.arange(12.0)[:, None]
    follow_load(Reading.now())
    torch.set_num_threads(1)  # as adapt_threads() does beside other processes
    try:
        assert torch.equal(InParts(network, network, "fp32")(x, torch.tensor([1])), x + 1)
        assert [call[:2] for call in network.calls] == [(12 // threads, 1)] * threads
        assert torch.get_num_threads() == 1
    finally:
        follow_load(None)
    assert torch.equal(InParts(network, network, "fp32")(x, torch.tensor([1])), x + 1)
    assert network.calls[-1][:2] == (12, 1)


def test_errors_are_those_of_the_network(threads):
    network = Recorder().eval()
    _pool.cache_clear()
    with pytest.raises(ValueError, match="not finite"):
        InParts(network, network, "fp32")(torch.full((12, 1), torch.nan), torch.tensor([1]))
    assert numbers() == [threads, threads]


def test_a_network_in_training_mode_gets_the_whole_batch(threads):
    network = Recorder().train()
    InParts(network, network, "fp32")(torch.zeros(12, 1), torch.tensor([1]))
    assert [size for size, *_ in network.calls] == [12]
    network.eval().dropout = nn.Dropout().train()  # as for samples of an ensemble (Gal & Ghahramani 2016)
    InParts(network, network, "fp32")(torch.zeros(12, 1), torch.tensor([1]))
    assert [size for size, *_ in network.calls] == [12, 12]


def _in_child(queue) -> None:
    network = Recorder().eval()
    queue.put(InParts(network, network, "fp32")(torch.ones(4, 1), torch.tensor([1])).sum().item())


def test_a_forked_process_has_threads_of_its_own(threads):
    network = Recorder().eval()
    InParts(network, network, "fp32")(torch.ones(12, 1), torch.tensor([1]))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == 8
    child.join()


def test_samples_do_not_depend_on_the_number_of_threads():
    """Each image is computed with the same operations; only sums of another order may differ, by rounding."""
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    guide = admg.guidance.ClassifierGuidance(classifier, 2.0)
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(admg.sample(model, list(range(8)), guide=guide, sampler="ddim", steps=3, progress=False).x)
    finally:
        torch.set_num_threads(before)
    assert (found[0] - found[1]).abs().max() < 1e-4
