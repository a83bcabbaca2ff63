"""Networks whose kernels a GPU replays from a recording (a CUDA graph), without Python launching each of them.

At a batch of a few images, launching a network's thousand kernels takes longer than running them.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from admg.engine.exchange import is_heard, is_watched
from admg.models.blocks import AttentionBlock
from admg.models.unet import UNetEncoder

Call = Callable[..., Tensor]
CAPTURING = threading.Lock()
"""Held while something is recorded: a process can record one thing at a time."""
FIRST = 2
"""Calls of one kind that run as usual: they compile kernels and choose algorithms, which must not be recorded."""


@contextmanager
def recorded(*networks: nn.Module, fits: Callable[[nn.Module, Tensor], bool] = lambda *_: True) -> Iterator[None]:
    """Within it, calls of these networks on a GPU are replayed, from the third of each shape of inputs on.

    Values are the same, and so are gradients in the images, of any order. Where somebody hooks into a module, or
    weights want gradients, nothing is recorded; with other weights it is recorded anew. Other networks than ours, which
    may do what cannot be recorded, run as usual. A recording holds on to the memory of one call until the end.

    fits: (network, images) -> whether there is memory for a recording
    """
    free = [network for network in networks if isinstance(network, UNetEncoder) and network._compiled_call_impl is None]
    mine = {network: Recorder(network, fits) for network in free}
    for network, recorder in mine.items():
        network._compiled_call_impl = recorder  # what nn.Module.compile sets
    try:
        yield
    finally:
        for network in mine:
            network._compiled_call_impl = None


class Recorder:
    """What is called in place of a network. Several threads may call it."""

    def __init__(self, network: nn.Module, fits: Callable[[nn.Module, Tensor], bool]):
        self.network, self.fits = network, fits
        self.plain: Call = network._call_impl
        self.lock = threading.RLock()
        self.attention = [module for module in network.modules() if isinstance(module, AttentionBlock)]
        self.calls: dict[Hashable, int] = {}
        self.recordings: dict[Hashable, Recording | None] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        others = [value for value in (*args, *kwargs.values()) if value is not None and not isinstance(value, Tensor)]
        if not args or others or not all(tensor.is_cuda for tensor in inputs) or not self._recordable(inputs):
            return self.plain(*args, **kwargs)
        kind = self._kind(args, kwargs)
        with self.lock:
            self.calls[kind] = self.calls.get(kind, 0) + 1
            if self.calls[kind] > FIRST:
                if kind not in self.recordings:
                    self.recordings[kind] = self._record(args, kwargs)
                recording = self.recordings[kind]
                if recording is not None:
                    return recording(inputs)
        return self.plain(*args, **kwargs)

    def _recordable(self, inputs: list[Tensor]) -> bool:
        if is_watched() or torch.is_inference_mode_enabled() or torch.cuda.is_current_stream_capturing():
            return False
        here = all(tensor.get_device() == torch.cuda.current_device() for tensor in inputs)
        if not here or any(tensor.requires_grad for tensor in inputs[1:]) or self.network.training:
            return False
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.network.parameters()):
            return False
        return not any(map(is_heard, self.network.modules()))

    def _kind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        """Of calls that run the same kernels."""

        def of(value: Any) -> Hashable:
            return (value.shape, value.dtype, value.stride()) if isinstance(value, Tensor) else value

        given = tuple(map(of, args)), tuple((name, of(value)) for name, value in kwargs.items())
        weights = tuple((id(p), p._version) for p in self.network.parameters())
        around = _autocast(), torch.cuda.current_stream().cuda_stream, tuple(block.identity for block in self.attention)
        return given, weights, around, torch.is_grad_enabled() and args[0].requires_grad

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording | None:
        """None: there is too little memory, or it cannot be done."""
        if not self.fits(self.network, args[0]):
            return None
        try:
            with CAPTURING:
                return Recording(self.plain, args, kwargs, self.lock)
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            warnings.warn(f"a network is not recorded: {str(error).splitlines()[0][:200]}", stacklevel=2)
            return None


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


class Recording:
    """A call, and its gradient in the first argument, if that wants one."""

    def __init__(self, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any], lock: Any):
        self.function, self.lock, self.autocast = function, lock, _autocast()
        copies = [value.detach().clone() if isinstance(value, Tensor) else value for value in (*args, *kwargs.values())]
        self.args, self.kwargs = copies[: len(args)], dict(zip(kwargs, copies[len(args) :]))
        self.inputs = [value for value in copies if isinstance(value, Tensor)]
        x = self.inputs[0]
        self.differentiable = torch.is_grad_enabled() and args[0].requires_grad
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self.latest: object = None
        """Tells the call whose intermediate results are there."""
        with torch.cuda.graph(self.forward, capture_error_mode="thread_local"):
            self.output = self.call(x.requires_grad_(self.differentiable))
        if self.differentiable:
            self.dy = torch.empty_like(self.output)
            with torch.cuda.graph(self.backward, pool=self.forward.pool(), capture_error_mode="thread_local"):
                (self.dx,) = torch.autograd.grad(self.output, x, self.dy)
            self.output = self.output.detach()

    def call(self, *inputs: Tensor) -> Tensor:
        """The call as usual, with these in the place of the leading ones of self.inputs."""
        given = dict(zip(map(id, self.inputs), inputs))
        args = [given.get(id(value), value) for value in self.args]
        kwargs = {name: given.get(id(value), value) for name, value in self.kwargs.items()}
        with self._autocast():
            return self.function(*args, **kwargs)

    def _autocast(self) -> AbstractContextManager:
        enabled, dtype = self.autocast
        return torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False)  # its copies would not be kept

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        if self.differentiable:
            return _Replay.apply(inputs[0], self, inputs)
        return self.replay(inputs)

    def replay(self, inputs: list[Tensor]) -> Tensor:
        with torch.no_grad():
            for mine, given in zip(self.inputs, inputs):
                mine.copy_(given)
            self.forward.replay()
            return self.output.clone()


class _Replay(torch.autograd.Function):
    """A replayed call. Its gradient is replayed once, if no other call came in between; else all is computed anew."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, recording: Recording, inputs: list[Tensor]) -> Tensor:
        ctx.save_for_backward(x, *inputs[1:])
        ctx.recording, ctx.token = recording, object()
        recording.latest = ctx.token
        return recording.replay(inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        recording, again = ctx.recording, torch.is_grad_enabled()
        with recording.lock:
            if recording.latest is ctx.token and not again:
                recording.latest = None
                recording.dy.copy_(dy)
                recording.backward.replay()
                return recording.dx.clone(), None, None
        x, *others = ctx.saved_tensors
        with torch.enable_grad():
            x = x.view_as(x) if again else x.detach().requires_grad_()
            (dx,) = torch.autograd.grad(recording.call(x, *others), x, dy, create_graph=again)
        return dx, None, None
