"""The recipes agree with the published models and with what their networks cost."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn

import admg
from admg.checkpoints.networks import NETWORK_KINDS
from admg.checkpoints.openai import flags
from admg.checkpoints.openai.families import OTHERS
from admg.checkpoints.published import PUBLISHED
from admg.config import options
from admg.models import UNet, UNetConfig
from admg.models.blocks import AttentionBlock
from admg.training import recipe
from admg.training.recipes import names, recipe_for
from admg.training.recipes.cost import Cost
from admg.training.recipes.measure import measure

PUBLISHED_RECIPES = [name for name in names() if recipe(name).published]
TINY = UNetConfig(image_size=8, channels=32, channel_mult=(1, 2), num_res_blocks=1, head_channels=32, num_classes=3)


@pytest.mark.parametrize("name", PUBLISHED_RECIPES)
def test_architecture_and_process_are_those_of_the_published_model(name):
    chosen = recipe(name)
    model = PUBLISHED[chosen.published]
    expected = flags.parse(model.flags, model.kind)
    assert chosen.architecture == expected.network
    assert chosen.cost.parameters == model.parameters
    if model.kind == "classifier":  # its flags do not name the process, which is that of the model that it guides
        expected = flags.parse(PUBLISHED[chosen.published.removesuffix("-classifier")].flags)
        assert chosen.diffusion.noise_schedule == expected.diffusion.noise_schedule
    else:
        assert chosen.diffusion == expected.diffusion


def test_every_published_architecture_has_a_recipe():
    covered = {recipe(name).published for name in PUBLISHED_RECIPES}
    others = {"openai/lsun-cat", "openai/lsun-horse", "openai/lsun-horse-nodropout", "openai/imagenet-256-uncond"}
    assert covered | others == set(PUBLISHED)


@pytest.mark.parametrize(
    ("name", "family", "millions"), [("cifar-10", "CIFAR-10", 50), ("imagenet-64", "ImageNet-64", 100)]
)
def test_improved_ddpm(name, family, millions):
    expected = flags.parse(OTHERS[f"improved-diffusion's {family}"])
    assert recipe(name).architecture == expected.network and recipe(name).diffusion == expected.diffusion
    assert recipe(name).cost.parameters == pytest.approx(millions * 1e6, rel=0.25)  # rounded in the checkpoint's name


@pytest.mark.parametrize(
    ("name", "steps", "batch", "lr", "decay"),
    [
        ("adm-64", 540_000, 2048, 3e-4, 0.0),
        ("adm-128", 4_360_000, 256, 1e-4, 0.0),
        ("adm-256", 1_980_000, 256, 1e-4, 0.0),
        ("adm-512", 1_940_000, 256, 1e-4, 0.0),
        ("adm-64-classifier", 300_000, 1024, 6e-4, 0.2),
        ("adm-128-classifier", 300_000, 256, 3e-4, 0.05),
        ("adm-256-classifier", 500_000, 256, 3e-4, 0.05),
        ("adm-64-256-upsampler", 500_000, 256, 1e-4, 0.0),
        ("adm-128-512-upsampler", 1_050_000, 256, 1e-4, 0.0),
        ("cifar-10", 500_000, 128, 1e-4, 0.0),
    ],
)
def test_training_is_that_of_the_tables(name, steps, batch, lr, decay):
    training = recipe(name).training
    assert (training.steps, training.batch_size, training.lr, training.weight_decay) == (steps, batch, lr, decay)
    assert training.warmup == 0 and training.grad_clip == float("inf")


@pytest.mark.parametrize("name", names())
def test_every_value_is_an_option_and_cites_its_source(name):
    from admg.cli import train, train_classifier, train_upsampler

    chosen = recipe(name)
    commands = {"train": train, "train-classifier": train_classifier, "train-upsampler": train_upsampler}
    known = {option.name for option in options(commands[chosen.command].Options)}
    assert not set(chosen.values) - known
    for line in chosen.text.split("[images]")[1].splitlines():
        assert not re.match(r"\w+ = ", line) or re.search(r"  # \S", line), line


@pytest.mark.thorough
def test_the_parts_train(tmp_path):
    chosen = recipe("small-32")
    images = torch.rand(4, 3, 8, 8).numpy()
    small = {
        **chosen.network,
        "channels": 32,
        "channel_mult": (1, 1),
        "head_channels": 32,
        "attention_resolutions": (8,),
    }
    config = dataclasses.replace(chosen.training, steps=1, batch_size=2)
    run = admg.train_diffusion(
        admg.data.from_arrays(images), tmp_path, config, **{**chosen.parts, "network": chosen.network | small}
    )
    assert [step["step"] for step in run] == [1]
    assert admg.load(tmp_path).training["recipe"] == "small-32"
    assert chosen.data("photos").image_size == 32 and chosen.data("photos").flip


def test_unknown_recipes_and_those_of_another_command_are_refused():
    with pytest.raises(ValueError, match="unknown recipe 'adm64': did you mean 'adm-64'"):
        recipe("adm64")
    with pytest.raises(ValueError, match="belongs to admg train-classifier; the recipes of admg train are adm-128,"):
        recipe_for("train", "adm-64-classifier")


def operations(network: nn.Module, *inputs: torch.Tensor) -> int:
    """Return the operations of a forward pass: two for each product of a layer or of attention."""
    counts: list[int] = []

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear):
            per_output = module.weight[0].numel()
            counts.append(2 * per_output * output.numel())
        elif isinstance(module, AttentionBlock):
            n, c, h, w = output.shape
            counts.append(2 * 2 * n * c * (h * w) ** 2)  # q·k and the weighted sum of v

    handles = [module.register_forward_hook(count) for module in network.modules()]
    network(*inputs)
    for handle in handles:
        handle.remove()
    return sum(counts)


@pytest.mark.thorough
def test_measured_operations_and_activations_are_those_of_a_real_forward_pass():
    network, cost = UNet(TINY), measure(TINY)
    x, t = torch.randn(1, 3, 8, 8), torch.zeros(1)
    assert round(cost.gflops * 1e9) == operations(network, x, t)
    assert cost.parameters == sum(p.numel() for p in network.parameters())

    def kept(images: int) -> int:
        storages = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(x.expand(images, -1, -1, -1).contiguous(), t.expand(images).contiguous())
        return sum(storage.nbytes() for storage in storages.values())

    assert cost.activation_mb_fp32 * 1e6 == kept(2) - kept(1)
    assert cost.activation_mb_bf16 < cost.activation_mb_fp32


@pytest.mark.thorough
def test_state_is_20_bytes_per_parameter(tmp_path):
    config = admg.TrainConfig(steps=1, batch_size=2, device="cpu")
    dataset = admg.data.from_arrays(torch.rand(4, 3, 8, 8).numpy())
    small = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}
    run = admg.train_diffusion(dataset, tmp_path, config, network=small)
    list(run)
    learner = run.learner
    weights = sum(p.nbytes for p in learner.network.parameters())
    moments = sum(v.nbytes for state in learner.optimizer.state.values() for v in state.values() if v.dim())
    average = sum(p.nbytes for p in learner.average.network.parameters())
    cost = Cost(parameters=run.parameters, gflops=1.0, activation_mb_fp32=3.0, activation_mb_bf16=2.0)
    assert cost.memory(0, "fp32") == 2 * weights + moments + average  # a gradient has the size of its weight
    assert cost.memory(5, "fp32", shards=4) == 5 * run.parameters + 15e6
    assert cost.memory(5, "bf16") == 22 * run.parameters + 10e6


def test_time():
    cost = Cost(parameters=1, gflops=100.0, activation_mb_fp32=1.0, activation_mb_bf16=1.0)
    # 3 x 100 GFLOPs x 86.4 M images = 2.592e19 operations, by 10 GPUs at 30 TFLOPS in 86,400 s
    assert cost.days(86_400_000, gpus=10, tflops=30.0) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adm-64-classifier", "cifar-10"])
def test_costs_in_the_files_are_measured(name):
    check_cost(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_all_costs_in_the_files_are_measured(name):
    check_cost(name)


def check_cost(name: str) -> None:
    stored, measured = dataclasses.asdict(recipe(name).cost), dataclasses.asdict(measure(recipe(name).architecture))
    assert stored == pytest.approx(measured, rel=2e-3)
    assert stored["parameters"] == measured["parameters"]


def test_command_of_a_recipe_is_that_of_its_network():
    kinds = {"train": "diffusion", "train-classifier": "classifier", "train-upsampler": "upsampler"}
    for name in names():
        assert NETWORK_KINDS[kinds[recipe(name).command]].config is type(recipe(name).architecture)
