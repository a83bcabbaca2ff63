"""Networks of a user's own compute the same once they are accelerated, whatever they look at."""

from __future__ import annotations

import pytest
import torch
from small_networks import arguments, build
from torch import Tensor, nn

from admg.engine import accelerate
from admg.models.surgery import View


def check(network: nn.Module, **given: Tensor) -> nn.Module:
    """Compare values, and gradients with respect to x, and return the accelerated network."""
    network.eval().requires_grad_(False)
    fast = accelerate(network, precision="fp32")
    pairs = []
    for call in (fast, network):
        x = given["x"].clone().requires_grad_()
        output = call(**given | {"x": x})
        pairs.append((output.detach(), *torch.autograd.grad(output.square().sum(), x)))
    for found, expected in zip(*pairs):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    return fast


class Wrapper(nn.Module):
    factor = 1.0
    calls = 0

    def __init__(self, how: str = "attribute"):
        super().__init__()
        self.network, self.how, self.factor = build("unet"), how, 2.0
        self._bias = 0.5
        self.register_buffer("bias_of_buffer", torch.tensor(0.25))

    @property
    def bias(self) -> float:
        return self._bias

    @bias.setter
    def bias(self, value: float) -> None:
        self._bias = value

    def forward(self, **given: Tensor) -> Tensor:
        self.calls += 1
        self.bias = self.bias
        self.__dict__["written"] = self.calls
        own = sum(b for b in self.buffers(recurse=False))
        factor = self.__dict__.get("factor", 1.0) if self.how == "dict" else self.factor
        return factor * self.network(**given) + self.bias + own


@pytest.mark.parametrize("how", ["attribute", "dict"])
def test_attributes_of_an_instance_go_before_those_of_its_class(how):
    wrapper = Wrapper(how)
    fast = check(wrapper, **arguments(wrapper.network))
    assert isinstance(fast._function(), View) and isinstance(fast._function(), Wrapper)
    assert wrapper.calls == wrapper.written == 2 and wrapper._bias == 0.5
    del fast._function().written
    assert not hasattr(wrapper, "written")


def test_a_forward_of_an_instance_is_called():
    wrapper = Wrapper()
    forward = wrapper.forward
    wrapper.forward = lambda **given: 3 * forward(**given)
    check(wrapper, **arguments(wrapper.network))


def test_a_child_that_is_replaced_in_a_call_is_used_at_once():
    class Replacing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.calls = nn.Conv2d(32, 32, 3, padding=1), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                self.layers = nn.Identity()
            return self.layers(x)

    network, x = Replacing(), torch.randn(1, 32, 8, 8)
    fast = accelerate(network, precision="fp32")
    assert not torch.equal(fast(x), x) and torch.equal(fast(x), x) and torch.equal(fast(x), x)


class Looking(nn.Module):
    """Treats its layers by their classes and attributes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Conv2d(3, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 6, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) * layer.in_channels**-0.5 if isinstance(layer, nn.Conv2d) else layer(x)
        return x


@pytest.mark.parametrize("training", [False, True])
def test_prepared_layers_are_of_the_class_of_the_layer_and_have_its_attributes(training):
    network, x = Looking(), torch.randn(2, 3, 8, 8)
    check(network, x=x)
    fast = accelerate(network, precision="fp32", training=training)
    torch.testing.assert_close(fast(x), network(x), rtol=1e-4, atol=1e-5)
    layers = [layer for layer in fast._function().modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 2 and layers[1].out_channels == 6
    assert [*fast._function().state_dict()] == [*network.state_dict()]


class InPlace(nn.Module):
    def __init__(self, kernel: int, out: int, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(32, 256, 3, padding=1)
        conv = nn.Conv2d(256, out, kernel, padding=kernel // 2, bias=bias)
        self.layers = nn.Sequential(conv, nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h += 1
        return self.layers(h)


@pytest.mark.parametrize(("kernel", "out"), [(1, 256), (3, 256), (3, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_of_layers_may_be_changed_in_place(kernel, out, bias):
    network, x = InPlace(kernel, out, bias), torch.randn(2, 32, 8, 8)
    check(network, x=x)
    accelerate(network.requires_grad_(True), precision="fp32", training=True)(x).sum().backward()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["unet", "plain resampling"])
def test_many_gradients_at_once(name, threads):
    """As by is_grads_batched=True and jacobian(vectorize=True)."""
    before = torch.get_num_threads()
    network = build(name)
    fast, given = accelerate(network, precision="fp32"), arguments(network, 4)
    try:
        torch.set_num_threads(threads)
        x = given.pop("x").requires_grad_()
        output, plain = fast(x, **given), network(x, **given)
        directions = torch.randn(3, *output.shape, generator=torch.Generator().manual_seed(1))
        (found,) = torch.autograd.grad(output, x, directions, is_grads_batched=True)
    finally:
        torch.set_num_threads(before)
    expected = torch.stack([torch.autograd.grad(plain, x, d, retain_graph=True)[0] for d in directions])
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max() and not found.requires_grad


class Listing(nn.Module):
    """Calls its children in order, and has attributes whose names a view might take for its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 6, 3, padding=1)

    def original(self, x: Tensor) -> Tensor:
        return 2 * x

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return self.original(x)


def test_a_view_hides_no_method_of_the_class():
    fast = check(Listing(), x=torch.randn(2, 3, 8, 8), timesteps=torch.tensor([5]))
    assert isinstance(fast._function(), View)


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_part_runs_as_it_is(how):
    network = Listing()
    example = torch.randn(2, 3, 8, 8)
    network.first = torch.jit.script(network.first) if how == "script" else torch.jit.trace(network.first, example)
    check(network, x=example, timesteps=torch.tensor([5]))
