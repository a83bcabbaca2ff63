"""One training step: loss, gradient, clipping, AdamW, moving averages."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from admg.checkpoints.weights import is_finite
from admg.config import with_fields
from admg.diffusion.gaussian import working_dtype
from admg.engine import accelerate
from admg.engine.acceleration import prefers_channels_last
from admg.engine.compiling import compiles
from admg.engine.cuda.graphed_backward import Backward, GraphedBackward
from admg.engine.device import ALONE, Processes
from admg.engine.precision import autocast, resolve_training
from admg.warn import warn

from . import distributed
from .config import TrainConfig
from .defaults import fill_defaults
from .ema import EMA
from .freezing import freeze, is_matched
from .importance import importance_sampler_for
from .lr import lr_at_step
from .prefetch import step_seed
from .profiles import Power
from .scaling import LossScaler
from .sharding import is_sharded, local, network_state, shard, whole
from .tasks import Task, check_one_call

LOSSES = "losses"
"""Key of the per-image losses (N,) among the results of a backward pass, if timesteps are drawn by their losses."""


class Learner:
    """The state of a training run: a network that learns a task, averages of its weights, and the optimiser.

    processes: rank of this process and number of processes that train together, each with its part of every batch
    """

    def __init__(self, task: Task[Any], config: TrainConfig, device: torch.device, processes: Processes = ALONE):
        config = fill_defaults(config)
        self.task, self.config, self.device, self.processes = task, config, device, processes
        self.network = task.network.to(device).train()
        freeze(self.network, config.freeze)
        self.precision = resolve_training(config.precision, device)
        self.scaler = LossScaler(device, enabled=self.precision == "fp16")
        self.importance = importance_sampler_for(task)
        self.lr_factor = 1.0
        accelerated = not (config.shard or compiles(config.compile))
        if prefers_channels_last(self.precision, device, accelerated):
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.plain = copy.deepcopy(self.network).eval() if config.shard else self.network
        self.averages = [EMA(self.network, profile) for profile in config.tracked_profiles]
        if config.shard:
            for part in (self.network, *(average.network for average in self.averages)):
                shard(part, device, processes)
        fast = self._accelerated()
        self.fast_task = with_network(task, fast)
        if processes.count > 1 and self.fast_task.network is not fast:
            raise ValueError(
                f"{type(task).__name__} has no field `model` or `classifier`, and can be trained only in one process"
            )
        if processes.count > 1:
            check_one_call(task)
        named = dict(self.network.named_parameters())
        trained = [parameter for parameter in named.values() if parameter.requires_grad]
        if not trained:
            raise ValueError(
                "no parameter of the network requires a gradient, as in models that admg.load returns: call "
                "network.requires_grad_(True), or pass the model as init= of train_diffusion"
            )
        check_wide(named)
        still = [name for name, p in named.items() if not (p.requires_grad or is_matched(name, config.freeze))]
        if still and processes.rank == 0:
            warn(f"{len(still)} of {len(named)} parameters require no gradient, and are not trained: {still[0]}, ...")
        self.unchecked = isinstance(fast, DistributedDataParallel)
        """Whether the first backward pass of several processes is to come, after which its gradients are checked."""
        self.optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        self.compile = compiles(config.compile)
        self.backward: Backward = self._backward
        alone = processes.count == 1 and not config.shard
        if device.type == "cuda" and alone and not (self.compile or _recomputes(self.network)):
            self.backward = GraphedBackward(self._backward, self.network)  # a CUDA graph

    def _accelerated(self) -> nn.Module:
        """Return the network as it is trained: accelerated, and in parallel on several processes."""
        if self.config.shard:
            return self.network
        fast = self.network
        if self.precision != "fp16" or self.device.type != "cpu":  # where fp16 is emulated, without our kernels
            fast = accelerate(fast, precision=self.precision, training=True, compile=self.config.compile)
        return distributed.parallel(fast, self.device) if self.processes.count > 1 else fast

    @property
    def average(self) -> EMA:
        """The average of the weights used for samples: the first one in the configuration."""
        return self.averages[0]

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, number: int, drawn: Sequence[Tensor]) -> dict[str, Tensor]:
        """Take step `number`, counted from 0, and return the mean of each loss term and the norm of the gradient.

        drawn: this process's part of a batch, x_0 and labels, and of its random numbers from `task.draw`, on the device

        A step whose loss or gradient is not finite does not change the weights, and "skipped" is 1; in fp16 it halves
        the scale of the loss.
        """
        seed = step_seed(self.config.seed, number) + 1 + self.processes.rank
        torch.manual_seed(seed)  # dropout draws from torch's global generator
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_factor * lr_at_step(self.config, number)
        drawn = self._with_timesteps(drawn)
        means = self.backward(drawn)
        if self.importance is not None:
            self._remember(drawn[2], means.pop(LOSSES))
        means = distributed.averaged(means, self.processes)
        self.scaler.unscale(self.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self.network.parameters(), self.config.grad_clip))
        finite = bool(torch.isfinite(means["loss"]) & torch.isfinite(norm))  # waits for a GPU, as the log does anyway
        taken = self.scaler.step(self.optimizer, number) if finite or self.scaler.enabled else False
        self.optimizer.zero_grad(set_to_none=True)
        for average in self.averages:
            if taken or isinstance(average.profile, Power):  # its time is the number of the step
                average.update(self.network)
        skipped = {"skipped": norm.new_tensor(float(not taken))}
        return means | {"grad_norm": norm} | skipped | self.scaler.measurements(norm)

    def _with_timesteps(self, drawn: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the same tensors with timesteps chosen by importance, and the weights of losses at the end."""
        if self.importance is None:
            return drawn
        x, y, u, *others = drawn
        t, weights = self.importance.choose(u)
        return x, y, t, *others, weights.to(at_least_float32(x).dtype)

    def _remember(self, t: Tensor, losses: Tensor) -> None:
        """Add the losses of all processes to the history, in the order of the images of the batch."""
        assert self.importance is not None
        gathered = distributed.gathered(torch.stack([t.double(), losses.double()], 1), self.processes)
        self.importance.update(gathered[:, 0].long(), gathered[:, 1])

    def state(self) -> dict[str, Any]:
        """Return the state besides the network, its average and the optimiser."""
        parts = {"importance": self.importance, "scaler": self.scaler if self.scaler.enabled else None}
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return state | ({} if self.lr_factor == 1 else {"lr_factor": self.lr_factor, "lr": self.config.lr})

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`; entries without a counterpart in this run are ignored.

        The factor after a rollback belongs to the learning rate of that run: another one is used as it is given.
        """
        same_lr = state.get("lr", self.config.lr) == self.config.lr
        self.lr_factor = float(state.get("lr_factor", 1.0)) if same_lr else 1.0
        if self.importance is not None and "importance" in state:
            self.importance.load_state_dict(state["importance"])
        if self.scaler.enabled and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])

    def _backward(self, drawn: Sequence[Tensor]) -> dict[str, Tensor]:
        """Accumulate the gradient of the batch's mean loss over its parts, and return the mean of each term."""
        count = len(drawn[0])
        means: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        size = -(-count // self.config.accumulate)
        parts = list(zip(*(torch.split(tensor, size) for tensor in drawn), strict=True))
        calls = _Calls(self.fast_task.network) if self.unchecked else None
        for number, part in enumerate(parts, 1):
            with self._gradients_exchanged(number == len(parts)):
                given, weights = (part, None) if self.importance is None else (part[:-1], part[-1])
                with autocast(self.precision, self.device):
                    terms = self.fast_task.loss(*given)
                values = {name: at_least_float32(value) for name, value in terms.items()}
                if weights is not None:
                    losses.append(values["loss"].detach())
                    values = {name: weights * value for name, value in values.items()}
                sums = {name: value.sum() / count for name, value in values.items()}
                torch.autograd.backward(self.scaler.scale(sums["loss"]))
            means = {name: value.detach() + means.get(name, 0.0) for name, value in sums.items()}
        if calls is not None:
            calls.check(self.task, self.network)
            self.unchecked = False
        return means | ({LOSSES: torch.cat(losses)} if losses else {})

    def _gradients_exchanged(self, last: bool) -> AbstractContextManager[None]:
        """Return the context of one part of a batch: gradients are averaged over the processes after the last part."""
        network = self.fast_task.network
        if is_sharded(network):
            network.set_requires_gradient_sync(last)
        elif isinstance(network, DistributedDataParallel) and not last:
            return network.no_sync()
        return nullcontext()

    def first_nonfinite(self) -> str | None:
        """Return the part of the state that holds NaN or an infinite number (the loss may still be finite), or None."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        parts = {
            "weights": self.network.state_dict().values(),
            "averaged weights": [t for average in self.averages for t in average.network.state_dict().values()],
            "moments of the optimiser": [value for value in moments if isinstance(value, Tensor)],
        }
        return next((name for name, some in parts.items() if not all(is_finite(local(t)) for t in some)), None)

    def averaged_network(self, average: EMA | None = None) -> nn.Module:
        """Return the network with averaged weights. If it is sharded, all processes must call this together.

        average: one of `averages`; None for the first
        """
        average = average or self.average
        if not self.config.shard:
            return average.network
        if state := network_state(average.network):  # empty except in the first process
            self.plain.load_state_dict(state)
        return self.plain


class _Calls:
    """Checks that DistributedDataParallel averages the gradients of all parameters: it must be called, and use all."""

    def __init__(self, network: nn.Module):
        self.count = 0
        self.handle = network.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.count += 1

    def check(self, task: Any, network: nn.Module) -> None:
        """Raise ValueError if the processes would train different networks, or wait for a gradient forever."""
        self.handle.remove()
        if not self.count:
            raise ValueError(
                f"the loss of {type(task).__name__} does not call the network of its model, such as "
                "self.model.network: several processes would train different networks"
            )
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise ValueError(
                    f"the loss does not depend on the parameter {name}, which training in several processes requires: "
                    "freeze it, or remove it from the network"
                )


def check_wide(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise ValueError for trained weights in half precision, whose small updates, and averages, are rounded away."""
    for name, p in parameters.items():
        if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"weights to be trained must be float32, got {name} in {str(p.dtype).removeprefix('torch.')}: call "
                "network.float(), and choose the precision of matrix products by TrainConfig(precision=...)"
            )


def with_network(task: Any, network: nn.Module) -> Any:
    """Return a copy of the task with this network in its model or classifier, and in those of a task that it holds.

    A task without either is returned unchanged.
    """
    name = next((name for name in ("model", "classifier") if hasattr(task, name)), None)
    if name is None or not dataclasses.is_dataclass(task):
        return task
    part = getattr(task, name)
    within = {
        key: with_network(value, network)
        for key, value in vars(task).items()
        if dataclasses.is_dataclass(value) and getattr(value, name, None) is part
    }
    return with_fields(task, **within, **{name: with_fields(part, network=network)})


def at_least_float32(values: Tensor) -> Tensor:
    """Return the values in float32, or in float64 if they are."""
    return values.to(working_dtype(values))


def _recomputes(network: nn.Module) -> bool:
    """Whether the network recomputes activations, which reads the random state and cannot be captured in a graph."""
    return bool(getattr(getattr(network, "config", None), "checkpoint", False))
