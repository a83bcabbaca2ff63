"""One part of a batch per thread, instead of all threads sharing every operation.

A network has hundreds of operations. Threads that share each operation wait for each other after each one; on a core
that another process also uses, they wait as long as the other's turn. Threads that divide the images wait only once
per call.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from admg.engine.observers import is_transformed
from admg.engine.precision import Resolved, autocast
from admg.engine.process import threads_in_all

BALANCE = 1.15
"""Maximum ratio between the largest part and the mean; above it, threads share the operations instead."""


def parts_of(images: int, threads: int) -> int:
    """Return the number of parts of a batch: a divisor of the number of threads, which are divided among the parts."""
    fair = (n for n in range(min(threads, images), 1, -1) if threads % n == 0 and _ratio(images, n) <= BALANCE)
    return next(fair, 1)


def _ratio(images: int, parts: int) -> float:
    """Return the size of the largest part divided by the mean."""
    return math.ceil(images / parts) * parts / images


@dataclass(frozen=True)
class Inputs:
    """The arguments of a network, some of them with one row for each image.

    tensors: the arguments that have rows
    shared: the tensors that all images share
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    rows: int

    def _has_rows(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 0 and len(value) == self.rows

    @property
    def tensors(self) -> list[Tensor]:
        return [value for value in (*self.args, *self.kwargs.values()) if self._has_rows(value)]

    @property
    def shared(self) -> list[Tensor]:
        values = (*self.args, *self.kwargs.values())
        return [value for value in values if isinstance(value, Tensor) and not self._has_rows(value)]

    def call(self, network: Callable[..., Tensor], tensors: Sequence[Tensor]) -> Tensor:
        """Call the network with other tensors, or parts of them, instead of those that have rows."""
        given = iter(tensors)
        args = [next(given) if self._has_rows(value) else value for value in self.args]
        kwargs = {name: next(given) if self._has_rows(value) else value for name, value in self.kwargs.items()}
        return network(*args, **kwargs)


class InParts:
    """Calls of a network on a CPU, with a separate thread for each part of the batch.

    Values are the same up to rounding, and so are gradients with respect to the inputs, of any order. Weights get no
    gradients.

    network: called with parts of the batch
    plain: the network from which it was made; while any module of it is in training mode, the batch is not divided,
        since dropout would draw its numbers in an order that depends on the threads
    """

    def __init__(self, network: nn.Module, plain: nn.Module, precision: Resolved):
        self.network, self.modules, self.precision = network, list(plain.modules()), precision

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        x = args[0] if args else kwargs["x"]
        parts = parts_of(len(x), threads_in_all())
        if parts == 1 or torch.is_anomaly_enabled():  # whose traces need Python's lock
            return self.network(*args, **kwargs)
        if any(module.training for module in self.modules):
            return self.network(*args, **kwargs)
        inputs = Inputs(args, kwargs, len(x))
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs.shared):
            return self.network(*args, **kwargs)  # the parts would have to add up its gradient
        run = _Threads(parts, max(1, torch.get_num_threads() // parts), self.precision)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs.tensors):
            output: Tensor = _Differentiable.apply(self.network, inputs, run, *inputs.tensors)  # type: ignore[no-untyped-call]
            return output
        return torch.cat(run(lambda *tensors: inputs.call(self.network, tensors), run.divided(inputs.tensors)))


class _Differentiable(torch.autograd.Function):
    """A call in parts whose gradient is computed in the same parts."""

    @staticmethod
    def forward(ctx: Any, network: nn.Module, inputs: Inputs, run: _Threads, *tensors: Tensor) -> Tensor:
        def part(*tensors: Tensor) -> tuple[list[Tensor], Tensor]:
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_(needed) for t, needed in zip(tensors, needs)]
                return [leaf for leaf in leaves if leaf.requires_grad], inputs.call(network, leaves)

        needs = ctx.needs_input_grad[3:]
        ctx.network, ctx.inputs, ctx.run = network, inputs, run
        ctx.save_for_backward(*tensors)
        ctx.parts = run(part, run.divided(tensors))
        return torch.cat([output.detach() for _, output in ctx.parts])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[3:]
        again = torch.is_grad_enabled()
        if again or is_transformed(gradient):  # rare, for example for second derivatives
            with torch.enable_grad():
                tensors = [t.view_as(t) for t in ctx.saved_tensors]  # the inputs may depend on one another
                output = ctx.inputs.call(ctx.network, tensors)
            wanted = [tensor for tensor, needed in zip(tensors, needs) if needed]
            found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=again))
        else:
            divided = zip(ctx.parts, gradient.tensor_split(ctx.run.parts))
            grads = ctx.run(_gradients, [(leaves, output, part) for (leaves, output), part in divided])
            found = iter([torch.cat(of_input) for of_input in zip(*grads)])
        return None, None, None, *(next(found) if needed else None for needed in needs)


def _gradients(leaves: list[Tensor], output: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, leaves, gradient, retain_graph=True)  # it may be needed again


@dataclass(frozen=True)
class _Threads:
    """Calls a function with each of several lists of arguments at the same time.

    parts: number of calls
    threads: number of threads that the operations of each one may use
    """

    parts: int
    threads: int
    precision: Resolved

    def divided(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Return the rows of the tensors for each call."""
        return list(zip(*(tensor.tensor_split(self.parts) for tensor in tensors)))

    def __call__(self, function: Callable[..., Any], arguments: Sequence[Sequence[Any]]) -> list[Any]:
        inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        before, changed = torch.get_num_threads(), []

        def in_thread(given: Sequence[Any]) -> Any:
            if torch.get_num_threads() != self.threads:
                torch.set_num_threads(self.threads)
                changed.append(True)
            # Modes belong to a thread.
            with torch.inference_mode(inference), torch.set_grad_enabled(grad), autocast(self.precision, CPU):
                return function(*given)

        futures = [_pool(self.parts).submit(in_thread, given) for given in arguments]
        wait(futures)
        if changed:
            torch.set_num_threads(before)  # the number belongs to one thread, but later threads inherit it
        return [future.result() for future in futures]


CPU = torch.device("cpu")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="admg-part")


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not outlive a fork
