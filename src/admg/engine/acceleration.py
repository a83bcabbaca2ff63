"""accelerate(): a network that shares the parameters of a plain one and computes the same faster."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from admg.config import with_fields
from admg.models.surgery import Replace, with_replaced

from .blocks import OURS, fused, has_fast_parts
from .compiling import Compile, compiled, compiles
from .cpu import winograd
from .cpu.parts import InParts
from .cpu.prepack import prepacked
from .cpu.training import trainable
from .cuda.cast import with_cast_weights
from .cuda.graphs import GraphedCalls
from .memory import call_bytes, free_bytes
from .observers import Snapshot, is_traced
from .precision import DTYPES, Precision, Resolved, autocast, resolve

T = TypeVar("T")


def accelerate(
    network: nn.Module,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    training: bool = False,
    compile: Compile = "off",
) -> nn.Module:
    """Return a network that computes what the given one does, faster, and shares its parameters.

        network = admg.load("fashion-mnist").network
        fast = admg.engine.accelerate(network, precision="bf16")
        fast(x, timesteps, y)

    The given network is not changed. Both networks share the same Parameter objects under the same names, so loading,
    moving or training one affects the other. They also share submodules, on which hooks can be registered. An
    accelerated network of admg is an instance of the same class; any other is a view with the same attributes.
    `fast.plain` is the given network.

    Blocks are fused, and weights are arranged for the device once: on a CPU for kernels in C and oneDNN, on a GPU cast
    to half precision, with CUDA graphs of whole calls. Outputs and gradients with respect to images differ from those
    of the plain network by rounding. Gradients of weights need `training=True`; without it, they are computed by the
    plain network. The plain network also runs if a module has hooks, under torch.compile, torch.export, torch.jit,
    torch.func and forward-mode differentiation, and in float64. Layers whose weights have changed since they were
    arranged fall back to the plain network: call accelerate() again. Changes that do not increment the version of a
    tensor (through `.data`, NumPy or peft's `merge`) are detected on a CPU only, by comparing three elements of each
    weight. Layers may be replaced and their settings changed at any time: the fast network is rebuilt at the next call.

    network: a UNet, SuperResUNet or NoisyClassifier, or any module; blocks of ours and convolutions in it are replaced
    device: device to move the network to (default: where it is)
    precision: format of matrix products, see precision.resolve
    training: for a network whose weights are being trained
    compile: "on" compiles the network by torch.compile instead of fusing blocks
    Raises ValueError for a precision that the device does not have, or an unknown mode.
    """
    if device is not None:
        network.to(device)
    return _accelerate(network, precision, training, compile, images_only=False)


def _accelerate(
    network: nn.Module, precision: Precision, training: bool, compile: Compile, images_only: bool
) -> nn.Module:
    place = next((p.device for p in network.parameters()), torch.device("cpu"))
    options = Options(resolve(precision, place), training, compiles(compile), images_only)
    if isinstance(network, Accelerated):
        if network.options == options:
            return network
        network = network.plain
    if options.precision == "fp32" and not options.compile and not has_fast_parts(network):
        return network
    return _facade(cast(Any, type(network)))(network, options)


def prefers_channels_last(precision: Resolved, device: torch.device, accelerated: bool = True) -> bool:
    """Whether the convolutions of a network that is trained are faster with weights in channels_last.

    accelerated: whether our kernels compute them, where there are any
    """
    ours = accelerated and winograd.pays(torch.bfloat16)
    return device.type == "cuda" or (precision == "bf16" and not ours)


def accelerate_parts(part: T, precision: Precision = "auto", compile: Compile = "off") -> T:
    """Return a dataclass, such as a Model or a guide, with all its networks accelerated; the given one is not changed.

    Networks are looked for in fields, and in the dataclasses, lists and tuples that they hold. A network that occurs
    twice is accelerated once; one that is already accelerated stays as it is.
    """

    def fast(network: nn.Module) -> nn.Module:
        known = isinstance(network, Accelerated)
        return network if known else _accelerate(network, precision, False, compile, images_only=True)

    return with_networks(part, fast)


def with_networks(part: T, replace: Callable[[nn.Module], nn.Module]) -> T:
    """Return a dataclass, such as a Model or a guide, with each of its networks replaced; it is not changed itself."""
    return cast(T, _with_networks(part, replace, {}))


def _with_networks(part: Any, replace: Callable[[nn.Module], nn.Module], done: dict[int, Any]) -> Any:
    if id(part) in done:
        return done[id(part)]
    result = part
    if isinstance(part, nn.Module):
        result = replace(part)
    elif type(part) in (list, tuple):
        items = [_with_networks(item, replace, done) for item in part]
        if any(new is not old for new, old in zip(items, part)):
            result = type(part)(items)
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        values = {f.name: getattr(part, f.name, None) for f in dataclasses.fields(part) if f.init}
        new = {name: _with_networks(value, replace, done) for name, value in values.items()}
        if changed := {name: value for name, value in new.items() if value is not values[name]}:
            result = with_fields(part, **changed)
    done[id(part)] = result
    return result


@dataclass(frozen=True)
class Options:
    """How a network is accelerated."""

    precision: Resolved
    training: bool
    compile: bool
    images_only: bool = False
    """Whether weights get no gradients, even if they require them: sampling differentiates in images only."""


@dataclass
class Build:
    """A fast network and the state of the plain one that it was built from.

    call: the function to call; network: the fused network, or None if there is none
    """

    snapshot: Snapshot
    call: Callable[..., Tensor]
    network: nn.Module | None = None
    variants: dict[Any, nn.Module] = field(default_factory=dict)


class Accelerated(nn.Module):
    """Proxy of a plain network: it has the same parameters and submodules, and computes with a faster network.

    accelerate() makes it. Its class derives from that of the plain network.
    """

    plain: nn.Module
    options: Options

    def __init__(self, plain: nn.Module, options: Options, build: Build | None = None):
        fresh = nn.Module()  # the constructor of the network's class is not called: it would create parameters
        vars(self).update(vars(fresh), plain=plain, options=options, _build=build)
        shared = "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"
        vars(self).update({name: vars(plain)[name] for name in shared})

    @property
    def training(self) -> bool:
        return self.plain.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.plain.training = mode

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "plain" not in vars(self):
                raise
            return getattr(vars(self)["plain"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_compiling():  # compilers see the plain network
            with autocast(self.options.precision, self._device()):
                return self.plain(*args, **kwargs)
        device = self._device()
        with ExitStack() as stack:
            stack.enter_context(autocast(self.options.precision, device))
            if device.type == "cuda":
                stack.enter_context(torch.cuda.device(device))  # where Triton launches
            return self._function()(*args, **kwargs)

    def _function(self) -> Callable[..., Tensor]:
        """Return the fast network, or the plain one where it is required."""
        build: Build | None = vars(self)["_build"]
        if is_traced():
            return self.plain
        if build is None or not build.snapshot.is_current():
            build = vars(self)["_build"] = _built(self.plain, self.options)
        return self.plain if build.snapshot.is_observed() or self._trains(build) else build.call

    def _trains(self, build: Build) -> bool:
        """Whether weights need gradients that the fast network does not give them."""
        if self.options.training or self.options.images_only or not torch.is_grad_enabled():
            return False
        return build.snapshot.trains()

    def _device(self) -> torch.device:
        return next((p.device for p in self.plain.parameters()), torch.device("cpu"))

    def with_replaced(self, replace: Replace) -> nn.Module:
        """As models.surgery.with_replaced, for the accelerated network. Fast layers are shared; results are cached."""
        self._function()
        build: Build = vars(self)["_build"] or _built(self.plain, self.options)
        if replace not in build.variants:
            plain, network = with_replaced(self.plain, replace), None
            if build.network is not None:
                network = with_replaced(build.network, replace)
            variant = _build_of(plain, network, self.options)
            build.variants[replace] = _facade(cast(Any, type(plain)))(plain, self.options, variant)
        return build.variants[replace]

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return type(self)(copy.deepcopy(self.plain, memo), self.options)

    def __copy__(self) -> nn.Module:
        return type(self)(copy.copy(self.plain), self.options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.plain, self.options)


@cache
def _facade(kind: Any) -> type[Accelerated]:
    """Return the class of accelerated networks of this class."""
    if not issubclass(kind, OURS):
        return Accelerated
    return type(f"Accelerated{kind.__name__}", (Accelerated, kind), {"__module__": Accelerated.__module__})


def _unpickled(plain: nn.Module, options: Options) -> Accelerated:
    return _facade(cast(Any, type(plain)))(plain, options)


def _built(plain: nn.Module, options: Options) -> Build:
    """Build the fast network."""
    if options.compile:
        return Build(Snapshot(plain), compiled(plain))
    first = next(plain.parameters(), None)
    if first is None or first.dtype == torch.float64:
        return Build(Snapshot(plain), plain)
    device, dtype = first.device, DTYPES[options.precision]
    prepare: Callable[[nn.Module], nn.Module] = lambda layer: layer  # noqa: E731
    if options.training:
        prepare = trainable
    elif _weights_fit(plain, device):
        if device.type == "cpu":
            prepare = lambda layer: prepacked(layer, dtype)  # noqa: E731
        elif device.type == "cuda" and dtype != torch.float32:
            prepare = lambda layer: with_cast_weights(layer, dtype)  # noqa: E731
    network = with_replaced(plain, lambda name, module: fused(name, prepare(module)))
    return _build_of(plain, network, options)


def _build_of(plain: nn.Module, network: nn.Module | None, options: Options) -> Build:
    if network is None:
        return Build(Snapshot(plain), compiled(plain) if options.compile else plain)
    device = next(plain.parameters()).device
    call: Callable[..., Tensor] = network
    if not options.training and isinstance(plain, OURS):  # other networks are unknown
        if device.type == "cuda":
            call = GraphedCalls(network, plain, _graph_fits)
        elif device.type == "cpu":
            call = InParts(network, plain, options.precision)
    return Build(Snapshot(plain), call, network)


def _weights_fit(network: nn.Module, device: torch.device) -> bool:
    """Whether there is memory for prepared weights, for outputs and for gradients (see cpu.prepack)."""
    free = free_bytes(device)
    sizes = ((p.numel(), p.element_size()) for p in network.parameters())
    most = sum(2 * count * size * (4 if count <= 9 * winograd.MAX_CACHED_FILTERS else 1) for count, size in sizes)
    return free is None or most < free


def _graph_fits(network: nn.Module, x: Tensor) -> bool:
    """Whether three times the memory that a call may take (see memory.batch_size) is free."""
    free = free_bytes(x.device)
    return free is None or 3 * call_bytes(network, x.shape[1:]) * len(x) < free
