"""Models, noise and labels for speed.py, identical in every process, and their FLOPs."""

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
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.openai.families import known_settings
from admg.diffusion.config import DiffusionConfig
from admg.guidance.classifier import log_prob_gradient
from admg.models import ClassifierConfig, NoisyClassifier, UNet, UNetConfig
from admg.training import DiffusionTask

PARTS = ("forward", "gradient", "step", "training")
PUBLISHED = {"adm-64": "openai/imagenet-64", "adm-128": "openai/imagenet-128", "adm-256": "openai/imagenet-256"}
"""Published architectures."""
MODELS = ("fashion-mnist", *PUBLISHED, "tiny")
STEPS = "ddim4"
"""Trajectory on which guided steps are timed; a step of a longer one takes the same time."""
TIMESTEP, SCALE, LEARNING_RATE, EMA = 500, 1.0, 1e-4, 0.9999
GOOD = "dpmpp_2m", "karras10"
"""Sampler and steps that match the quality of 250 steps of DDPM, see docs/fewer-steps.png."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and how.

    precision: fp32, bf16 or fp16 ("auto" is resolved before)
    compile: on or off
    reference: folder of a checkout of guided-diffusion, "" if there is none
    follow: whether the number of threads follows the load of the machine, as that of the commands does
    """

    model: str
    batch: int
    device: str = "cpu"
    threads: int = 1
    precision: str = "fp32"
    compile: str = "off"
    compile_diffusers: bool = False
    reference: str = ""
    follow: bool = False


@dataclass(frozen=True)
class Work:
    """A part that is set up.

    run: function that is timed
    check: function that returns the result, or its leading elements, on which all sides must agree; None to skip
    """

    run: Callable[[], Any]
    check: Callable[[], Tensor] | None


Serve = Callable[[Work], None]
"""Runs and times a part on request, until the part is finished."""
Part = Callable[[Setting, Serve], None]


class Unable(ValueError):
    """Raised if a side lacks a part; the message says why."""


@dataclass(frozen=True)
class Case:
    """A model, its classifier, noise x (N, C, H, W) and labels y (N,)."""

    model: Model
    classifier: Classifier
    x: Tensor
    y: Tensor


def build(setting: Setting) -> Case:
    """Return the models, noise and labels of a setting, identical in every process."""
    (network, process), (of_classifier, _) = architectures(setting.model)
    torch.manual_seed(0)
    with torch.device("meta" if setting.device == "meta" else "cpu"):
        unet, encoder = random_weights(UNet(network)), random_weights(NoisyClassifier(of_classifier))
    shape = (network.image_channels, network.image_size, network.image_size)
    model = Model(unet, process.build(), shape, Labels(network.num_classes), process)
    classifier = Classifier(encoder, process.build(), Labels(of_classifier.num_classes), process)
    x = torch.randn(setting.batch, *model.shape, generator=torch.Generator().manual_seed(1)).to(setting.device)
    y = (torch.arange(setting.batch) % classifier.labels.count).to(setting.device)
    return Case(model.to(setting.device), classifier.to(setting.device), x, y)


def architectures(
    name: str,
) -> tuple[tuple[UNetConfig, DiffusionConfig], tuple[ClassifierConfig, DiffusionConfig]]:
    """Return the configurations of a model and of its classifier, each with its diffusion process."""
    if name == "tiny":  # for tests of the benchmark itself
        trunk: dict[str, Any] = {"image_size": 16, "channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
        trunk |= {"attention_resolutions": (8,), "head_channels": 32, "num_classes": 10}
        return (UNetConfig(**trunk), DiffusionConfig()), (ClassifierConfig(**trunk), DiffusionConfig())
    if name not in PUBLISHED:  # shipped ones; guided-diffusion has neither v nor their other options of the process
        shipped = admg.load(name).network.config, admg.load_classifier(name).network.config
        return tuple((config, DiffusionConfig()) for config in shipped)  # type: ignore[return-value]
    found = [known_settings()[f"{PUBLISHED[name]}{kind}"] for kind in ("", "-classifier")]
    return tuple((config.network, config.diffusion) for config in found)  # type: ignore[return-value]


def random_weights(network: nn.Module) -> nn.Module:
    """Return the network in eval mode, with its zero-initialised weights randomised so that outputs can be compared."""
    for p in network.parameters():
        if p.ndim > 1 and p.device.type != "meta" and not p.any():
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
        elif p.ndim == 1:
            p.data += 0.05 * torch.randn(p.shape)
    return network.eval().requires_grad_(False)


def to_train(network: nn.Module) -> nn.Module:
    """Put a network in training mode, without dropout, whose random numbers would make losses incomparable."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network.requires_grad_(True).train()


def last(items: Iterator[Any]) -> Any:
    """Return the last item."""
    *_, item = items
    return item


def again_and_again(start: Callable[[], Iterator[Any]]) -> Callable[[], Any]:
    """Return a function that returns the next item at each call and starts over at the end."""
    items = itertools.chain.from_iterable(start() for _ in itertools.count())
    return lambda: next(items)


def training_batch(case: Case) -> tuple[Tensor, ...]:
    """Return the x_0, y, t, noise and dropped labels (none) for which the losses of all sides must agree."""
    x, y = case.x.cpu().clamp(-1, 1), case.y.cpu()
    return x, y, *DiffusionTask(case.model, label_dropout=0.0).draw(x.shape, torch.Generator().manual_seed(2))


def flops(setting: Setting, part: str) -> int:
    """Return the FLOPs of one call: two per multiply-add of the convolutions and matrix products."""
    case = build(dataclasses.replace(setting, device="meta"))
    x, y, t = case.x, case.y, torch.zeros(1, device="meta")
    told = {"y": y} if case.model.conditional else {}
    no_autocast = patch.object(torch, "autocast", lambda *args, **options: nullcontext())  # `meta` has no autocast
    with no_autocast, FlopCounterMode(display=False) as counter:
        if part in ("forward", "step"):
            with torch.no_grad():
                case.model.network(x, t, **told)
        if part in ("gradient", "step"):
            log_prob_gradient(lambda x, t: case.classifier(x.clone(), t), x, t, y)  # the counter takes no leaf tensors
        if part == "training":
            to_train(case.model.network)(x, t, **told).sum().backward()
    return counter.get_total_flops()
