"""The networks are ordinary torch modules: copies, dtypes, hooks, compilers, transforms and wrappers work as usual."""

from __future__ import annotations

import copy
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import reference
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import TRUNK, randomised
from rounding import DRAWS, with_rounded_weights
from torch import Tensor, nn

from admg import samplers
from admg.checkpoints.model import DiffusionConfig, Labels, Model
from admg.engine import accelerate
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig
from admg.models.blocks import AttentionBlock, ResBlock

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: UNet(UNetConfig(**TRUNK, num_classes=5)),
    "upsampler": lambda: SuperResUNet(SuperResConfig(**TRUNK, num_classes=5)),
    "classifier": lambda: NoisyClassifier(ClassifierConfig(**TRUNK, num_classes=5)),
    "plain resampling": lambda: UNet(UNetConfig(**TRUNK, num_classes=5, resblock_updown=False)),
    "added embedding": lambda: UNet(UNetConfig(**TRUNK, num_classes=5, scale_shift_norm=False)),
}


def only(*quick: str) -> list[object]:
    """Return all names; the tests of all but these are slow ones."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]


TERMS = 9 * 64
"""Products that are summed for one output of the largest convolution."""


@pytest.fixture(params=NETWORKS)
def name(request) -> str:
    return request.param


@pytest.fixture(params=["plain", "accelerated"])
def prepare(request) -> Callable[[nn.Module], nn.Module]:
    """What holds of a plain network holds of an accelerated one."""
    return (lambda n: n) if request.param == "plain" else (lambda n: accelerate(n, precision="fp32"))


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomised(NETWORKS[name](), 0)


def arguments(network: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    given = {"x": torch.randn(3, 1, 8, 8, generator=generator).to(dtype), "timesteps": torch.tensor([3, 50, 999])}
    if isinstance(network, SuperResUNet):
        given["low_res"] = torch.randn(3, 1, 4, 4, generator=generator).to(dtype)
    return given if isinstance(network, NoisyClassifier) else given | {"y": torch.tensor([4, -1, 0])}


def call(network: nn.Module) -> Tensor:
    return network(**arguments(network))


def rounding(network: nn.Module) -> float:
    """The largest difference that float32 rounding makes in this network's output, see rounding.py."""
    plain = getattr(network, "plain", network)
    with torch.no_grad():
        expected = call(plain)
        return 2 * max(
            (call(with_rounded_weights(plain, TERMS, seed)) - expected).abs().max().item() for seed in range(DRAWS)
        )


# -- copies and parameters -------------------------------------------------------------------------------------------


@pytest.mark.thorough
@torch.no_grad()
def test_deepcopy_is_independent(name, prepare):
    network = prepare(build(name))
    expected = call(network)
    clone = copy.deepcopy(network)
    assert torch.equal(call(clone), expected) and type(clone) is type(network)
    for p in clone.parameters():
        p.zero_()
    assert torch.equal(call(network), expected) and not torch.equal(call(clone), expected)


@pytest.mark.thorough
@torch.no_grad()
def test_pickle(name, prepare):
    network = prepare(build(name))
    clone = pickle.loads(pickle.dumps(network))
    assert torch.equal(call(clone), call(network)) and type(clone) is type(network)


@pytest.mark.thorough
@torch.no_grad()
def test_state_dict_round_trip(name, prepare):
    network, other = prepare(build(name)), prepare(randomised(NETWORKS[name](), 7))
    call(other)
    assert list(network.state_dict()) == list(build(name).state_dict())
    other.load_state_dict(network.state_dict())
    assert (call(other) - call(network)).abs().max() <= rounding(network)


# -- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@torch.no_grad()
def test_float64_computes_in_float64(name, prepare):
    """Its error is that of float64: float32 in a single layer would be 1e-7."""
    network = build(name)
    inexact, bound = call(network).double(), rounding(network)
    network = prepare(network).double()
    exact = network(**arguments(network, torch.float64))
    assert exact.dtype == torch.float64 and 0 < (inexact - exact).abs().max() < bound
    rounded = with_rounded_weights(getattr(network, "plain", network), TERMS, 0)
    difference = (rounded(**arguments(network, torch.float64)) - exact).abs().max()
    assert 0 < difference < 1e-6 * bound  # u is 5e8 times smaller


