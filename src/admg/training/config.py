"""The options of a training run, in Python and on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from admg.config import check, setting
from admg.data import ClassSampling
from admg.data.sampling import Sampling, parse_weights
from admg.data.workers import MAX_WORKERS
from admg.diffusion.losses import Objective
from admg.diffusion.weighting import Weighting, WeightingName
from admg.engine.compiling import Compile
from admg.engine.precision import Precision

from .lr import LRSchedule, check_schedule
from .profiles import DEFAULT, SNAPSHOT_PROFILES, Profile, Spec, parse_profiles, specs_of
from .services import LogChoice, services_of
from .timesteps import Timesteps, TimestepsName

MAX_BATCH_SIZE = 1 << 20
LABEL_DROPOUT = 0.1
"""Share of images that a new run trains on without their label."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training. A run that is resumed keeps its batch size, learning rate and warm-up if they are not given.

    steps: number of optimiser steps, including those before the run was resumed
    batch_size: images per optimiser step
    accumulate: number of parts that a batch is computed in, one after the other, to save memory
    lr: learning rate of AdamW after the warm-up
    warmup: steps over which the learning rate rises linearly from 0
    lr_schedule: learning rate after the warm-up: constant, falling to 0 (linear or cosine), or falling from a certain
        step on with the inverse square root of the number of steps (inverse-sqrt)
    lr_anneal_steps: steps until linear and cosine reach 0, or until inverse-sqrt begins to fall; if not given, the
        learning rate depends on --steps and changes if a run is resumed with more steps (default: --steps; a tenth of
        it for inverse-sqrt)
    weight_decay: weight decay of AdamW
    ema: average of the weights that is used for sampling: a length such as 10% (the share of the run that it covers) or
        the decay of an exponential moving average such as 0.9999. Of several, separated by commas, the first is written
        to model/ and each of the others to its own folder, such as model-ema-0.999/
    ema_snapshots: steps between snapshots of two averages, from which admg ema makes averages of other lengths; they
        take 8 bytes of memory and up to 264 bytes of disk per parameter; 0 for none
    grad_clip: largest norm of the gradient, above 0; longer gradients are scaled down
    precision: number format of matrix products; auto uses bf16 where the processor multiplies it natively, else fp16 on
        a GPU with tensor cores, else fp32. fp16 scales the loss, and skips steps whose gradient overflows
    freeze: parameters that are not trained, by a pattern of their names such as 'input_blocks.*' or '*.qkv.*'
    shard: divide weights, gradients and optimiser state among the processes (FSDP2), for networks that do not fit
        otherwise; steps then run without the kernels of admg
    compile: whether to compile the network with torch.compile, which takes minutes; auto does not compile
    seed: seed of all random numbers
    sampling: how often each class is used: uniform uses all images equally often, balanced all classes, and weighted
        classes by --class-power or --class-weight
    class_power: with weighted: the share of a class is proportional to its number of images to this power: 1 is
        uniform, 0 balanced
    class_weight: with weighted: weight of a class relative to the others, whose weight is 1; 0 leaves it out
    workers: processes that load images; 0 loads them in the training process
    device: device to train on: auto, cpu or cuda; auto uses the GPU if there is one
    log: services that show the measurements, beside log.csv and metrics.jsonl: auto (TensorBoard if it is installed),
        tensorboard, wandb (Weights & Biases), trackio, mlflow, or none
    log_every: steps between rows of log.csv
    checkpoint_every: steps between checkpoints
    keep_checkpoints: number of latest checkpoints to keep
    keep_every: also keep checkpoints whose number of steps is a multiple of this; 0 for none
    disk_wait: minutes to wait for space when the disk is full before the run fails, with a message every minute; at
        most 20 with several processes
    rollback_lr: factor by which the learning rate is multiplied when a run goes back to a checkpoint because its loss
        was not finite or far too high for several steps; 1 keeps the learning rate
    preview_every: steps between previews: pictures of samples, or validation accuracies
    """

    steps: int = setting(100_000, min=1)
    batch_size: int | None = setting(None, min=1, max=MAX_BATCH_SIZE, default_text="16")
    accumulate: int = setting(1, min=1, max=MAX_BATCH_SIZE)
    lr: float | None = setting(None, above=0, default_text="1e-3, or up to 2e-3 for a batch of more than 16")
    warmup: int | None = setting(None, min=0, default_text="50")
    lr_schedule: LRSchedule = "constant"
    lr_anneal_steps: int | None = setting(None, min=1)
    weight_decay: float = setting(0.0, min=0)
    ema: Spec | tuple[Spec, ...] | None = setting(
        None, metavar="LENGTH%|DECAY", default_text=f"{DEFAULT}, or that of the resumed run"
    )
    ema_snapshots: int | None = setting(None, min=0, default_text="0, or that of the resumed run")
    grad_clip: float = setting(1.0, above=0, infinite=True)
    precision: Precision = "auto"
    freeze: tuple[str, ...] = setting((), repeat=True, metavar="PATTERN")
    shard: bool = False
    compile: Compile = "auto"
    seed: int = setting(0, min=0, max=2**63 - 1)
    sampling: Sampling = "uniform"
    class_power: float | None = setting(None, min=0, max=2)
    class_weight: tuple[str, ...] = setting((), metavar="CLASS=W", repeat=True)
    workers: int = setting(0, min=0, max=MAX_WORKERS)
    device: str = "auto"
    log: tuple[LogChoice, ...] = ("auto",)
    log_every: int = setting(50, min=1)
    checkpoint_every: int = setting(500, min=1)
    keep_checkpoints: int = setting(3, min=1)
    keep_every: int = setting(0, min=0)
    disk_wait: float = setting(0.0, min=0, metavar="MINUTES")
    rollback_lr: float = setting(0.5, above=0, max=1)
    preview_every: int = setting(1000, min=1)

    def __post_init__(self) -> None:
        for name in ("log", "freeze", "class_weight"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
        check(self)
        services_of(self.log)
        if self.ema is not None:
            object.__setattr__(self, "ema", specs_of(parse_profiles(self.ema)))  # 0.999 for "0.999"
        if self.shard and self.compile == "on":
            raise ValueError("shard and compile=on cannot be combined: a sharded network is never compiled")
        if self.shard and self.disk_wait:
            raise ValueError(
                "shard and disk_wait cannot be combined: the processes of a sharded network write together"
            )
        if self.batch_size is not None and self.accumulate > self.batch_size:
            raise ValueError(f"accumulate must be at most the batch size {self.batch_size}, got {self.accumulate}")
        check_schedule(self)
        given = (self.class_power is not None) + bool(self.class_weight)
        if self.sampling == "weighted" and not given:
            raise ValueError("sampling weighted needs class_power or class_weight")
        if given != (self.sampling == "weighted"):
            raise ValueError("class_power and class_weight need sampling='weighted', and cannot be combined")
        parse_weights(self.class_weight)

    @property
    def class_sampling(self) -> ClassSampling:
        """The shares of the classes."""
        power = {"uniform": 1.0, "balanced": 0.0, "weighted": self.class_power or 0.0}[self.sampling]
        return ClassSampling(power, parse_weights(self.class_weight))

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The averages of the weights that `ema` names."""
        return (DEFAULT,) if self.ema is None else parse_profiles(self.ema)

    @property
    def tracked_profiles(self) -> tuple[Profile, ...]:
        """The averages of the weights that training keeps: those that `ema` names, and those of snapshots."""
        more = SNAPSHOT_PROFILES if self.ema_snapshots else ()
        return tuple(dict.fromkeys((*self.profiles, *more)))


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """A TrainConfig with a value for every option, made by `defaults.fill_defaults`."""

    batch_size: int = setting(min=1, max=MAX_BATCH_SIZE)
    lr: float = setting(above=0)
    warmup: int = setting(min=0)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Objective and labels.

    objective: loss: simple (mean squared error), hybrid (simple + vlb-weight * vlb) or vlb (variational bound)
    vlb_weight: weight of the variational bound in the hybrid loss, for networks that learn the variance
    weighting: weight of the mean squared error by noise level: uniform, min-snr or p2
    weighting_gamma: largest signal-to-noise ratio of min-snr, or exponent of p2 (default: 5 for min-snr, 1 for p2)
    weighting_k: signal-to-noise ratio of p2 above which the weight falls
    timesteps: how timesteps are drawn: uniform, by their losses (loss-second-moment), or by the noise level from a
        logit-normal (of t) or log-normal (of sigma) density
    timesteps_mean: mean of the normal distribution (default: 0 for logit-normal, -1.2 for log-normal)
    timesteps_std: standard deviation of the normal distribution (default: 1 for logit-normal, 1.2 for log-normal)
    label_dropout: share of images that are trained without their label, which makes the model also unconditional
        (default: 0.1, or that of the resumed run)
    unlabelled: train an unconditional model; labels in files are ignored (as with --labels none)
    """

    objective: Objective = "hybrid"
    vlb_weight: float | None = setting(None, min=0, default_text="0.001")
    weighting: WeightingName = "uniform"
    weighting_gamma: float | None = setting(None, above=0)
    weighting_k: float | None = setting(None, above=0, default_text="1")
    timesteps: TimestepsName = "uniform"
    timesteps_mean: float | None = setting(None, min=-10, max=10)
    timesteps_std: float | None = setting(None, above=0)
    label_dropout: float | None = setting(None, min=0, max=1)
    unlabelled: bool = False

    def __post_init__(self) -> None:
        check(self)
        self.task_options()
        if self.vlb_weight is not None and self.objective != "hybrid":
            raise ValueError(f"vlb_weight applies only to the objective hybrid, not to {self.objective}")
        if self.weighting != "uniform" and self.objective == "vlb":
            raise ValueError(
                f"weighting must be uniform for objective vlb, which has no mean squared error, got {self.weighting}"
            )

    def task_options(self) -> dict[str, Any]:
        """Return the arguments of DiffusionTask and UpsamplerTask. Raises ValueError if options do not fit together."""
        try:
            weighting = Weighting(kind=self.weighting, gamma=self.weighting_gamma, k=self.weighting_k)
        except ValueError as error:
            raise ValueError(f"weighting_{error}") from None
        try:
            timesteps = Timesteps(kind=self.timesteps, mean=self.timesteps_mean, std=self.timesteps_std)
        except ValueError as error:
            raise ValueError(f"timesteps_{error}") from None
        return {
            "objective": self.objective,
            "label_dropout": LABEL_DROPOUT if self.label_dropout is None else self.label_dropout,
            "vlb_weight": self.vlb_weight,
            "weighting": weighting,
            "timesteps": timesteps,
        }
