"""The parts of speed.py as admg runs them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cases import (
    EMA,
    GOOD,
    LEARNING_RATE,
    SCALE,
    STEPS,
    TIMESTEP,
    Part,
    Serve,
    Setting,
    Unable,
    Work,
    again_and_again,
    build,
    last,
    to_train,
    training_batch,
)
from torch import Tensor, nn

import admg
from admg import guidance, samplers
from admg.checkpoints.model import Model
from admg.engine import configure_process
from admg.guidance.classifier import log_prob_gradient
from admg.training import DiffusionTask, TrainConfig
from admg.training.prefetch import prefetch
from admg.training.step import Learner


def within_sample(make: Callable[[Model, guidance.ClassifierGuidance, Tensor, Tensor], Work]) -> Part:
    """Return a part that runs inside sample(), with everything that sample() sets up for a sampler."""

    def part(setting: Setting, serve: Serve) -> None:
        case = build(setting)
        configure_process(setting.device)

        def sampler(model, x_T, *, y, guide, noise_sampler, unconditional):
            serve(make(model, guide, x_T, y))
            yield next(samplers.ddim(model, x_T, y=y, guide=guide))

        guide = guidance.ClassifierGuidance(case.classifier, SCALE)
        options: dict[str, Any] = {"precision": setting.precision, "compile": setting.compile, "progress": False}
        admg.sample(
            case.model,
            case.y,
            guide=guide,
            sampler=sampler,
            steps=STEPS,
            batch_size=setting.batch,
            x_T=case.x,
            **options,
        )

    return part


@within_sample
def forward(model: Model, guide: guidance.ClassifierGuidance, x: Tensor, y: Tensor) -> Work:
    """Return the forward pass of the network."""
    t, told = torch.tensor([TIMESTEP], device=x.device), {"y": y} if model.conditional else {}
    run = torch.no_grad()(lambda: model.network(x, t, **told))
    return Work(run, run)


@within_sample
def gradient(model: Model, guide: guidance.ClassifierGuidance, x: Tensor, y: Tensor) -> Work:
    """Return the gradient of the classifier's log-probability."""
    t = torch.tensor([TIMESTEP], device=x.device)
    run = partial(log_prob_gradient, guide.classifier, x, t, y)
    return Work(run, run)


@within_sample
def step(model: Model, guide: guidance.ClassifierGuidance, x: Tensor, y: Tensor) -> Work:
    """Return one step of guided DDIM; its result is the end of the trajectory."""
    start = partial(samplers.ddim, model, x, y=y, guide=guide)
    return Work(again_and_again(start), lambda: last(start()).x)


def training(setting: Setting, serve: Serve) -> None:
    """Serve a training step; its result is the losses and the norm of the gradient."""
    if setting.precision == "fp16":
        raise Unable("cannot train in fp16 (use fp32 or bf16)")
    case, device = build(setting), torch.device(setting.device)
    to_train(case.model.network)
    task = DiffusionTask(case.model, label_dropout=0.0)
    options: dict[str, Any] = {"precision": setting.precision, "compile": setting.compile}
    config = TrainConfig(batch_size=setting.batch, lr=LEARNING_RATE, warmup=0, ema=EMA, **options)
    configure_process(device)
    learner = Learner(task, config, device)
    fed = prefetch(task, itertools.repeat((case.x.cpu().clamp(-1, 1), case.y.cpu())), 0, 0, device)

    def run() -> list[float]:
        return torch.stack(list(learner.step(0, next(fed)).values())).tolist()

    def check() -> Tensor:
        means = learner.backward([tensor.to(device) for tensor in training_batch(case)])
        norm = nn.utils.get_total_norm([p.grad for p in learner.network.parameters()])
        learner.optimizer.zero_grad()
        return torch.stack([means["mse"], means["loss"], norm])

    serve(Work(run, check))


def whole_sample(setting: Setting, serve: Serve) -> None:
    """Serve a whole sampling run with the sampler and the steps of GOOD."""
    case, (sampler, steps) = build(setting), GOOD
    configure_process(setting.device)
    options: dict[str, Any] = {"precision": setting.precision, "compile": setting.compile, "progress": False}
    options |= {"guide": guidance.ClassifierGuidance(case.classifier, SCALE), "batch_size": setting.batch}
    serve(Work(lambda: admg.sample(case.model, case.y, sampler=sampler, steps=steps, x_T=case.x, **options).x, None))


PARTS = {
    "forward": forward,
    "gradient": gradient,
    "step": step,
    "training": training,
    "sample": whole_sample,
}