def test_float64_gradients(name):
    network = build(name).double()
    given = arguments(network, torch.float64)
    x, others = given.pop("x")[:1].requires_grad_(), {k: v[:1] for k, v in given.items()}
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slope = (torch.autograd.grad(network(x, **others).square().sum(), x)[0] * direction).sum().item()
    with torch.no_grad():
        above, below = (network(x + h * direction, **others).square().sum().item() for h in (1e-5, -1e-5))
    assert slope == pytest.approx((above - below) / 2e-5, rel=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.ddpm, samplers.heun], ids=lambda f: f.__name__)
def test_a_sampling_run_in_float64(sampler):
    """All of it: halving the precision of the network's weights moves the result by 1e-8, not by 1e-4."""
    network = build("unet")
    process = DiffusionConfig(diffusion_steps=100)
    x_T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(100, 2, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def run(network: nn.Module, x_T: Tensor) -> Tensor:
        model = Model(network, process.build(), (1, 8, 8), Labels(5), process).respace(10)
        *_, last = sampler(model, x_T, y=torch.tensor([1, 2]), noise_sampler=lambda x, i: noise[i].to(x))
        return last.x

    coarse = run(network, x_T)
    exact = run(network.double(), x_T.double())
    changed = run(with_rounded_weights(network, 1, 0), x_T.double())
    assert coarse.dtype == torch.float32 and exact.dtype == torch.float64
    assert 0 < (changed - exact).abs().max() < 1e-4 * (coarse - exact).abs().max()


@torch.no_grad()
def test_bfloat16(name, prepare):
    network = build(name)
    expected = call(network)
    network = prepare(network.to(torch.bfloat16))
    got = network(**arguments(network, torch.bfloat16))
    assert got.dtype == torch.bfloat16
    assert 0 < reference.error(got.float(), expected) < 0.2
    assert network(**arguments(network)).dtype == torch.float32  # computed in bf16, returned in the dtype of x


# -- hooks -----------------------------------------------------------------------------------------------------------


def submodules(network: nn.Module) -> dict[str, nn.Module]:
    """All that have a forward of their own."""
    return {name: m for name, m in network.named_modules() if not isinstance(m, nn.ModuleList)}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_on_every_submodule_fire(name, prepare, kind):
    network, fired = prepare(build(name)), Counter[str]()
    with torch.no_grad():
        expected = call(network)
    handles = [
        getattr(module, f"register_{kind}_hook")(lambda *_, key=key: fired.update([key]))
        for key, module in submodules(network).items()
    ]
    given = arguments(network)
    output = network(**given | {"x": given["x"].requires_grad_()})
    output.sum().backward()
    unseen = (
        {"time_embed", "time_embed.0", "time_embed.1", "time_embed.2", "label_emb"} if "backward" in kind else set()
    )
    constant = {key for key in submodules(network) if "emb_layers" in key} if "backward" in kind else set()
    assert set(fired) >= set(submodules(network)) - unseen - constant  # the embedding has no gradient here
    for handle in handles:
        handle.remove()
    assert (output - expected).abs().max() <= rounding(network)
    with torch.no_grad():
        assert torch.equal(call(network), expected)  # and the accelerated network is fast again


def test_backward_hooks_fire_on_embeddings_too(name):
    network, fired = build(name).requires_grad_(True), set()
    for key, module in submodules(network).items():
        module.register_full_backward_hook(lambda *_, key=key: fired.add(key))
    given = arguments(network)
    network(**given | {"x": given["x"].requires_grad_()}).sum().backward()
    assert fired == set(submodules(network))


def test_global_hooks_fire_on_every_submodule(name, prepare):
    network, seen = prepare(build(name)), set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        with torch.no_grad():
            call(network)
    finally:
        handle.remove()
    assert seen >= set(submodules(network).values())


def test_a_hook_may_change_the_output(name, prepare):
    """Of a norm, whose output fused kernels do not even make."""
    network = prepare(build(name))
    block = next(m for m in network.modules() if isinstance(m, ResBlock))
    with torch.no_grad():
        before = call(network)
        handle = block.in_layers[0].register_forward_hook(lambda module, args, output: 0 * output)
        assert not torch.allclose(call(network), before)
        handle.remove()
        assert torch.equal(call(network), before)


# -- compilers, transforms and wrappers ------------------------------------------------------------------------------


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize("name", only("unet", "classifier"))
@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), "aot_eager"])
def test_torch_compile_without_graph_breaks(name, prepare, backend):
    torch._dynamo.reset()
    network = prepare(build(name))
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    assert (call_as(compiled, network) - call(network)).abs().max() <= rounding(network)


