"""One training step: loss, gradient, AdamW, moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from admg.checkpoints.weights import CheckpointError, load_pickle
from admg.engine.compiling import compiled, wanted
from admg.engine.cpu.trained import trained
from admg.engine.cuda.recording import Backward, RecordedBackward
from admg.engine.precision import autocast, native_bf16
from admg.files import atomic

from .config import TrainConfig
from .ema import EMA
from .feed import step_seed


class Task(Protocol):
    """What is learned: a loss, and what to do with the averaged network now and then."""

    network: nn.Module

    def draw(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """A batch with all that is random in its loss, each tensor (N, ...), on the CPU."""
        ...

    def loss(self, *drawn: Tensor) -> dict[str, Tensor]:
        """Terms (N,) of each image, "loss" among them, from what draw() gave, or a part of it.

        On a GPU what it computes is recorded, and replayed for other batches: let it depend on them alone.
        """
        ...

    def preview(self, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Draw or measure what the averaged network can do; figures to log."""
        ...

    def save(self, network: nn.Module, folder: Path, training: dict[str, Any]) -> None:
        """Write the averaged network as a native checkpoint."""
        ...


class Learner:
    """A network that learns a task: its weights, their average, and the optimiser's state."""

    def __init__(self, task: Task, config: TrainConfig, device: torch.device):
        self.task, self.config, self.device = task, config, device
        self.network = task.network.to(device).train()
        self.precision = config.precision
        if self.precision == "auto":  # not fp16, whose gradients would have to be scaled
            self.precision = "bf16" if native_bf16(device.type) else "fp32"
        if device.type == "cuda" or self.precision == "bf16":  # as its convolutions compute
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = EMA(self.network, config.ema)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.compile = wanted(config.compile)
        self.backward: Backward = self._backward
        """On a GPU recorded and replayed."""
        if device.type == "cuda" and not (self.compile or _recomputes(self.network)):
            self.backward = RecordedBackward(self._backward, self.network)

    @property
    def lr(self) -> float:
        """Of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, number: int, drawn: Sequence[Tensor]) -> dict[str, Tensor]:
        """Step `number`, from 0 on: the mean of each term, and the norm of the gradient. It waits for no GPU.

        FloatingPointError: on a CPU, the loss is not finite; the weights are left as they were.
        """
        torch.manual_seed(step_seed(self.config.seed, number) + 1)  # dropout draws from torch's global random numbers
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
        """Add the gradient of the batch's mean loss, part by part; the mean of each term."""
        count = len(drawn[0])
        means: dict[str, Tensor] = {}
        parts = zip(*(tensor.split(-(-count // self.config.accumulate)) for tensor in drawn))
        with compiled(self.network) if self.compile else trained(self.network):
            for part in parts:
                with autocast(self.precision, self.device):
                    terms = self.task.loss(*part)
                sums = {name: value.float().sum() / count for name, value in terms.items()}
                sums["loss"].backward()
                means = {name: value.detach() + means.get(name, 0.0) for name, value in sums.items()}
        return means

    def _lay_out_moments(self) -> None:
        """As the weights, which may be channels-last here and not where they were saved: AdamW pairs them by memory."""
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)

    def save(self, path: Path, step: int) -> None:
        state = {"network": self.network.state_dict(), "average": self.average.state_dict()}
        with atomic(path) as temporary:
            torch.save({"step": step, "optimizer": self.optimizer.state_dict(), **state}, temporary)

    def resume(self, path: Path) -> int:
        """Take all from the checkpoint, if there is one; the number of steps done. CheckpointError: it does not fit."""
        if not path.exists():
            return 0
        try:
            state = load_pickle(path)
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._lay_out_moments()
            return state["step"]
        except Exception as error:  # torch raises many kinds for a foreign or truncated file
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"cannot resume from {path}: {reason}; give another --out or remove it") from None


def _recomputes(network: nn.Module) -> bool:
    """Whether it drops activations, whose recomputation asks for the state of random numbers, which is not recorded."""
    return getattr(getattr(network, "config", None), "checkpoint", False)


def check_finite(loss: float, number: int) -> None:
    """FloatingPointError: it is not, at the step of this number."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss} at step {number}; try a smaller lr or fp32")
