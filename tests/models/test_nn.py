"""The networks: against OpenAI's (tests/openai), and against plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from half_torso import with_half_torso
from rounding import outputs_with_rounding
from torch import Tensor, nn

from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig
from admg.models.blocks import (
    AttentionBlock,
    AttentionPool,
    Downsample,
    GroupNorm32,
    ResBlock,
    Upsample,
    timestep_embedding,
)
from admg.models.unet import effective_attention_resolutions

CASES = [(file, name) for file in ("forward", "more") for name in reference.table(f"{file}.json")]
PUBLISHED = reference.table("published.json.gz")
SMALL = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "image_size": 16, "attention_resolutions": (8,)}


def small(**changes) -> UNet:
    return reference.fill(UNet(UNetConfig(**SMALL | {"head_channels": 32} | changes)))


def small_classifier(**changes) -> NoisyClassifier:
    options = SMALL | {"head_channels": 32, "num_classes": 10} | changes
    return reference.fill(NoisyClassifier(ClassifierConfig(**options)))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough for attention to be far from uniform."""
    for i, p in enumerate(module.parameters()):
        p.data = noise(*p.shape, seed=seed + i) * (1 if p.ndim == 1 else 2 * math.prod(p.shape[1:]) ** -0.5)
    return module.requires_grad_(False)


T = torch.tensor([17, 803])

# -- OpenAI's networks -----------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("file,name", CASES, ids=[name for _, name in CASES])
def test_output_equals_the_references(file, name):
    case = reference.table(f"{file}.json")[name]
    network = reference.build(case["kind"], case["flags"])
    if file == "forward":
        assert reference.shapes(network) == reference.table("forward-shapes.json")[name]
    with torch.no_grad():
        output = reference.fill(network)(**reference.inputs(case["kind"], case["flags"], case.get("size")))
    assert list(output.shape) == case["full_shape"] and output.dtype == torch.float32
    if output.ndim == 4:
        output = output[..., :: case["stride"], :: case["stride"]]
    assert reference.error_by_image(output, reference.arrays(f"{file}.npz")[name]) < 1e-5


@pytest.mark.thorough
@pytest.mark.parametrize("name", PUBLISHED, ids=[name.removeprefix("openai/") for name in PUBLISHED])
def test_parameters_of_the_published_models(name):
    with torch.device("meta"):  # no memory, no random numbers
        network = reference.build(PUBLISHED[name]["kind"], PUBLISHED[name]["flags"])
    assert reference.shapes(network) == PUBLISHED[name]["parameters"]


