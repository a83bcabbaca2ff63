"""What makes it fast changes no number: each optimisation against the plain computation, and what it promises."""

from __future__ import annotations

import contextlib
import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import TRUNK, by_formula, randomised, up_to_second_derivatives
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import admg
from admg import guidance, samplers
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.cli.main import main
from admg.diffusion.config import DiffusionConfig
from admg.engine import accelerate, memory
from admg.engine import acceleration as engine_acceleration
from admg.engine.compiling import compiled, compiles
from admg.engine.cpu import winograd
from admg.engine.cpu.prepack import prepacked
from admg.engine.ops import group_norm
from admg.engine.precision import resolve
from admg.generation import acceleration, recipe
from admg.guidance.classifier import log_prob_gradient
from admg.models import ClassifierConfig, NoisyClassifier, UNet, UNetConfig
from admg.models.blocks import GroupNorm32

LAYOUTS = [torch.contiguous_format, torch.channels_last]

# -- norm, modulation and SiLU in one --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_norm_with_modulation_and_silu_and_its_gradients(layout, silu, rows):
    torch.manual_seed(0)
    norm = GroupNorm32(64)
    for p in norm.parameters():
        nn.init.normal_(p)
    x = (torch.randn(3, 64, 12, 20) * 2 + 1).to(memory_format=layout)
    given = [torch.randn(rows, 64) for _ in range(2)] if rows else [None, None]
    weights = torch.randn(x.shape)

    def results(dtype: torch.dtype, function) -> list[Tensor]:
        module = GroupNorm32(64).to(dtype)
        module.load_state_dict(norm.state_dict())
        inputs = [x.to(dtype), *[g.to(dtype) for g in given if g is not None]]
        inputs = [i.detach().clone(memory_format=torch.preserve_format).requires_grad_() for i in inputs]
        y = function(module, *inputs)
        leaves = [*inputs, module.weight, module.bias]
        return [y.detach(), *torch.autograd.grad((y * weights.to(dtype)).sum(), leaves)]

    def plain(module, x, scale=None, shift=None):
        return by_formula(x, module, scale, shift, silu)

    ours = results(torch.float32, lambda module, *inputs: group_norm(module, *inputs, silu=silu))
    for got, expected in zip(ours, results(torch.float64, plain), strict=True):
        assert (got - expected).abs().max() < 2e-6 * (1 + expected.abs().max()) * x[0, 0].numel() ** 0.5
    assert ours[0].is_contiguous(memory_format=layout)
    with torch.no_grad():
        assert (group_norm(norm, x, *given, silu=silu) - ours[0]).abs().max() < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_second_derivatives_of_the_norm(layout):
    """d/dx of |d/dx sum(y·w)|², which guides that differentiate a gradient need."""
    torch.manual_seed(0)
    norm, scale, shift = GroupNorm32(64), torch.randn(2, 64), torch.randn(2, 64)
    x, w = torch.randn(2, 64, 4, 4).to(memory_format=layout), torch.randn(2, 64, 4, 4)

    def second(function, dtype: torch.dtype) -> Tensor:
        leaf = x.to(dtype).requires_grad_()
        first = torch.autograd.grad((function(leaf) * w.to(dtype)).sum(), leaf, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    got = second(lambda x: group_norm(norm, x, scale, shift, silu=True), torch.float32)
    exact = GroupNorm32(64).double()
    expected = second(lambda x: by_formula(x, exact, scale.double(), shift.double(), True), torch.float64)
    assert expected.abs().max() > 1 and (got - expected).abs().max() < 1e-4 * expected.abs().max()


# -- convolutions with prepacked weights, and Winograd's --------------------------------------------------------------


@pytest.mark.parametrize("n,c_in,c_out,height,width", [(1, 3, 5, 16, 16), (3, 4, 2, 64, 32), (5, 7, 3, 2, 64)])
def test_winograd_convolution(n, c_in, c_out, height, width):
    """By torch, against the direct one in float64, one and several images at a time."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(n, c_in, height, width), torch.randn(c_out, c_in, 3, 3), torch.randn(c_out)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    for b in (bias, None):
        shift = 0 if b is not None else bias.double()[:, None, None]
        got = winograd.convolve(x, winograd.transform_weight(weight, 2), b)
        assert (got - (expected - shift)).abs().max() < 2e-5
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("c_in,c_out,kernel", [(8, 12, 3), (12, 8, 1), (192, 224, 3)])  # the last by Winograd's
def test_prepacked_convolutions_and_their_gradients(c_in, c_out, kernel):
    torch.manual_seed(0)
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)
    x, w = torch.randn(2, c_in, 12, 12), torch.randn(2, c_out, 12, 12)
    assert bool(winograd.tile(conv.weight, x)) == (c_in == 192)

    fast = prepacked(conv, torch.float32)
    got = up_to_second_derivatives(fast, x, w, torch.float32)
    slope = torch.func.jvp(fast, (x,), (x,))[1]
    for value, expected in zip(got, up_to_second_derivatives(conv, x, w, torch.float64), strict=True):
        assert (value - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (slope - (got[0] - conv.bias.float()[:, None, None])).abs().max() < 1e-4


def test_a_strided_convolution_is_not_prepacked():
    strided = nn.Conv2d(4, 4, 3, stride=2, padding=1)
    assert prepacked(strided, torch.float32) is strided  # its gradient is another kind of convolution


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias)


UNLIKE = {
    "circular": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    "own forward": lambda: Standardised(8, 8, 3, padding=1),
    "weight norm": lambda: nn.utils.weight_norm(nn.Conv2d(8, 8, 3, padding=1)),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", UNLIKE)
def test_convolutions_other_than_plain_ones_are_unchanged(name):
    torch.manual_seed(0)
    conv, x = UNLIKE[name](), torch.randn(2, 8, 8, 8)
    expected = conv(x)
    torch.testing.assert_close(prepacked(conv, torch.float32)(x), expected, rtol=0, atol=1e-6)


def test_forward_mode_derivatives_pass_prepacked_convolutions():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 32, 3, padding=1)
    x, dx = torch.randn(2, 2, 8, 8, 8)
    expected = torch.func.jvp(conv, (x,), (dx,))[1]
    fast = prepacked(conv, torch.float32)
    with torch.autograd.forward_ad.dual_level():
        found = torch.autograd.forward_ad.unpack_dual(fast(torch.autograd.forward_ad.make_dual(x, dx))).tangent
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_through_accelerated_networks(recompute):
    """With respect to the image, of the classifier's logits, and with activations computed again."""
    network = randomised(NoisyClassifier(ClassifierConfig(**TRUNK, num_classes=5, checkpoint=recompute)), 0)
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor([50]), torch.tensor([0, 4, -1])
    expected = log_prob_gradient(network, x, t, y)
    got = log_prob_gradient(accelerate(network, precision="fp32"), x, t, y)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max() and not got[2].any()


def test_large_batches_run_channels_last(tiny_model, monkeypatch):
    """On a CPU, without prepacked weights too, with equal results."""
    monkeypatch.setattr(engine_acceleration, "prepacked", lambda layer, dtype: layer)
    fused, seen = accelerate(tiny_model.network, precision="fp32")._function().network, []
    x, t = torch.randn(256, 1, 8, 8), torch.tensor([5])
    hook = fused.middle_block.register_forward_hook(lambda _, args, out: seen.append(out))
    with torch.no_grad():
        large, small = fused(x, t), fused(x[:2], t)
    hook.remove()
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and seen[1].is_contiguous()
    assert (large[:2] - small).abs().max() < 1e-5


@pytest.mark.thorough
def test_images_of_a_seed_equal_the_plain_networks(tiny_model, tiny_classifier, monkeypatch):
    """Accelerated networks against the plain ones, by both algorithms of the paper."""
    options = {"guide": guidance.ClassifierGuidance(tiny_classifier, 2.0), "steps": 10, "progress": False}
    fast = [admg.sample(tiny_model, [0, 1, 2, 3], sampler=sampler, **options) for sampler in ("ddim", "ddpm")]
    monkeypatch.setattr(recipe, "accelerate_parts", lambda parts, **_: parts)
    plain = [admg.sample(tiny_model, [0, 1, 2, 3], sampler=sampler, **options) for sampler in ("ddim", "ddpm")]
    assert all(0 < (f.x - p.x).abs().max() < 1e-4 for f, p in zip(fast, plain))


# -- work that is not done -------------------------------------------------------------------------------------------


class Convolutions(TorchDispatchMode):
    """What is asked of the backward pass of each: the gradients of the input, the weight and the bias."""

    def __init__(self):
        super().__init__()
        self.forward, self.backward = 0, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.forward += op is torch.ops.aten.convolution.default
        if op is torch.ops.aten.convolution_backward.default:
            self.backward.append(tuple(args[-1]))
        return op(*args, **kwargs or {})


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_of_the_classifiers_weights_are_not_computed(tiny_classifier, frozen):
    network = tiny_classifier.network.requires_grad_(not frozen)
    with Convolutions() as seen:
        log_prob_gradient(network, torch.randn(2, 1, 8, 8), torch.tensor([5]), torch.tensor([0, 1]))
    network.requires_grad_(False)
    assert seen.forward > 5 and seen.backward == [(True, False, False)] * seen.forward
    assert all(p.grad is None for p in network.parameters())


def test_a_scale_of_zero_calls_no_classifier(tiny_model):
    def classifier(x, t):
        raise AssertionError

    admg.sample(tiny_model, [0], guide=guidance.ClassifierGuidance(classifier, 0.0), steps=2, progress=False)


def test_the_time_is_embedded_once_for_all_images(tiny_model, tiny_classifier):
    rows = []
    networks = tiny_model.network, tiny_classifier.network
    hooks = [n.time_embed.register_forward_hook(lambda _, args, out: rows.append(len(out))) for n in networks]
    guide = guidance.ClassifierGuidance(tiny_classifier, 1.0)
    admg.sample(tiny_model, [0, 1, 2, 3], guide=guide, steps=2, progress=False)
    for hook in hooks:
        hook.remove()
    assert rows == [1] * 4


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", [samplers.ddpm, samplers.ddim, samplers.dpmpp_2m], ids=lambda f: f.__name__)
def test_no_step_waits_for_the_device(tiny_classifier, sampler, monkeypatch):
    """On the device `meta` there are no numbers: whatever asks for one, as .item() or .cpu() do, fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which it does not have either
    config = DiffusionConfig(diffusion_steps=100)
    with torch.device("meta"):
        network = UNet(UNetConfig(**TRUNK, num_classes=5)).requires_grad_(False)
        classifier = NoisyClassifier(tiny_classifier.network.config).requires_grad_(False)
        x_T, y = torch.empty(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    model = Model(network, config.build(), (1, 8, 8), Labels(5), config).respace(4)
    guide = guidance.ClassifierGuidance(Classifier(classifier, config.build(), Labels(5)), 1.0)
    steps = list(sampler(model, x_T, y=y, guide=guide))
    assert len(steps) == 4 and steps[-1].x.shape == x_T.shape
    t = torch.zeros(2, dtype=torch.int64, device="meta")
    assert model.diffusion.timestep(t, "meta").shape == (2,)


# -- compiling -------------------------------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.thorough
def test_one_graph_serves_all_batch_sizes_steps_and_labels():
    network = randomised(UNet(UNetConfig(**TRUNK, num_classes=5)), 0)
    built = []

    def backend(graph, inputs):
        built.append(graph)
        return graph

    torch._dynamo.reset()
    with torch.no_grad():
        for n, t in itertools.product((3, 5, 2, 8, 7), (1, 50)):
            x, y = torch.randn(n, 1, 8, 8), torch.randint(5, (n,))
            expected = network(x, torch.tensor([t]), y=y)
            got = compiled(network, backend=backend)(x, torch.tensor([t]), y=y)  # built anew, as in sample()
            assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    assert len(built) == 1


@pytest.mark.no_cover
@pytest.mark.thorough
def test_a_failing_compiler_gives_one_warning(tiny_model):
    network = randomised(UNet(UNetConfig(**TRUNK)), 0)

    def backend(graph, inputs):
        raise RuntimeError("no C++ compiler")

    torch._dynamo.reset()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([5])
    warns = pytest.warns(UserWarning, match="continuing without it: no C++ compiler$".replace("+", r"\+"))
    fast = compiled(network, backend=backend)
    with torch.no_grad(), warns as warned:
        got = fast(x, t)
        fast(x, t)
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    with torch.no_grad():
        assert torch.equal(got, network(x, t))


@pytest.mark.slow
def test_compiled_images_are_the_same(tiny_model, tiny_classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("ADMG_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch._dynamo.reset()
    options = {
        "guide": guidance.ClassifierGuidance(tiny_classifier, 2.0),
        "steps": 5,
        "progress": False,
        "batch_size": 3,
    }
    plain, fast = (admg.sample(tiny_model, [0, 1, 2, 3, 4], compile=mode, **options) for mode in ("off", "on"))
    assert (plain.x - fast.x).abs().max() < 1e-4
    assert any((tmp_path / "inductor").rglob("*"))


def test_compile_modes():
    assert compiles("on") and not compiles("off") and not compiles("auto")
    with pytest.raises(ValueError, match="unknown compile mode 'yes': auto, on, off"):
        compiles("yes")


# -- precision and memory --------------------------------------------------------------------------------------------


def test_fp16_is_for_gpus(tiny_model):
    with pytest.raises(ValueError, match="precision fp16 needs a GPU: choose auto, fp32 or bf16 on cpu"):
        admg.sample(tiny_model, [0], precision="fp16", progress=False)
    assert resolve("auto", torch.device("cpu")) in ("fp32", "bf16") and resolve("bf16", torch.device("cpu")) == "bf16"
    with pytest.raises(ValueError, match="precision must be one of auto, fp32, bf16, fp16, got 'half'"):
        resolve("half", torch.device("cpu"))


def test_networks_of_a_guide_are_found(tiny_model, tiny_classifier):
    """Wherever it keeps them: they too run fast, and take memory."""
    inner = guidance.Interval(guidance.ClassifierGuidance(tiny_classifier, 1.0), 0.1, 1.0) + guidance.AutoGuidance(
        tiny_model
    )
    other = Model(nn.Identity(), tiny_model.diffusion, tiny_model.shape)
    found = acceleration.networks_of(other, inner + (lambda state: None))
    assert found[0] is other.network and {*found} == {other.network, tiny_classifier.network, tiny_model.network}
    assert acceleration.networks_of(tiny_model, None) == [tiny_model.network]


@pytest.mark.thorough
def test_a_run_continues_with_another_batch_size_or_compile_mode(tiny_folders, tmp_path, capsys):
    """As the processor has it, which run.json names; another batch size or compiling continue the same run."""
    same = ["sample", "--model", tiny_folders["model"], "--num", "2", "--steps", "2", "--out", str(tmp_path / "out")]
    assert not main(same)
    taken = resolve("auto", torch.device("cpu"))
    settings = json.loads((tmp_path / "out/run.json").read_text())
    assert taken in json.dumps(settings) and "auto" not in json.dumps(settings)
    capsys.readouterr()
    assert not main([*same, "--precision", taken, "--compile", "on", "--batch-size", "1"])
    assert "holds the finished run with these settings" in capsys.readouterr().out
    assert main([*same, "--precision", "fp16"]) == 2
    assert "precision fp16 needs a GPU" in capsys.readouterr().err


class Limited(nn.Module):
    """A network that has memory for `most` images."""

    def __init__(self, network: nn.Module, most: int):
        super().__init__()
        self.network, self.config, self.most, self.sizes = network, network.config, most, []

    def forward(self, x, timesteps, y=None):
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.network(x, timesteps, y)


@pytest.mark.thorough
def test_batches_are_halved_when_memory_runs_out(tiny_model, monkeypatch):
    limited = Limited(tiny_model.network, 3)
    model = Model(limited, tiny_model.diffusion, tiny_model.shape, tiny_model.labels)
    labels = [i % 5 for i in range(10)]
    options = {"sampler": "ddpm", "steps": 3, "progress": False}
    expected = admg.sample(model, labels, batch_size=2, **options)
    limited.sizes = []
    monkeypatch.setattr(recipe, "batch_that_fits", lambda *_: 8)
    got = admg.sample(model, labels, **options)
    assert torch.equal(got.x, expected.x) and got.labels.tolist() == labels
    assert limited.sizes == [8, 4] + [2] * 15  # three steps of five batches
    limited.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        admg.sample(model, labels, **options)
    limited.sizes = []
    with pytest.raises(torch.OutOfMemoryError):  # as asked for
        admg.sample(model, labels, batch_size=2, **options)
    assert limited.sizes == [2]


def test_finished_batches_are_kept_when_memory_runs_out_later(tiny_model, monkeypatch):
    """Another program takes memory in between: no image is made twice, none is lost."""
    limited = Limited(tiny_model.network, 4)
    model = Model(limited, tiny_model.diffusion, tiny_model.shape, tiny_model.labels)
    monkeypatch.setattr(recipe, "batch_that_fits", lambda *_: 4)

    def sampler(model, x_T, **options):
        yield from samplers.ddim(model, x_T, **options)
        limited.most = 2

    got = admg.sample(model, [0] * 8, sampler=sampler, steps=2, progress=False)
    assert limited.sizes == [4, 4, 4, 2, 2, 2, 2]
    options = {"steps": 2, "progress": False}
    parts = [admg.sample(tiny_model, [0] * 4, batch_size=size, first=first, **options).x
             for size, first in ((4, 0), (2, 4))]  # fmt: skip
    assert (got.x - torch.cat(parts)).abs().max() < 1e-4


def test_other_errors_are_not_mistaken_for_out_of_memory():
    def make(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(memory.in_batches(make, 4, 2))


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("none is left"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_that_memory_ran_out(error, out):
    assert memory.is_out_of_memory(error) is out


def test_batch_size_by_free_memory(monkeypatch):
    with torch.device("meta"):
        unet = UNet(UNetConfig(image_size=256, channels=256))
        classifier = NoisyClassifier(ClassifierConfig(image_size=256, channels=128))
    shape, cuda = (3, 256, 256), torch.device("cuda")

    def size(gigabytes: float, *networks: nn.Module, device=cuda) -> int:
        monkeypatch.setattr(memory, "free_bytes", lambda device: int(gigabytes * 1e9))
        return memory.batch_size(networks, shape, device)

    assert size(0.1, unet) == 1 and size(1e4, unet) == 64
    assert 4 <= size(70, unet, classifier) < size(70, unet) <= 64
    assert size(35, unet, classifier) == pytest.approx(size(70, unet, classifier) / 2, abs=1)
    assert size(1e4, unet, device=torch.device("cpu")) == 4  # the pixels of 64 of 64x64
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    assert memory.batch_size([unet], (3, 64, 64), torch.device("cpu")) == 64
    monkeypatch.undo()
    assert 1e6 < memory.free_bytes(torch.device("cpu")) < 1e14


def test_the_backward_pass_saves_less_memory():
    """Of a norm with its modulation and SiLU, the input alone."""
    norm, kept = GroupNorm32(64), []
    x = torch.randn(2, 64, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    scale, shift = torch.randn(2, 2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        group_norm(norm, x, scale, shift, silu=True)
    assert sum(n for n in kept if n >= x.numel()) == x.numel()
