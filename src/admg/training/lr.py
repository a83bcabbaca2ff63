"""Learning rates: warm-up and decay, as functions of the step index alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .config import ResolvedConfig, TrainConfig

LRSchedule = Literal["constant", "linear", "cosine", "inverse-sqrt"]
DECAYS: dict[LRSchedule, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: max(0.0, 1 - done),  # guided-diffusion
    "cosine": lambda done: (1 + math.cos(math.pi * min(1.0, done))) / 2,  # Loshchilov & Hutter 2017, without restarts
    "inverse-sqrt": lambda done: 1 / math.sqrt(max(1.0, done)),  # EDM2
}
"""Share of the learning rate that is left, by the number of steps done divided by `anneal_steps`."""
ENDS_AT_0 = ("linear", "cosine")


def anneal_steps(config: TrainConfig) -> int:
    """Return the steps until `linear` and `cosine` reach 0, or until `inverse-sqrt` begins to fall."""
    return config.lr_anneal_steps or (config.steps if config.lr_schedule in ENDS_AT_0 else max(1, config.steps // 10))


def lr_at_step(config: ResolvedConfig, step: int) -> float:
    """Return the learning rate of a step, counted from 0: the product of lr, decay and warm-up."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup))
    return config.lr * warmup * DECAYS[config.lr_schedule](step / anneal_steps(config))


def check_schedule(config: TrainConfig) -> None:
    """Raise ValueError if the number of annealing steps does not fit the schedule."""
    steps = config.lr_anneal_steps
    if steps is not None and config.lr_schedule == "constant":
        raise ValueError("lr_anneal_steps applies only to lr_schedule linear, cosine and inverse-sqrt, not to constant")
    if steps is not None and config.lr_schedule in ENDS_AT_0 and steps < config.steps:
        raise ValueError(
            f"lr_anneal_steps must be at least the {config.steps} steps of the run, after which the learning rate "
            f"would be 0, got {steps}"
        )
