"""What speed.py measures on: models with the same numbers in every process, noise, labels, and their FLOPs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import admg
from admg.checkpoints.model import Classifier, DiffusionConfig, Labels, Model
from admg.checkpoints.openai.loading import published
from admg.guidance.classifier import log_prob_gradient
from admg.models import ClassifierConfig, NoisyClassifier, UNet, UNetConfig
from admg.training import LearnDiffusion

PARTS = ("forward", "gradient", "step", "training")
RANDOM = {"adm-64": "openai/imagenet-64", "adm-128": "openai/imagenet-128", "adm-256": "openai/imagenet-256"}
"""Published architectures, which get random weights."""
MODELS = ("fashion-mnist", *RANDOM, "tiny")
STEPS = "ddim4"
"""Of the trajectory that guided steps are timed on; a step takes as long in one of 25."""
TIMESTEP, SCALE, LEARNING_RATE, EMA = 500, 1.0, 1e-4, 0.9999
GOOD = "dpmpp_2m", "karras10"
"""Sampler and steps of a sample as good as DDPM's of 250, see docs/fewer-steps.png."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and how: precision and compile as resolved, reference: the folder of a checkout, or ""."""

    model: str
    batch: int
    device: str = "cpu"
    threads: int = 1
    precision: str = "fp32"
    compile: str = "off"
    compile_diffusers: bool = False
    reference: str = ""


@dataclass(frozen=True)
class Work:
    """run: what is timed; check: the result that all sides must agree on, or its leading elements; None: none."""

    run: Callable[[], Any]
    check: Callable[[], Tensor] | None


Serve = Callable[[Work], None]
Part = Callable[[Setting, Serve], None]


class Unable(ValueError):
    """A part that this side does not have; the message says why."""


@dataclass(frozen=True)
class Case:
    model: Model
    classifier: Classifier
    x: Tensor
    y: Tensor


def build(setting: Setting) -> Case:
    """Models, noise and labels, the same numbers in every process."""
    if setting.model in MODELS[1:]:
        (network, process), (of_classifier, _) = architectures(setting.model)
        torch.manual_seed(0)
        with torch.device("meta" if setting.device == "meta" else "cpu"):
            unet, encoder = random_weights(UNet(network)), random_weights(NoisyClassifier(of_classifier))
        shape = (network.image_channels, network.image_size, network.image_size)
        model = Model(unet, process.build(), shape, Labels(network.num_classes), process)
        classifier = Classifier(encoder, process.build(), Labels(of_classifier.num_classes), process)
    else:
        model, classifier = admg.load(setting.model), admg.load_classifier(setting.model)
    x = torch.randn(setting.batch, *model.shape, generator=torch.Generator().manual_seed(1)).to(setting.device)
    y = (torch.arange(setting.batch) % classifier.labels.count).to(setting.device)
    return Case(model.to(setting.device), classifier.to(setting.device), x, y)


def architectures(
    name: str,
) -> tuple[tuple[UNetConfig, DiffusionConfig], tuple[ClassifierConfig, DiffusionConfig]]:
    """The model's and its classifier's, with their processes."""
    if name == "tiny":  # to try the benchmark itself
        trunk: dict[str, Any] = {"image_size": 16, "channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
        trunk |= {"attention_resolutions": (8,), "head_channels": 32, "num_classes": 10}
        return (UNetConfig(**trunk), DiffusionConfig()), (ClassifierConfig(**trunk), DiffusionConfig())
    found = [published()[f"{RANDOM[name]}{kind}"] for kind in ("", "-classifier")]
    return tuple((config.network, config.diffusion) for config in found)  # type: ignore[return-value]


def random_weights(network: nn.Module) -> nn.Module:
    """Those it begins with, but none zero: a network whose last layers are zero computes nothing to compare."""
    for p in network.parameters():
        if p.ndim > 1 and p.device.type != "meta" and not p.any():
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
        elif p.ndim == 1:
            p.data += 0.05 * torch.randn(p.shape)
    return network.eval().requires_grad_(False)


def to_train(network: nn.Module) -> nn.Module:
    """Without dropout, whose random numbers would make losses incomparable."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network.requires_grad_(True).train()


def last(items: Iterator[Any]) -> Any:
    *_, item = items
    return item


def again_and_again(start: Callable[[], Iterator[Any]]) -> Callable[[], Any]:
    """The next item at each call, from the start again at the end."""
    items = itertools.chain.from_iterable(start() for _ in itertools.count())
    return lambda: next(items)


def training_batch(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0, y, t and noise whose loss all sides must agree on."""
    return LearnDiffusion(case.model, label_dropout=0.0).draw(
        case.x.cpu().clamp(-1, 1), case.y.cpu(), torch.Generator().manual_seed(2)
    )


def flops(setting: Setting, part: str) -> int:
    """Of one call, counted from the architecture: 2 for each product and sum of a convolution or matrix product."""
    case = build(dataclasses.replace(setting, device="meta"))
    x, y, t = case.x, case.y, torch.zeros(1, device="meta")
    told = {"y": y} if case.model.conditional else {}
    no_autocast = patch.object(torch, "autocast", lambda *args, **options: nullcontext())  # which `meta` does not have
    with no_autocast, FlopCounterMode(display=False) as counter:
        if part in ("forward", "step"):
            with torch.no_grad():
                case.model.network(x, t, **told)
        if part in ("gradient", "step"):
            log_prob_gradient(lambda x, t: case.classifier(x.clone(), t), x, t, y)  # the counter takes no leaf
        if part == "training":
            to_train(case.model.network)(x, t, **told).sum().backward()
    return counter.get_total_flops()
