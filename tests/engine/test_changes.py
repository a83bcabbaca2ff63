"""Changes of a network after the first call of the accelerated one are noticed at the next call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.parametrize as parametrize
from small_networks import arguments, build
from torch import Tensor, nn

from admg.engine import accelerate
from admg.engine.observers import Snapshot
from admg.models.blocks import AttentionBlock, ResBlock


def all_of(network: nn.Module, kind: type) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


def doubled(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *args, **kwargs: 2 * forward(*args, **kwargs)


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def forward_of_layers(network: nn.Module) -> None:
    for conv in all_of(network, nn.Conv2d):
        doubled(conv)


def forward_of_blocks(network: nn.Module) -> None:
    for block in all_of(network, ResBlock):
        doubled(block)


def forward_of_an_activation(network: nn.Module) -> None:
    network.out[1].forward = lambda x: x


def class_of_layers(network: nn.Module) -> None:
    for conv in all_of(network, nn.Conv2d):
        conv.__class__ = Doubled


def padding_mode(network: nn.Module) -> None:
    for conv in all_of(network, nn.Conv2d):
        conv.padding_mode = "circular"


def dilation(network: nn.Module) -> None:
    for conv in all_of(network, nn.Conv2d):
        if conv.kernel_size == (3, 3):
            conv.dilation = conv.padding = 2, 2


def eps(network: nn.Module) -> None:
    for norm in all_of(network, nn.GroupNorm):
        norm.eps = 0.1


def order_of_attention(network: nn.Module) -> None:
    for block in all_of(network, AttentionBlock):
        block.new_order = not block.new_order


def parametrised_norms(network: nn.Module) -> None:
    for norm in all_of(network, nn.GroupNorm):
        parametrize.register_parametrization(norm, "weight", Twice())


def weights_through_data(network: nn.Module) -> None:
    for conv in all_of(network, nn.Conv2d):
        conv.weight.data.mul_(1.5)


def weights_through_numpy(network: nn.Module) -> None:
    for conv in all_of(network, nn.Conv2d):
        conv.weight.detach().numpy()[:] *= 1.5


CHANGES = [
    doubled, forward_of_layers, forward_of_blocks, forward_of_an_activation, class_of_layers, padding_mode, dilation,
    eps, order_of_attention, parametrised_norms, weights_through_data, weights_through_numpy,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@torch.no_grad()
def test_the_accelerated_network_follows(change: Callable[[nn.Module], None]):
    network = build("unet")
    fast, given = accelerate(network, precision="fp32"), arguments(network)
    before = fast(**given)
    change(network)
    expected = network(**given)
    assert (fast(**given) - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (before - expected).abs().max() > 0.01 * expected.abs().max()


@torch.no_grad()
def test_nothing_is_built_again_while_nothing_changes():
    """Also if a module of a user's own counts its calls, and if a mode or a hook changes."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.calls = build("unet"), 0

        def forward(self, **given: Tensor) -> Tensor:
            self.calls += 1
            self.last = given["x"]
            return self.network(**given)

    network = Counting()
    fast, given = accelerate(network, precision="fp32"), arguments(network.network)
    fast(**given)
    built = fast._build
    network.train().eval()
    network.network.out.register_full_backward_hook(lambda *_: None).remove()
    fast(**given)
    assert network.calls == 2 and fast._build is built
    assert Snapshot(network).trains() is False
    network.network.label_emb.requires_grad_(True)
    assert built.snapshot.trains()


def test_a_weight_that_changes_before_the_gradient_is_refused_as_in_torch():
    for network in (build("unet"), accelerate(build("unet"), precision="fp32")):
        given = arguments(network)
        given["x"].requires_grad_()
        output = network(**given)
        with torch.no_grad():
            for layer in all_of(network, nn.Conv2d):
                layer.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(output.sum(), given["x"])