def call_as(function: Callable[..., Tensor], network: nn.Module) -> Tensor:
    return function(**arguments(network))


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize("name", only("upsampler", "classifier"))
def test_torch_export(name, prepare):
    network = prepare(build(name))
    program = torch.export.export(network, (), kwargs=arguments(network))
    assert (call_as(program.module(), network) - call(network)).abs().max() <= rounding(network)
    assert set(program.state_dict) == set(network.state_dict())


@pytest.mark.thorough
@torch.no_grad()
def test_functional_call(name, prepare):
    network, other = prepare(build(name)), randomised(NETWORKS[name](), 7)
    call(network)
    got = torch.func.functional_call(network, dict(other.named_parameters()), (), arguments(network))
    assert (got - call(other)).abs().max() <= rounding(other)


@pytest.mark.thorough
def test_vmap_and_jvp(name, prepare):
    network = prepare(build(name))
    given = arguments(network)
    x, others = given.pop("x"), given
    with torch.no_grad():
        expected = network(x, **others)
        one_by_one = torch.func.vmap(lambda x, kw: network(x[None], **{k: v[None] for k, v in kw.items()})[0])
        assert (one_by_one(x, others) - expected).abs().max() <= rounding(network)
    dx = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the others have no forward derivative
        value, slope = torch.func.jvp(lambda x: network(x, **others).square().sum(), (x,), (dx,))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf, **others).square().sum(), leaf)
    assert slope.item() == pytest.approx((gradient * dx).sum().item(), rel=1e-3)
    assert value.item() == pytest.approx(expected.square().sum().item(), rel=1e-4)


@contextmanager
def process_group(tmp_path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.process
@pytest.mark.skipif(not dist.is_available() or os.name == "nt", reason="needs gloo")
@pytest.mark.parametrize("accelerated", [False, True])
def test_distributed_data_parallel(name, tmp_path, accelerated):
    network = build(name).requires_grad_(True)
    call(network).square().sum().backward()
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    fast = accelerate(network, precision="fp32", training=True) if accelerated else network
    with process_group(tmp_path):
        wrapped = nn.parallel.DistributedDataParallel(fast)
        call_as(wrapped, network).square().sum().backward()
    size = max(g.abs().max() for g in expected)
    assert all((p.grad - g).abs().max() < 1e-4 * size for p, g in zip(network.parameters(), expected))


class LowRank(nn.Module):
    """LoRA: a layer and a product of two narrow ones."""

    def __init__(self, layer: nn.Conv1d):
        super().__init__()
        self.layer = layer
        generator = torch.Generator().manual_seed(0)
        self.down = nn.Parameter(torch.randn(2, layer.in_channels, generator=generator) * 0.1)
        self.up = nn.Parameter(torch.randn(layer.out_channels, 2, generator=generator) * 0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens) + F.linear(F.linear(tokens, self.down), self.up)


@pytest.mark.thorough
def test_a_low_rank_layer_in_place_of_another(name, prepare):
    network = prepare(build(name))
    with torch.no_grad():
        before = call(network)
    block = next(m for m in network.modules() if isinstance(m, AttentionBlock))
    block.qkv = LowRank(block.qkv)
    after = call(network)
    after.sum().backward()
    assert not torch.allclose(after, before) and block.qkv.up.grad.abs().max() > 0
    merged = build(name)
    qkv = next(m for m in merged.modules() if isinstance(m, AttentionBlock)).qkv
    with torch.no_grad():
        qkv.weight += (block.qkv.up @ block.qkv.down)[:, :, None]
        assert (call(merged) - after).abs().max() <= rounding(merged)
