"""accelerate(): the numbers and gradients of the plain network, its parameters, and nothing changed in it."""

from __future__ import annotations

import ctypes
import dataclasses
import threading

import pytest
import torch
from helpers import TRUNK, randomised
from rounding import DRAWS, with_rounded_weights
from small_networks import NETWORKS, arguments, build
from torch import Tensor, nn

import admg
from admg import guidance
from admg.engine import accelerate, accelerate_parts, configure_process, process
from admg.engine.acceleration import Accelerated
from admg.engine.blocks import FusedResBlock
from admg.engine.cpu.prepack import PrepackedConv
from admg.models import (
    UNet,
    UNetConfig,
    with_identity_attention,
)
from admg.models.blocks import ResBlock

TERMS = 9 * 256
"""Products that are summed for one output of the largest convolution."""


def results(network: nn.Module, weights: bool = False, count: int = 3) -> list[Tensor]:
    """The output, and the gradients of its square with respect to the images and, if asked for, the weights."""
    given = arguments(network, count)
    x = given.pop("x").requires_grad_()
    output = network(x, **given)
    leaves = [x, *(network.parameters() if weights else ())]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


def amplified(network: nn.Module, weights: bool = False) -> list[float]:
    """What float32 rounding does to each of the results, see rounding.py."""
    expected = results(network, weights)
    draws = [results(with_rounded_weights(network, TERMS, seed), weights) for seed in range(DRAWS)]
    return [2 * max((draw[i] - value).abs().max().item() for draw in draws) for i, value in enumerate(expected)]


