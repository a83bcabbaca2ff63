"""The options of a training, which are those of the command line too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from admg.engine.compiling import Compile

TrainPrecision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    steps: optimiser steps in all, those before a resumption included
    batch_size: images per step
    accumulate: parts that a batch is computed in, one after the other, for less memory; without dropout the step is
        the same, with dropout it is of another draw
    lr: learning rate of AdamW, after the warm-up
    warmup: steps over which the learning rate grows linearly from 0
    weight_decay: of AdamW
    ema: decay of the exponential moving average of the weights; it begins small and rises to this
    grad_clip: largest norm of the gradient
    precision: auto, fp32 or bf16 (mixed); auto takes bf16 where the processor has it natively
    compile: auto, on or off: torch.compile, which takes minutes to build; auto is off
    seed: of everything random
    workers: processes that load images; 0: none, for data in memory
    device: cpu or cuda; auto takes cuda if there is one
    log_every: steps between rows of log.csv
    checkpoint_every: steps between checkpoints
    preview_every: steps between pictures of samples or validations
    """

    steps: int = 100_000
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 3e-4
    warmup: int = 500
    weight_decay: float = 0.0
    ema: float = 0.9999
    grad_clip: float = 1.0
    precision: TrainPrecision = "auto"
    compile: Compile = "auto"
    seed: int = 0
    workers: int = 0
    device: str = "auto"
    log_every: int = 50
    checkpoint_every: int = 500
    preview_every: int = 1000

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "checkpoint_every", "preview_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, allowed in (("precision", get_args(TrainPrecision)), ("compile", get_args(Compile))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate {self.accumulate}: a batch of {self.batch_size} has not so many parts")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
