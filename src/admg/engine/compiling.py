"""What makes networks fast as they are: precision, compiled and recorded graphs, laid out weights, within a context.

torch.compile without a wrapper: one graph for all batch sizes, and eager where the compiler fails.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from admg.files import cache_folder

from .cpu.packing import packed
from .cuda.graphs import recorded
from .cuda.halving import halved
from .memory import call_bytes, free_bytes, keep_freed_memory
from .precision import DTYPES, Precision, autocast, float32_proper, resolve

Compile = Literal["auto", "on", "off"]


class Built(dict[str, Callable[..., Any]]):
    """Backend -> what it made of a network, kept in that network; a copy of the network begins without."""

    def __deepcopy__(self, memo: Any) -> Built:
        return Built()

    def __reduce__(self) -> tuple[type[Built], tuple[()]]:
        return Built, ()


def wanted(compile: Compile) -> bool:
    """`auto`: no. Building takes minutes; kernels of our own, weights laid out and recordings gain as much without.

    ValueError: an unknown mode.
    """
    if compile not in get_args(Compile):
        raise ValueError(f"unknown compile mode {compile!r}: {', '.join(get_args(Compile))}")
    return compile == "on"


@contextmanager
def fast(
    networks: Sequence[nn.Module],
    device: torch.device,
    *,
    precision: Precision = "fp32",
    compile: Compile = "auto",
) -> Iterator[None]:
    """Within it, these networks run as fast as they can in this precision; their weights must not change.

    With weights laid out once, if there is memory for them, and on a GPU recorded and replayed; or compiled. Networks
    that are so already stay as they are. ValueError: an unknown mode or precision, fp16 on a CPU.
    """
    keep_freed_memory(device.type)
    to_compile = wanted(compile)
    dtype = DTYPES[resolve(precision, device)]
    fits = not to_compile and _fits(networks, device)
    to_pack = fits and device.type == "cpu"
    to_halve = fits and device.type == "cuda" and dtype != torch.float32
    with (
        autocast(precision, device),  # first: packed() lays weights out for its format
        compiled(*networks if to_compile else []),
        packed(*networks if to_pack else []),
        halved(*networks if to_halve else [], dtype=dtype),
        recorded(*networks if device.type == "cuda" and not to_compile else [], fits=_recording_fits),
        torch.cuda.device(device) if device.type == "cuda" else nullcontext(),  # where Triton launches
        float32_proper() if device.type == "cuda" and dtype == torch.float32 else nullcontext(),
    ):
        yield


def _fits(networks: Sequence[nn.Module], device: torch.device) -> bool:
    """Whether there is room for the weights as they are laid out, at most four times their size there and back each."""
    free = free_bytes(device)
    size = sum(p.numel() * p.element_size() for network in networks for p in network.parameters())
    return free is None or 8 * size < free


def _recording_fits(network: nn.Module, x: Tensor) -> bool:
    """Whether the memory that a call may take (see memory.batch_size) is free three times."""
    free = free_bytes(x.device)
    return free is None or 3 * call_bytes(network, x.shape[1:]) * len(x) < free


@contextmanager
def compiled(*networks: nn.Module, backend: str = "inductor") -> Iterator[None]:
    """Within it, calls of these networks run compiled, at any batch size.

    What was built serves the next time too: in this process for the same network, in others from a cache on disk
    ($TORCHINDUCTOR_CACHE_DIR, by default in admg's cache folder). If the compiler fails when a network is called, a
    warning says so, and it runs uncompiled. A network that is compiled already stays as it is.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
    mine = [(network, _build(network, backend)) for network in networks if network._compiled_call_impl is None]
    for network, call in mine:
        network._compiled_call_impl = call  # what nn.Module.compile sets
    try:
        yield
    finally:
        for network, _ in mine:
            network._compiled_call_impl = None


def _build(network: nn.Module, backend: str) -> Callable[..., Any]:
    built = network.__dict__.setdefault("_built", Built())
    if backend not in built:
        forward = network._call_impl
        built[backend] = _or_eager(torch.compile(forward, backend=backend), forward)
    return built[backend]


def _or_eager(fast: Callable[..., Any], eager: Callable[..., Any]) -> Callable[..., Any]:
    """The first, its batch sizes dynamic; once it has failed in the compiler, always the second."""
    failed = False

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if failed:
            return eager(*args, **kwargs)
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim and len(value) > 1:
                torch._dynamo.maybe_mark_dynamic(value, 0)
        try:
            return fast(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            failed = True
            cause = getattr(error, "inner_exception", error)
            first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            warnings.warn(f"torch.compile failed, going on without it: {first[:200]}", stacklevel=2)
            return eager(*args, **kwargs)

    return call