# -- the blocks against formulas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 31, 64])
def test_timestep_embedding(dim):
    timesteps = np.array([0, 0.5, 17.25, 999])
    angles = timesteps[:, None] * 10_000.0 ** (-np.arange(dim // 2) / (dim // 2))
    expected = np.concatenate([np.cos(angles), np.sin(angles), np.zeros((4, dim % 2))], axis=1)
    got = timestep_embedding(torch.tensor(timesteps), dim)
    assert got.dtype == torch.float32 and got.shape == (4, dim)
    assert np.abs(got.numpy() - expected).max() < 2e-4  # float32 angles up to 999
    assert torch.equal(
        timestep_embedding(torch.tensor([3, 999]), dim), timestep_embedding(torch.tensor([3.0, 999]), dim)
    )


def attend(qkv: Tensor, heads: int, new_order: bool) -> Tensor:
    """Full softmax attention of (N, 3C, T), by plain sums over the indices n, h(ead), c(hannel), t and s (tokens)."""
    n, c3, tokens = qkv.shape
    if new_order:
        q, k, v = qkv.reshape(n, 3, heads, -1, tokens).unbind(1)
    else:
        q, k, v = qkv.reshape(n, heads, 3, -1, tokens).unbind(2)
    weights = torch.softmax(torch.einsum("nhct,nhcs->nhts", q, k) / math.sqrt(q.shape[2]), dim=-1)
    return torch.einsum("nhts,nhcs->nhct", weights, v).reshape(n, c3 // 3, tokens)


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("heads", [1, 4])
def test_attention_block_is_softmax_attention_in_either_order_of_rows(new_order, heads):
    block = randomised(AttentionBlock(64, heads, new_order=new_order))
    x = noise(2, 64, 3, 5)
    groups = x.reshape(2, 32, -1)
    normed = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normed = normed.reshape(2, 64, 15) * block.norm.weight[:, None] + block.norm.bias[:, None]
    qkv = torch.einsum("oc,nct->not", block.qkv.weight[:, :, 0], normed) + block.qkv.bias[:, None]
    proj = torch.einsum("oc,nct->not", block.proj_out.weight[:, :, 0], attend(qkv, heads, new_order))
    expected = x + (proj + block.proj_out.bias[:, None]).reshape(x.shape)
    assert reference.error(block(x), expected) < 1e-5
    if heads > 1:
        block.new_order = not new_order
        assert reference.error(block(x), expected) > 0.1


def test_attention_pool_is_the_first_token_of_full_attention():
    pool = randomised(AttentionPool(4, 64, heads=2, out_dim=7)).double()
    x = noise(3, 64, 4, 4).double()
    tokens = x.reshape(3, 64, 16)
    tokens = torch.cat([tokens.mean(2, keepdim=True), tokens], dim=2) + pool.positional_embedding
    qkv = torch.einsum("oc,nct->not", pool.qkv_proj.weight[:, :, 0], tokens) + pool.qkv_proj.bias[:, None]
    answer = attend(qkv, 2, new_order=True)[:, :, 0]
    expected = answer @ pool.c_proj.weight[:, :, 0].T + pool.c_proj.bias
    assert reference.error(pool(x), expected) < 1e-12


@pytest.mark.parametrize("resample", ["up", "down"])
@pytest.mark.parametrize("scale_shift_norm", [True, False])
def test_residual_block(scale_shift_norm, resample):
    kind = {"up": Upsample, "down": Downsample}[resample]
    block = randomised(ResBlock(32, 64, 16, scale_shift_norm=scale_shift_norm, resample=kind))
    x, emb = noise(2, 32, 6, 4), noise(2, 16, seed=1)

    def resampled(a: Tensor) -> Tensor:
        if resample == "up":
            return a.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return (a[..., ::2, ::2] + a[..., 1::2, ::2] + a[..., ::2, 1::2] + a[..., 1::2, 1::2]) / 4

    norm1, _, conv1 = block.in_layers
    norm2, _, _, conv2 = block.out_layers
    h = conv1(resampled(F.silu(F.group_norm(x, 32, norm1.weight, norm1.bias))))
    y = block.emb_layers[1](F.silu(emb))[:, :, None, None]
    if scale_shift_norm:  # AdaGN(h, y) = y_s GroupNorm(h) + y_b
        h = (1 + y[:, :64]) * F.group_norm(h, 32, norm2.weight, norm2.bias) + y[:, 64:]
    else:
        h = F.group_norm(h + y, 32, norm2.weight, norm2.bias)
    expected = block.skip_connection(resampled(x)) + conv2(F.silu(h))
    assert reference.error(block(x, emb), expected) < 1e-5


@pytest.mark.parametrize("dtype,bits", [(torch.bfloat16, 8), (torch.float16, 11)])
def test_group_norm_of_low_precision_has_float32_statistics(dtype, bits):
    norm = randomised(GroupNorm32(32))
    x = (30.05 + noise(2, 32, 64, 64)).to(dtype)  # the means have more bits than that
    expected = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double())
    got = norm(x)
    assert got.dtype == dtype
    assert ((got.double() - expected).abs() <= 2.0**-bits * expected.abs() + 1e-3).all()  # only the output is rounded


def test_new_networks_begin_as_the_identity():
    x, emb = noise(2, 64, 8, 8), noise(2, 16, seed=1)
    assert torch.equal(ResBlock(64, 64, 16)(x, emb), x)
    assert torch.equal(AttentionBlock(64, 2)(x), x)
    assert not UNet(UNetConfig(**SMALL, head_channels=32))(noise(2, 3, 16, 16), T).any()
    assert not NoisyClassifier(ClassifierConfig(**SMALL, head_channels=32, pool="adaptive"))(
        noise(2, 3, 16, 16), T
    ).any()


# -- the whole networks ----------------------------------------------------------------------------------------------


@pytest.mark.thorough
@torch.no_grad()
def test_heads_by_count_and_by_width_agree():
    options = {"channel_mult": (2, 2)}  # 64 channels everywhere
    by_width, by_count = (small(**options, head_channels=h, num_heads=2) for h in (32, 0))
    other = small(**options, head_channels=0, num_heads=4)
    x = noise(2, 3, 16, 16)
    assert torch.equal(by_width(x, T), by_count(x, T))
    assert reference.error(other(x, T), by_count(x, T)) > 1e-4


@torch.no_grad()
def test_heads_on_the_way_up_are_given_by_count_only():
    networks = [small(channel_mult=(2, 2), head_channels=h, num_heads=2, num_heads_upsample=4) for h in (0, 32)]
    counts = [
        {m.heads for part in (n.input_blocks, n.output_blocks) for m in part.modules() if isinstance(m, AttentionBlock)}
        for n in networks
    ]
    assert counts == [{2, 4}, {2}]  # as the reference, whose num_head_channels goes before either count


@pytest.mark.parametrize("conv_resample", [True, False])
def test_resampling_without_residual_blocks(conv_resample):
    network = small(resblock_updown=False, conv_resample=conv_resample)
    names = {name for name in reference.shapes(network) if name.endswith((".op.weight", ".conv.weight"))}
    assert names == ({"input_blocks.2.0.op.weight", "output_blocks.1.2.conv.weight"} if conv_resample else set())
    assert network(noise(2, 3, 16, 16), T).shape == (2, 6, 16, 16)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["adaptive", "spatial", "spatial_v2"])
def test_pools_of_means_take_any_size(pool):
    classifier = small_classifier(pool=pool)
    for size in (16, 16), (8, 24):
        assert classifier(noise(2, 3, *size), T).shape == (2, 10)


@pytest.mark.thorough
@torch.no_grad()
def test_null_label_adds_no_embedding():
    network = small(num_classes=10)
    x = noise(4, 3, 16, 16)
    t = torch.tensor([1, 50, 500, 999])
    without = UNet(UNetConfig(**SMALL, head_channels=32)).eval()
    without.load_state_dict({k: v for k, v in network.state_dict().items() if k != "label_emb.weight"})
    expected = without(x, t)
    assert torch.equal(network(x, t), expected)
    assert torch.equal(network(x, t, y=torch.full((4,), -1)), expected)
    mixed = network(x, t, y=torch.tensor([3, -1, 0, -1]))
    for i, y in enumerate([3, None, 0, None]):
        alone = network(x[i : i + 1], t[i : i + 1], y=None if y is None else torch.tensor([y]))
        assert reference.error(mixed[i : i + 1], alone) < 1e-5
        assert (reference.error(alone, expected[i : i + 1]) > 1e-3) == (y is not None)


def test_null_label_trains_no_embedding():
    network = small(num_classes=5).requires_grad_(True)
    network(noise(3, 3, 16, 16), torch.tensor([5, 5, 5]), y=torch.tensor([3, -1, 4])).square().sum().backward()
    assert network.label_emb.weight.grad.abs().sum(1).gt(0).tolist() == [False, False, False, True, True]


@pytest.mark.thorough
@torch.no_grad()
def test_one_timestep_serves_all_images():
    network, classifier, x = small(num_classes=5), small_classifier(), noise(3, 3, 16, 16)
    y = torch.tensor([1, 2, -1])
    one, all_ = torch.tensor([321]), torch.tensor([321] * 3)
    assert reference.error(network(x, one), network(x, all_)) < 1e-5
    assert reference.error(network(x, one, y), network(x, all_, y)) < 1e-5
    assert reference.error(classifier(x, one), classifier(x, all_)) < 1e-5


@pytest.mark.thorough
@torch.no_grad()
def test_dropout_only_while_training():
    network, x = small(dropout=0.5), noise(2, 3, 16, 16)
    assert torch.equal(network(x, T), small()(x, T))
    network.train()
    assert reference.error(network(x, T), network(x, T)) > 1e-3


@pytest.mark.thorough
@pytest.mark.parametrize("make", [small, small_classifier])
def test_activation_checkpointing_gives_the_same_gradients(make):
    x, results, passes = noise(2, 3, 16, 16), [], []
    for checkpoint in (False, True):
        network = make(dropout=0.1, checkpoint=checkpoint).train().requires_grad_(True)
        count = []
        for module in network.middle_block:
            norm = module.norm if isinstance(module, AttentionBlock) else module.in_layers[0]
            norm.register_forward_hook(lambda *_, count=count: count.append(1))
        x_in = x.clone().requires_grad_(True)
        torch.manual_seed(0)
        output = network(x_in, T)
        output.square().sum().backward()
        results.append([output.detach(), x_in.grad, *(p.grad for p in network.parameters())])
        passes.append(len(count))
    assert passes == [3, 6]  # computed again in the backward pass
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.thorough
@torch.no_grad()
def test_memory_format_does_not_matter():
    network, x = small(), noise(2, 3, 16, 16)
    assert reference.error(network.to(memory_format=torch.channels_last)(x, T), small()(x, T)) < 1e-5
    assert reference.error(network(x.to(memory_format=torch.channels_last), T), small()(x, T)) < 1e-5


def has_bf16_attention() -> bool:
    """Whether torch can compute attention in bf16; torch 2.13 fails with ATEN_CPU_CAPABILITY=default."""
    q = torch.zeros(1, 1, 64, 32, dtype=torch.bfloat16)
    try:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    except RuntimeError:
        return False
    return True


@torch.no_grad()
@pytest.mark.skipif(not has_bf16_attention(), reason="this torch, so restricted, fails in bf16 attention")
@pytest.mark.parametrize("make", [small, small_classifier])
def test_autocast_ends_in_float32(make):
    network, x = make(), noise(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(x, T)
    assert output.dtype == torch.float32
    assert 1e-5 < reference.error(output, network(x, T)) < 0.05


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["classifier64-attention", "upsampler-small"])
def test_a_torso_of_low_precision(name, dtype):
    """The error is that of storing every result of the torso in this format, as this network amplifies it."""
    entry = reference.table("forward.json")[name]
    network = reference.fill(reference.build(entry["kind"], entry["flags"]))
    arguments = {k: v[:1] for k, v in reference.inputs(entry["kind"], entry["flags"]).items()}
    expected = network(**arguments)
    parts = [getattr(network, name, nn.ModuleList()) for name in ("input_blocks", "middle_block", "output_blocks")]
    modules = [m for part in parts for m in part.modules() if not isinstance(m, nn.ModuleList)]
    draws = outputs_with_rounding(network, modules, dtype, lambda network: network(**arguments))
    amplified = max(reference.error(output, expected) for output in draws)
    half = with_half_torso(network, dtype)
    actual = half(**arguments)
    assert actual.dtype == torch.float32
    assert amplified / 10 < reference.error(actual, expected) < 2 * amplified
    kinds = {k: v.dtype for k, v in half.state_dict().items()}
    assert kinds["input_blocks.1.0.in_layers.2.weight"] == kinds["middle_block.1.qkv.weight"] == dtype
    stay = ("time_embed.0.weight", "input_blocks.1.0.in_layers.0.weight", "input_blocks.1.0.emb_layers.1.weight")
    assert {kinds[k] for k in stay} | {v for k, v in kinds.items() if k.startswith("out.")} == {torch.float32}


@torch.no_grad()
def test_low_res_is_upsampled_bilinearly_from_any_size():
    config = SuperResConfig(**SMALL, head_channels=32)
    network = reference.fill(SuperResUNet(config))
    plain = UNet(config, in_channels=6).eval()
    plain.load_state_dict(network.state_dict())
    x, low_res = noise(2, 3, 16, 24), torch.arange(4.0).expand(2, 3, 3, 4)  # columns 0, 1, 2, 3: 6 of 24 pixels each
    columns = ((torch.arange(24) + 0.5) / 6 - 0.5).clamp(0, 3).expand(2, 3, 16, 24)
    assert reference.error(network(x, T, low_res), plain(torch.cat([x, columns], dim=1), T)) < 1e-5


@pytest.mark.thorough
def test_channels_of_grey_images():
    for learn_variance, c_out in (True, 2), (False, 1):
        network = small(image_channels=1, learn_variance=learn_variance)
        assert network(noise(2, 1, 16, 16), T).shape == (2, c_out, 16, 16)
    assert small_classifier(image_channels=1)(noise(2, 1, 16, 16), T).shape == (2, 10)


# -- what cannot be --------------------------------------------------------------------------------------------------


def test_default_multipliers_by_image_size():
    assert UNetConfig(image_size=32).channel_mult == (1, 2, 2, 2)
    assert ClassifierConfig(image_size=512).channel_mult == (0.5, 1, 1, 2, 2, 4, 4)
    with pytest.raises(ValueError, match=r"image_size must be a multiple of 2 \(preferably 16\) unless channel_mult"):
        UNetConfig(image_size=25)
    with pytest.raises(ValueError, match="image size 36 must be a positive multiple of 8"):
        UNetConfig(image_size=36, channel_mult=(1, 1, 1, 1))


@pytest.mark.parametrize("height,width", [(16, 17), (15, 16), (7, 7)])
def test_a_size_that_the_levels_do_not_divide(height, width):
    for network in small(), small_classifier(pool="adaptive"):
        with pytest.raises(ValueError, match=rf"must be multiples of 2, got {height}x{width}$"):
            network(noise(2, 3, height, width), T)


def test_attention_pool_of_another_size():
    with pytest.raises(ValueError, match=r"8x8 features, got \(16, 16\)"):
        small_classifier()(noise(2, 3, 32, 32), T)


def test_labels_for_an_unconditional_network():
    with pytest.raises(ValueError, match="y must be None"):
        small()(noise(2, 3, 16, 16), T, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"channels": 48}, "every width .* multiple of 32 .*, got 48"),
        ({"channel_mult": (1, 1.25)}, r"every width .* multiple of 32 \(group norm\), got 40"),
        ({"head_channels": 64}, "32 channels .* heads of 64"),
        ({"head_channels": 48, "channel_mult": (2, 2)}, "64 channels .* heads of 48"),
        ({"head_channels": -1}, "head_channels must be at least 0"),  # guided-diffusion's way to say "by count"
        ({"head_channels": 0, "num_heads": 5}, "32 channels .* into 5 attention heads"),
        ({"head_channels": 0, "num_heads": 0}, "heads"),
        ({"head_channels": 0, "num_heads": -2}, "heads"),
        ({"head_channels": 0, "num_heads": 4, "num_heads_upsample": 5}, "64 channels .* into 5 attention heads"),
        ({"attention_resolutions": (8, 0)}, "attention_resolutions"),
    ],
    ids=str,
)
def test_widths_and_heads_that_do_not_fit(changes, message):
    options = SMALL | {"head_channels": 32, "attention_resolutions": (16, 8)} | changes
    with pytest.raises(ValueError, match=message):
        UNet(UNetConfig(**options))


