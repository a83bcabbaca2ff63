"""On a GPU: its kernels, half precision and graphs against the plain computation, and that nothing waits for it."""

from __future__ import annotations

import copy
import itertools
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import NAMES, TRUNK, randomised
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import admg
from admg import guidance, samplers
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.cli.main import main
from admg.diffusion.config import DiffusionConfig
from admg.engine import accelerate, memory, ops
from admg.engine.compiling import compiled
from admg.engine.cuda.cast import CastLayer
from admg.engine.precision import autocast
from admg.guidance.classifier import log_prob_gradient
from admg.models import NoisyClassifier, UNet, UNetConfig, with_identity_attention
from admg.training import DiffusionTask, TrainConfig
from admg.training.prefetch import prefetch
from admg.training.step import Learner

pytestmark = pytest.mark.gpu
GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""The kernels run on a CPU too, by Triton's interpreter, where the package is installed."""
on_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
on_gpu_or_interpreted = pytest.mark.skipif(not (GPU or INTERPRETED), reason="needs a GPU, or TRITON_INTERPRET=1")
DEVICE = torch.device("cuda" if GPU else "cpu")
WIDE = TRUNK | {"image_size": 16, "channels": 64, "channel_mult": (1, 2), "attention_resolutions": (8,)}


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    """No TF32 in what others are compared with."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def rms(error: Tensor, like: Tensor) -> float:
    return float((error.double().square().mean() / like.double().square().mean()).sqrt())


# -- kernels -----------------------------------------------------------------------------------------------------------


@on_gpu_or_interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("shape", "silu", "moved"),
    [((2, 96, 5, 7), True, True), ((3, 64, 8, 8), False, False), ((1, 192, 12, 20), True, True)],
)
def test_norm_kernels_against_float64(shape, silu, moved, dtype):
    """act(weight·x̂ + bias) and its gradients, channels that fill no block, pixels that fill none."""
    triton_norm = pytest.importorskip("admg.engine.cuda.triton_norm")
    generator = torch.Generator().manual_seed(0)
    n, c = shape[:2]

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(DEVICE)

    x, dy = (
        (scale * draw(*shape) + shift).to(dtype, memory_format=torch.channels_last) for scale, shift in [(2, 1), (1, 0)]
    )
    weight, bias, offset = draw(n, c), draw(1, c).expand(n, -1), draw(c) if moved else None
    y, made = triton_norm.normalise(x, weight, bias, offset, 32, 1e-5, silu)
    found = y, *triton_norm.gradients(dy, x, *made, 32, silu)

    leaves = [tensor.double().clone().requires_grad_() for tensor in (x, weight, bias)]
    normal = F.group_norm(leaves[0] + (offset.double()[:, None, None] if moved else 0), 32, eps=1e-5)
    z = normal * leaves[1][:, :, None, None] + leaves[2][:, :, None, None]
    expected = F.silu(z) if silu else z
    expected = expected.detach(), *torch.autograd.grad((expected * dy.double()).sum(), leaves)
    rounding = {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 4e-3}[dtype]
    for got, wanted in zip(found[:2], expected[:2], strict=True):
        assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
        assert rms(got - wanted, wanted) < rounding
    for got, wanted in zip(found[2:], expected[2:], strict=True):  # sums in float32, of inputs that are exact
        assert rms(got - wanted, wanted) < 3e-6


@on_gpu_or_interpreted
@pytest.mark.parametrize("shape", [(2, 96, 6, 10), (1, 64, 7, 5)])
def test_resampling_kernels(shape):
    triton_norm = pytest.importorskip("admg.engine.cuda.triton_norm")
    x = torch.randn(shape).to(DEVICE, memory_format=torch.channels_last)
    assert torch.equal(triton_norm.resample(x, True, 1.0), F.interpolate(x, scale_factor=2, mode="nearest"))
    assert (triton_norm.resample(x, False, 0.25) - F.avg_pool2d(x, 2)).abs().max() < 1e-6


@on_gpu
@pytest.mark.parametrize("up", [True, False])
def test_gradients_of_resampling(up):
    x = torch.randn(2, 32, 7, 5, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
    plain = F.interpolate(x, scale_factor=2, mode="nearest") if up else F.avg_pool2d(x, 2)
    weights = torch.randn_like(plain)
    found, expected = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (ops.resampled(x, up), plain))
    assert (found - expected).abs().max() < 1e-5


@on_gpu_or_interpreted
@pytest.mark.parametrize("channels", [(96, 32), (64, 128)])
def test_joining_kernel(channels):
    triton_norm = pytest.importorskip("admg.engine.cuda.triton_norm")
    parts = [torch.randn(2, c, 5, 7).to(DEVICE, memory_format=torch.channels_last) for c in channels]
    assert torch.equal(triton_norm.join(*parts), torch.cat(parts, dim=1))


@on_gpu_or_interpreted
def test_addition_kernel():
    triton_norm = pytest.importorskip("admg.engine.cuda.triton_norm")
    x, h = (torch.randn(2, 96, 5, 7).to(DEVICE, memory_format=torch.channels_last) for _ in range(2))
    offset = torch.randn(96, device=DEVICE)
    assert torch.equal(triton_norm.add(x, h, offset), x + h + offset[:, None, None])


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    unet = randomised(UNet(UNetConfig(**WIDE, num_classes=len(NAMES))), 0)
    classifier = randomised(NoisyClassifier(admg.models.ClassifierConfig(**WIDE, num_classes=len(NAMES))), 1)
    return unet.to(DEVICE), classifier.to(DEVICE)


def inputs(n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return x.to(DEVICE), torch.full((1,), 40.0, device=DEVICE), torch.arange(n, device=DEVICE)


def outputs(networks, x: Tensor, t: Tensor, y: Tensor) -> list[Tensor]:
    unet, classifier = networks
    with torch.no_grad():
        raw = unet(x, t, y)
    return [raw, log_prob_gradient(classifier, x, t, y)]


def fast(networks, precision: str = "fp32") -> list[nn.Module]:
    return [accelerate(network, precision=precision) for network in networks]


def graphs(network: nn.Module) -> list:
    """The CUDA graphs of an accelerated network."""
    return [graph for graph in network._function().graphs.values() if graph is not None]


@on_gpu
def test_float32_equals_the_cpu(networks):
    on_cpu = outputs([copy.deepcopy(network).cpu() for network in networks], *(tensor.cpu() for tensor in inputs()))
    for got, expected in zip(outputs(networks, *inputs()), on_cpu, strict=True):
        assert rms(got.cpu() - expected, expected) < 1e-5


@on_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_as_exact_as_autocast(networks, precision):
    expected = outputs(networks, *inputs())
    found = outputs(fast(networks, precision), *inputs())
    with autocast(precision, DEVICE):
        plain = outputs(networks, *inputs())
    for got, usual, exact in zip(found, plain, expected, strict=True):
        assert 0 < rms(got - exact, exact) < 1.2 * rms(usual - exact, exact) < 0.1


@on_gpu
def test_the_plain_network_stays_as_it_is(networks):
    before = outputs(networks, *inputs())
    accelerated = fast(networks, "bf16")
    outputs(accelerated, *inputs())
    assert any(isinstance(module, CastLayer) for module in accelerated[0]._function().function.modules())
    assert not any("forward" in vars(module) for network in networks for module in network.modules())
    for these in (networks, [copy.deepcopy(network).plain for network in accelerated]):
        for got, expected in zip(outputs(these, *inputs()), before, strict=True):
            assert rms(got - expected, expected) < 1e-5


@on_gpu
def test_replayed_calls_equal_the_captured_ones(networks):
    """Other images, steps and labels at each call, and a hook, which fires."""
    fired, accelerated = [], fast(networks)
    perturbed = [with_identity_attention(accelerated[0]), accelerated[1]]
    plain = [with_identity_attention(networks[0]), networks[1]]
    for k in range(6):
        x, t, y = inputs()
        given = x + k, t + k, (y + k) % len(NAMES)
        found = outputs(accelerated, *given)
        handle = networks[0].input_blocks[0].register_forward_hook(lambda *_: fired.append(1))
        hooked = outputs(accelerated, *given)
        handle.remove()
        elsewhere = outputs(perturbed, *given)[0]
        expected, expected_elsewhere = outputs(networks, *given), outputs(plain, *given)[0]
        for got, same, exact in zip(found, hooked, expected, strict=True):
            assert rms(got - exact, exact) < 1e-5 and rms(same - exact, exact) < 1e-5
        assert rms(elsewhere - expected_elsewhere, expected_elsewhere) < 1e-5
        assert rms(elsewhere - found[0], found[0]) > 1e-3
    assert len(fired) == 6
    assert all(graphs(network) for network in (*accelerated, perturbed[0]))


@on_gpu
def test_gradients_of_replayed_calls_in_any_order(networks):
    """Two calls, then their gradients; the same gradient twice; and the gradient of a gradient."""
    classifier, (x, t, _) = networks[1], inputs()

    def gradients(classifier: nn.Module) -> list[Tensor]:
        first, second = x.clone().requires_grad_(), (x + 1).requires_grad_()
        sums = classifier(first, t).square().sum(), classifier(second, t).square().sum()
        found = [torch.autograd.grad(sums[0], first, retain_graph=True)[0] for _ in range(2)]
        found.append(torch.autograd.grad(sums[1], second)[0])
        with sdpa_kernel(SDPBackend.MATH):
            (g,) = torch.autograd.grad(classifier(first, t).square().sum(), first, create_graph=True)
            return [*found, torch.autograd.grad(g.square().sum(), first)[0]]

    expected, accelerated = gradients(classifier), accelerate(classifier, precision="fp32")
    for _ in range(4):
        for got, exact in zip(gradients(accelerated), expected, strict=True):
            assert rms(got - exact, exact) < 1e-4
    assert graphs(accelerated)


@on_gpu
def test_second_derivatives(networks):
    """d/dx of |d/dx log p|², by kernels and by the plain computation."""

    def second(network: nn.Module) -> Tensor:
        x, t, y = inputs()
        x.requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
            log_p = network(x, t).log_softmax(-1).gather(1, y[:, None]).sum()
            (g,) = torch.autograd.grad(log_p, x, create_graph=True)
            return torch.autograd.grad(g.square().sum(), x)[0]

    expected, accelerated = second(networks[1]), accelerate(networks[1], precision="fp32")
    assert rms(second(accelerated) - expected, expected) < 1e-4
    assert rms(second(accelerate(networks[1], precision="bf16")) - expected, expected) < 0.1


# -- sampling ----------------------------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_images_of_a_seed_equal_the_cpus(tiny_model, tiny_classifier, sampler):
    def samples(device: str, **options) -> Tensor:
        guide = guidance.ClassifierGuidance(copy.deepcopy(tiny_classifier).to(device), 2.0)
        model = copy.deepcopy(tiny_model).to(device)
        options = {"guide": guide, "sampler": sampler, "steps": 10, "progress": False, "precision": "fp32"} | options
        return admg.sample(model, list(NAMES), **options).x

    expected = samples("cpu")
    assert (samples("cuda") - expected).abs().max() < 1e-3
    assert (samples("cuda", batch_size=2) - expected).abs().max() < 1e-3
    assert (samples("cuda", precision="bf16") - expected).abs().mean() < 0.05


@on_gpu
def test_images_are_encoded_with_their_labels_as_on_the_cpu(tiny_model):
    images = torch.rand(2, *tiny_model.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = {"strength": 1.0, "steps": 10, "precision": "fp32"}
    expected = admg.encode(copy.deepcopy(tiny_model).to("cpu"), images, [1, 2], **options)
    found = admg.encode(copy.deepcopy(tiny_model).to(DEVICE), images, [1, 2], **options)
    assert torch.allclose(found, expected, atol=1e-3)


@on_gpu
def test_with_and_without_the_label_in_one_call(tiny_model):
    """As many images as are asked for in one call, and one more."""
    model, guide = copy.deepcopy(tiny_model).to("cuda"), guidance.ClassifierFreeGuidance(2.0)
    sizes: list[int] = []
    model.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for count, calls in ((16, [32, 32]), (17, [17] * 4)):
        options = {"guide": guide, "steps": 2, "progress": False, "precision": "fp32", "batch_size": 32}
        found = admg.sample(model, [i % len(NAMES) for i in range(count)], **options).x
        expected = admg.sample(tiny_model, [i % len(NAMES) for i in range(count)], **options).x
        assert (found - expected).abs().max() < 1e-3 and sizes == calls
        sizes.clear()


@on_gpu
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "unipc"])
def test_no_step_waits_for_the_gpu(tiny_model, tiny_classifier, sampler):
    model, classifier = (copy.deepcopy(part).to("cuda") for part in (tiny_model, tiny_classifier))
    waits = []

    def checked(*args, **options):
        steps = samplers.__dict__[sampler](*args, **options)
        for _ in range(4):  # the first ones copy tables to the GPU, compile kernels, and are captured
            yield next(steps)
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield from steps
            waits.append(0)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    guide = guidance.ClassifierFreeGuidance(2.0) + guidance.ClassifierGuidance(classifier, 2.0)
    options = {"guide": guide, "sampler": checked, "steps": 8, "progress": False, "precision": "bf16"}
    admg.sample(model, list(NAMES), **options)
    assert waits == [0]


@on_gpu
def test_smaller_batches_when_memory_runs_out(tiny_model, monkeypatch):
    """With room for a third of the batch that was chosen, all images are made, as they would have been."""
    network = randomised(UNet(UNetConfig(**WIDE | {"image_size": 128, "attention_resolutions": (64,)})), 0)
    model = Model(network, tiny_model.diffusion, (1, 128, 128), Labels(0)).to("cuda")
    options = {"steps": 2, "progress": False, "precision": "fp32", "compile": "off"}
    expected = admg.sample(model, [None] * 32, batch_size=4, **options).x
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    admg.sample(model, [None] * 32, batch_size=32, **options)
    room = before + (torch.cuda.max_memory_allocated() - before) / 3
    torch.cuda.empty_cache()
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    batches = []

    def counted(model, x, **options):
        batches.append(len(x))
        yield from samplers.ddim(model, x, **options)

    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    try:
        found = admg.sample(model, [None] * 32, sampler=counted, **options).x
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert batches[0] == 32 and batches[-1] < 32
    assert (found - expected).abs().max() < 0.02  # of a network that magnifies rounding


@on_gpu
def test_compiled_networks_agree_and_are_built_once(networks):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("inductor")
    fast = compiled(networks[0], backend=counter)
    with torch.no_grad(), autocast("bf16", DEVICE):
        for n in (2, 5, 3):
            x, t, y = inputs(n)
            found = fast(x, t, y)
    assert counter.frame_count == 1
    with torch.no_grad():
        expected = networks[0](x, t, y)
    assert rms(found - expected, expected) < 0.05


@on_gpu
def test_command_line(tiny_folders, tmp_path, capsys):
    out = tmp_path / "out"
    names = ["--model", tiny_folders["model"], "--classifier", tiny_folders["classifier"]]
    assert main(["sample", *names, "--scale", "2", "--steps", "5", "--num", "8", "--out", str(out)]) == 0
    with np.load(next(out.glob("samples_*.npz"))) as file:
        assert file["arr_0"].shape == (8, 8, 8, 1) and file["arr_0"].std() > 0
    assert main(["evaluate", str(out), str(out), "--network", "efficientnet-lite0", "--no-cache", "--no-interval"]) == 0
    assert "FD-EfficientNetLite0" in capsys.readouterr().out


# -- training ----------------------------------------------------------------------------------------------------------


def losses(device: str, precision: str, steps: int = 7) -> list[float]:
    torch.manual_seed(0)
    network = randomised(UNet(UNetConfig(**WIDE, num_classes=len(NAMES))), 0).requires_grad_(True)
    process = DiffusionConfig(diffusion_steps=100)
    model = Model(network, process.build(), (1, 16, 16), Labels(len(NAMES), NAMES), process)
    x = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    task = DiffusionTask(model)
    config = TrainConfig(batch_size=6, lr=1e-3, warmup=0, precision=precision, compile="off", accumulate=2)
    learner = Learner(task, config, torch.device(device))
    batches = itertools.cycle([(x[:n], torch.arange(n) % len(NAMES)) for n in (6, 6, 6, 6, 4)])
    fed = prefetch(task, batches, 0, 0, torch.device(device))
    return [float(learner.step(number, next(fed))["loss"]) for number in range(steps)]


@on_gpu
def test_training_equals_the_cpu():
    """The first two steps run as usual, the others as a graph; a smaller last batch too."""
    expected = losses("cpu", "fp32")
    assert losses("cuda", "fp32") == pytest.approx(expected, rel=1e-3)
    assert losses("cuda", "bf16") == pytest.approx(expected, rel=0.05)
    assert expected[0] > expected[-1]


@on_gpu
def test_dropout_differs_from_step_to_step_of_a_graph():
    network = randomised(UNet(UNetConfig(**WIDE, dropout=0.5)), 0).requires_grad_(True)
    process = DiffusionConfig(diffusion_steps=100)
    task = DiffusionTask(Model(network, process.build(), (1, 16, 16), Labels(0), process))
    learner = Learner(task, TrainConfig(batch_size=4, lr=1e-12, warmup=0, precision="fp32"), torch.device("cuda"))
    x = torch.zeros(4, 1, 16, 16)
    drawn = [tensor.cuda() for tensor in (x, torch.zeros(4).long(), *task.draw(x.shape, torch.Generator()))]
    found = [float(learner.step(number, drawn)["loss"]) for number in (0, 1, 2, 3, 4, 3)]
    assert learner.backward.graph is not None
    assert len(set(found[:5])) == 5 and found[5] == pytest.approx(found[3], rel=1e-4)
