"""CUDA graphs: a GPU replays the kernels of a network, without Python launching each of them.

At a batch of a few images, launching a network's thousand kernels takes longer than running them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from admg.engine.observers import is_transformed
from admg.warn import warn

Call = Callable[..., Tensor]
CAPTURING = threading.Lock()
"""Held during a capture: a process can capture one graph at a time."""
WARM_UP = 2
"""Number of ordinary calls of each kind before a capture: they compile kernels and choose algorithms."""


class GraphedCalls:
    """Calls of a network's function, replayed on a GPU from the third of each shape of inputs on.

    Values are the same, and so are gradients with respect to the images, of any order. Where weights need gradients,
    nothing is captured; changed weights lead to a new capture. Graphs hold on to the memory of one call each. Several
    threads may call it.

    function: called with the arguments of the network
    fits: (network, images) -> whether there is enough memory for a capture
    """

    def __init__(self, function: Call, network: nn.Module, fits: Callable[[nn.Module, Tensor], bool]):
        self.function, self.network, self.fits = function, network, fits
        self.lock = threading.RLock()
        self.calls: dict[Hashable, int] = {}
        self.graphs: dict[Hashable, Graph | None] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        others = [value for value in (*args, *kwargs.values()) if value is not None and not isinstance(value, Tensor)]
        if not args or others or not all(tensor.is_cuda for tensor in inputs) or not self._can_capture(inputs):
            return self.function(*args, **kwargs)
        kind = self._kind(args, kwargs)
        with self.lock:
            self.calls[kind] = self.calls.get(kind, 0) + 1
            if self.calls[kind] > WARM_UP:
                if kind not in self.graphs:
                    self.graphs[kind] = self._capture(args, kwargs)
                graph = self.graphs[kind]
                if graph is not None:
                    return graph(inputs)
        return self.function(*args, **kwargs)

    def _can_capture(self, inputs: list[Tensor]) -> bool:
        if torch.is_inference_mode_enabled() or torch.cuda.is_current_stream_capturing():
            return False
        here = all(tensor.get_device() == torch.cuda.current_device() for tensor in inputs)
        if not here or any(tensor.requires_grad for tensor in inputs[1:]) or self.network.training:
            return False
        return not (torch.is_grad_enabled() and any(p.requires_grad for p in self.network.parameters()))

    def _kind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        """Return a key that is equal for calls that run the same kernels."""

        def key(value: Any) -> Hashable:
            return (value.shape, value.dtype, value.stride()) if isinstance(value, Tensor) else value

        given = tuple(map(key, args)), tuple((name, key(value)) for name, value in kwargs.items())
        weights = tuple((id(p), p._version, p.data_ptr()) for p in self.network.parameters())
        around = _autocast(), torch.cuda.current_stream().cuda_stream
        return given, weights, around, torch.is_grad_enabled() and args[0].requires_grad

    def _capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph | None:
        """Return the graph of a call, or None if there is too little memory, or the call cannot be captured."""
        if not self.fits(self.network, args[0]):
            return None
        try:
            with CAPTURING:
                return Graph(self.function, args, kwargs, self.lock)
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            warn(f"CUDA graph capture of a network failed: {str(error).splitlines()[0][:200]}")
            return None


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


class Graph:
    """A captured call, and its gradient with respect to the first argument, if that requires one."""

    def __init__(self, function: Call, args: tuple[Any, ...], kwargs: dict[str, Any], lock: Any):
        self.function, self.lock, self.autocast = function, lock, _autocast()
        copies = [value.detach().clone() if isinstance(value, Tensor) else value for value in (*args, *kwargs.values())]
        self.args, self.kwargs = copies[: len(args)], dict(zip(kwargs, copies[len(args) :]))
        self.inputs = [value for value in copies if isinstance(value, Tensor)]
        x = self.inputs[0]
        self.differentiable = torch.is_grad_enabled() and args[0].requires_grad
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self.latest: object = None
        """A token of the call whose intermediate results the graph holds."""
        with torch.cuda.graph(self.forward, capture_error_mode="thread_local"):
            self.output = self.call(x.requires_grad_(self.differentiable))
        if self.differentiable:
            self.dy = torch.empty_like(self.output)
            with torch.cuda.graph(self.backward, pool=self.forward.pool(), capture_error_mode="thread_local"):
                (self.dx,) = torch.autograd.grad(self.output, x, self.dy)
            self.output = self.output.detach()

    def call(self, *inputs: Tensor) -> Tensor:
        """Call the function without the graph, with these inputs instead of the leading ones of self.inputs."""
        given = dict(zip(map(id, self.inputs), inputs))
        args = [given.get(id(value), value) for value in self.args]
        kwargs = {name: given.get(id(value), value) for name, value in self.kwargs.items()}
        with self._autocast():
            return self.function(*args, **kwargs)

    def _autocast(self) -> AbstractContextManager:
        enabled, dtype = self.autocast
        return torch.autocast(
            "cuda", dtype, enabled=enabled, cache_enabled=False
        )  # cached casts would not outlive the capture

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        if self.differentiable:
            return _Replay.apply(inputs[0], self, inputs)
        return self.replay(inputs)

    def replay(self, inputs: list[Tensor]) -> Tensor:
        with torch.no_grad():
            for static, given in zip(self.inputs, inputs):
                static.copy_(given)
            self.forward.replay()
            return self.output.clone()


class _Replay(torch.autograd.Function):
    """A replayed call. Its gradient is replayed once, or computed again if another call came in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, graph: Graph, inputs: list[Tensor]) -> Tensor:
        ctx.save_for_backward(x, *inputs[1:])
        ctx.graph, ctx.token = graph, object()
        graph.latest = ctx.token
        return graph.replay(inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        graph, again = ctx.graph, torch.is_grad_enabled()
        with graph.lock:
            if graph.latest is ctx.token and not again and not is_transformed(dy):
                graph.latest = None
                graph.dy.copy_(dy)
                graph.backward.replay()
                return graph.dx.clone(), None, None
        x, *others = ctx.saved_tensors
        with torch.enable_grad():
            x = x.view_as(x)
            (dx,) = torch.autograd.grad(graph.call(x, *others), x, dy, create_graph=again)
        return dx, None, None