def test_pools_that_cannot_be():
    with pytest.raises(ValueError, match=r"pool must be .*spatial_v2, got 'mean'"):
        NoisyClassifier(ClassifierConfig(**SMALL, head_channels=32, pool="mean"))
    with pytest.raises(ValueError, match="attention pool needs head_channels"):
        NoisyClassifier(ClassifierConfig(**SMALL, head_channels=0))


@pytest.mark.parametrize(
    "size, mult, attention",
    [
        (96, (1, 2, 3, 4), (24, 12)),
        (100, (1, 2, 3), (25,)),
        (160, (1, 1, 2, 3, 4), (40, 20, 10)),
        (224, (1, 1, 2, 3, 4), (28, 14)),
        (28, (1, 2, 2), (28, 14, 7)),
        (8, (1, 2), (32, 16, 8)),  # one of the paper's sides is there
    ],
)
def test_any_size_has_a_default_architecture_with_attention(size, mult, attention):
    """The widths are those of the next smaller known size, and attention is at the levels nearest to 32, 16 and 8."""
    config = UNetConfig(image_size=size)
    assert (config.channel_mult, config.attention_resolutions) == (mult, attention)
    assert [config.attends(level) for level in range(config.levels)] == [
        size >> level in attention for level in range(config.levels)
    ]


def test_attention_that_no_level_has_is_refused():
    with pytest.raises(ValueError, match="attention_resolutions 32,16: no level has 32 pixels; the levels have 96, 48"):
        UNetConfig(image_size=96, attention_resolutions=(32, 16))
    with pytest.raises(ValueError, match=r"attention_resolutions 32,12: no level has 12 pixels; .* 64, 32, 16, 8"):
        UNetConfig(image_size=64, attention_resolutions=(32, 12))
    assert UNetConfig(image_size=96, attention_resolutions=()).attention_resolutions == ()


def test_attention_of_guided_diffusion_is_understood_as_it_does():
    """image_size // resolution is compared with the factor of each level; what matches none is ignored."""
    assert effective_attention_resolutions((32, 16, 8), 96, 4) == () and effective_attention_resolutions(
        (32, 16, 8), 64, 4
    ) == (32, 16, 8)
    assert effective_attention_resolutions((30, 16), 64, 4) == (32, 16) and effective_attention_resolutions(
        (32, 16, 8), 48, 4
    ) == (48,)
    assert effective_attention_resolutions((64, 16), 32, 4) == (16,) and effective_attention_resolutions(
        (0,), 32, 4
    ) == (0,)