def state_of(network: nn.Module) -> list[dict[str, object]]:
    """Everything that the module and its submodules hold, by identity of the values."""
    return [
        {key: list(value.items()) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for module in network.modules()
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_those_of_the_plain_network(name):
    network = build(name)
    fast = accelerate(network, precision="fp32")
    bounds = amplified(network)
    for got, expected, bound in zip(results(fast), results(network), bounds, strict=True):
        assert 0 < (got - expected).abs().max() < bound
    modules = list(fast._function().network.modules())
    assert any(isinstance(m, FusedResBlock) for m in modules) and any(isinstance(m, PrepackedConv) for m in modules)


@pytest.mark.thorough
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_weights_in_training(name):
    network = build(name).requires_grad_(True)
    fast = accelerate(network, precision="fp32", training=True)
    bounds = amplified(network, weights=True)
    for got, expected, bound in zip(results(fast, weights=True), results(network, weights=True), bounds, strict=True):
        assert (got - expected).abs().max() <= bound
    assert any(isinstance(m, FusedResBlock) for m in fast._function().modules())


@pytest.mark.thorough
def test_gradients_of_weights_without_training_are_those_of_the_plain_network():
    network = build("unet").requires_grad_(True)
    fast = accelerate(network, precision="fp32")
    assert all(map(torch.equal, results(fast, weights=True), results(network, weights=True)))
    with torch.no_grad():
        assert fast._function() is not network


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_shared_and_the_class_is_kept(name):
    network = build(name)
    fast = accelerate(network, precision="fp32")
    assert [*fast.named_parameters()] == [*network.named_parameters()]
    assert all(a is b for a, b in zip(fast.parameters(), network.parameters()))
    assert list(fast.state_dict()) == list(network.state_dict())
    assert isinstance(fast, type(network)) and fast.config is network.config and fast.plain is network


@pytest.mark.thorough
@torch.no_grad()
def test_loading_moving_and_changing_either_is_seen_by_the_other():
    network, other = build("unet"), randomised(NETWORKS["unet"](), 9)
    fast, given = accelerate(network, precision="fp32"), arguments(network)
    fast(**given)
    network.load_state_dict(other.state_dict())
    expected = other(**given)
    assert (fast(**given) - expected).abs().max() < 1e-4 * expected.abs().max()
    fast.load_state_dict(build("unet").state_dict())
    assert torch.equal(network(**given), build("unet")(**given))
    fast.double()
    assert all(p.dtype == torch.float64 for p in network.parameters())
    fast.train()
    assert network.training and network.middle_block.training and fast.training
    fast.to("meta")
    assert all(p.is_meta for p in network.parameters())


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_changes_in_the_plain_network(tiny_model, tiny_classifier, precision):
    """Neither accelerating it, nor calling it, nor sampling with it."""
    networks = tiny_model.network, tiny_classifier.network
    before = [state_of(network) for network in networks]
    guide = guidance.ClassifierGuidance(tiny_classifier, 2.0) + guidance.PerturbedAttentionGuidance(2.0)
    admg.sample(tiny_model, [0, 1], guide=guide, steps=3, precision=precision, progress=False)
    assert [state_of(network) for network in networks] == before


@torch.no_grad()
def test_dropout_follows_the_mode_of_the_plain_network():
    torch.manual_seed(0)
    network = randomised(UNet(UNetConfig(**TRUNK, dropout=0.5)), 0)
    fast, x, t = accelerate(network, precision="fp32"), torch.randn(2, 1, 8, 8), torch.tensor([5])
    assert torch.equal(fast(x, t), fast(x, t))
    network.train()
    assert not torch.equal(fast(x, t), fast(x, t))


def test_accelerating_twice():
    network = build("classifier")
    fast = accelerate(network, precision="fp32")
    assert accelerate(fast, precision="fp32") is fast
    other = accelerate(fast, precision="bf16")
    assert other is not fast and other.plain is network
    with pytest.raises(ValueError, match="precision must be one of"):
        accelerate(network, precision="int8")
    with pytest.raises(ValueError, match="unknown compile mode"):
        accelerate(network, compile="yes")


@torch.no_grad()
def test_other_modules_are_called_within_autocast():
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    assert accelerate(layer, precision="fp32") is layer
    fast = accelerate(layer, precision="bf16")
    assert fast(x).dtype == torch.bfloat16 and layer(x).dtype == torch.float32 and fast.in_features == 4


class Counting(nn.Module):
    """A wrapper of a user's own, whose state changes from call to call."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.calls, self.scale = network, 0, 1.0

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.scale * self.network(x, timesteps, y)


@torch.no_grad()
def test_a_network_inside_a_wrapper_is_accelerated_and_the_wrapper_keeps_its_state(tiny_model):
    wrapper = Counting(build("unet"))
    given, before = arguments(wrapper.network), state_of(wrapper)[1:]
    fast = accelerate(wrapper, precision="fp32")
    expected = wrapper.network(**given)
    assert (fast(**given) - expected).abs().max() < 1e-5 * expected.abs().max() and wrapper.calls == 1
    wrapper.scale = 2.0
    assert (fast(**given) - 2 * expected).abs().max() < 1e-5 * expected.abs().max() and wrapper.calls == 2
    assert any(isinstance(m, PrepackedConv) for m in fast._function().modules())
    assert state_of(wrapper)[1:] == before and list(fast.state_dict()) == list(wrapper.state_dict())
    model = dataclasses.replace(tiny_model, network=wrapper)
    assert model.conditional and accelerate_parts(model, precision="bf16").conditional


def test_an_accelerated_model_can_be_saved(tiny_model, tmp_path):
    accelerate_parts(tiny_model, precision="fp32").save(tmp_path / "model")
    loaded = admg.Model.load(tmp_path / "model").network.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in tiny_model.network.state_dict().items())


@pytest.mark.thorough
@torch.no_grad()
def test_a_networks_own_subclass_and_forward_are_respected():
    class Doubled(UNet):
        def forward(self, *args, **kwargs):
            return 2 * super().forward(*args, **kwargs)

    class Silent(ResBlock):
        def forward(self, x, emb):
            return 0 * super().forward(x, emb)

    torch.manual_seed(0)
    network = randomised(Doubled(UNetConfig(**TRUNK)), 0)
    block = network.middle_block[0]
    network.middle_block[0] = randomised(Silent(block.in_layers[2].in_channels, 32, network.config.emb_dim), 1)
    conv = network.input_blocks[1][0].in_layers[2]
    conv.forward = lambda x: nn.Conv2d.forward(conv, x) + 1
    fast, x, t = accelerate(network, precision="fp32"), torch.randn(2, 1, 8, 8), torch.tensor([5])
    expected = network(x, t)
    draws = [with_rounded_weights(network, TERMS, seed)(x, t) for seed in range(DRAWS)]
    rounding = max((draw - expected).abs().max() for draw in draws)
    assert (fast(x, t) - expected).abs().max() < 4 * rounding < 0.01 * expected.abs().max()
    assert isinstance(fast, Doubled)


@pytest.mark.thorough
def test_threads_share_one_network():
    network = build("classifier")
    fast = accelerate(network, precision="fp32")
    expected = {count: results(network, count=count) for count in (1, 2, 5)}
    bounds, failures = amplified(network), []

    def work(count: int) -> None:
        for _ in range(5):
            for got, value, bound in zip(results(fast, count=count), expected[count], bounds, strict=True):
                if not (got - value).abs().max() < 3 * bound:
                    failures.append(count)

    threads = [threading.Thread(target=work, args=(count,)) for count in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.thorough
@torch.no_grad()
def test_identity_attention_of_an_accelerated_network():
    network, given = build("unet"), arguments(build("unet"))
    fast = accelerate(network, precision="fp32")
    perturbed = with_identity_attention(fast)
    expected = with_identity_attention(network)(**given)
    assert (perturbed(**given) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (perturbed(**given) - network(**given)).abs().max() > 1e-4
    assert with_identity_attention(fast) is perturbed and isinstance(perturbed, Accelerated)
    convs = [[m for m in n._function().network.modules() if isinstance(m, PrepackedConv)] for n in (fast, perturbed)]
    assert len(convs[0]) == len(convs[1]) and all(a is b for a, b in zip(*convs))  # weights are prepacked once


# -- models and guides -----------------------------------------------------------------------------------------------


def test_the_networks_of_models_and_guides_are_accelerated(tiny_model, tiny_classifier):
    guide = guidance.ClassifierGuidance(tiny_classifier, 2.0) + guidance.AutoGuidance(tiny_model, 2.0)
    model, fast = accelerate_parts((tiny_model, guide), precision="fp32")
    assert isinstance(model.network, Accelerated) and model.network.plain is tiny_model.network
    assert isinstance(fast.guides[0].classifier.network, Accelerated)
    assert fast.guides[1].bad_model.network is model.network  # accelerated once
    assert not isinstance(tiny_model.network, Accelerated) and guide.guides[0].classifier is tiny_classifier
    assert accelerate_parts((model, fast), precision="fp32")[1] is fast
    plain = guidance.ClassifierFreeGuidance(2.0)
    assert accelerate_parts(plain) is plain and accelerate_parts(None) is None


def test_weights_that_require_gradients_do_not_slow_sampling_down(tiny_model):
    network = build("classifier").requires_grad_(True)
    fast = accelerate_parts(dataclasses.replace(tiny_model, network=network), precision="fp32").network
    (gradient,) = results(fast)[1:]
    (expected,) = results(network)[1:]
    assert (gradient - expected).abs().max() < 1e-4 * expected.abs().max()
    assert fast._function() is not network


def test_sampling_sets_nothing_of_the_process(tiny_model, monkeypatch):
    calls = []
    monkeypatch.setattr(process, "keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: calls.append(2))
    before = torch.backends.cudnn.allow_tf32, torch.get_num_threads(), torch.is_grad_enabled()
    admg.sample(tiny_model, [0], steps=2, progress=False)
    assert not calls
    assert (torch.backends.cudnn.allow_tf32, torch.get_num_threads(), torch.is_grad_enabled()) == before
    configure_process("cpu")
    assert calls == [1]
