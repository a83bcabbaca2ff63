"""One training step: loss, gradient, clipping, AdamW, moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from admg.engine.compiling import compiled, wanted
from admg.engine.cpu.trained import trained
from admg.engine.cuda.recording import Backward, RecordedBackward
from admg.engine.precision import autocast, native_bf16

from .config import TrainConfig
from .ema import EMA
from .prefetch import step_seed
from .tasks import Task


class Learner:
    """The state of a training run: a network that learns a task, the average of its weights, and the optimiser."""

    def __init__(self, task: Task[Any], config: TrainConfig, device: torch.device):
        self.task, self.config, self.device = task, config, device
        self.network = task.network.to(device).train()
        self.precision = config.precision
        if self.precision == "auto":  # never fp16, whose gradients would have to be scaled
            self.precision = "bf16" if native_bf16(device.type) else "fp32"
        if device.type == "cuda" or self.precision == "bf16":  # the memory format of its convolutions
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = EMA(self.network, config.ema)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.compile = wanted(config.compile)
        self.backward: Backward = self._backward
        if device.type == "cuda" and not (self.compile or _recomputes(self.network)):
            self.backward = RecordedBackward(self._backward, self.network)  # a CUDA graph

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, number: int, drawn: Sequence[Tensor]) -> dict[str, Tensor]:
        """Take step `number`, counted from 0, and return the mean of each loss term and the norm of the gradient.

        drawn: a batch with its random numbers, as `task.draw` returns it, on the device

        Raises FloatingPointError on a CPU if the loss is not finite, and leaves the weights unchanged. On a GPU it does
        not wait for the loss, which the caller has to check.
        """
        torch.manual_seed(step_seed(self.config.seed, number) + 1)  # dropout draws from torch's global generator
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * min(1.0, (number + 1) / max(1, self.config.warmup))
        means = self.backward(drawn)
        if self.device.type == "cpu":
            check_finite(means["loss"].item(), number)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.network)
        return means | {"grad_norm": norm}

    def _backward(self, drawn: Sequence[Tensor]) -> dict[str, Tensor]:
        """Accumulate the gradient of the batch's mean loss over its parts, and return the mean of each term."""
        count = len(drawn[0])
        means: dict[str, Tensor] = {}
        size = -(-count // self.config.accumulate)
        parts = zip(*(torch.split(tensor, size) for tensor in drawn))
        with self._accelerated():
            for part in parts:
                with autocast(self.precision, self.device):
                    terms = self.task.loss(*part)
                sums = {name: value.float().sum() / count for name, value in terms.items()}
                torch.autograd.backward(sums["loss"])
                means = {name: value.detach() + means.get(name, 0.0) for name, value in sums.items()}
        return means

    def _accelerated(self) -> AbstractContextManager[None]:
        """The one place where training is made fast: torch.compile, or our kernels for the convolutions."""
        return compiled(self.network) if self.compile else trained(self.network)


def _recomputes(network: nn.Module) -> bool:
    """Whether the network recomputes activations, which reads the random state and cannot be captured in a graph."""
    return bool(getattr(getattr(network, "config", None), "checkpoint", False))


def check_finite(loss: float, number: int) -> None:
    """Raise FloatingPointError if the loss of step `number` is not finite."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss} at step {number}; try a smaller lr or fp32")
