"""CUDA graphs of losses and gradients: a GPU replays a training step, without Python launching each kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from admg.warn import warn

from .graphs import CAPTURING, WARM_UP

Backward = Callable[[Sequence[Tensor]], dict[str, Tensor]]
"""Adds the gradients of a batch to the weights, and returns the mean of each term of the loss."""


class GraphedBackward:
    """backward(drawn), which adds gradients to weights without gradients; replayed from the third call on.

    Batches whose shape differs from the captured one run as usual. All batches do if the task cannot be captured, for
    example because it waits for the GPU.
    """

    def __init__(self, backward: Backward, network: nn.Module):
        self.plain, self.parameters = backward, list(network.parameters())
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, drawn: Sequence[Tensor]) -> dict[str, Tensor]:
        with torch.cuda.device(self.parameters[0].device):  # graphs are captured on the current GPU
            return self._call(drawn)

    def _call(self, drawn: Sequence[Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == WARM_UP + 1:
            self._capture(drawn)
        if self.graph is None or [t.shape for t in drawn] != [t.shape for t in self.drawn]:
            return self.plain(drawn)
        for static, given in zip(self.drawn, drawn):
            static.copy_(given)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient
        return {name: value.clone() for name, value in self.means.items()}

    def _capture(self, drawn: Sequence[Tensor]) -> None:
        self.drawn = [tensor.clone() for tensor in drawn]
        graph = torch.cuda.CUDAGraph()
        try:
            with CAPTURING, torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.means = self.plain(self.drawn)
            self.gradients = [parameter.grad for parameter in self.parameters]
            self.graph = graph
        except RuntimeError as error:
            warn(f"CUDA graph capture of a training step failed: {str(error).splitlines()[0][:200]}")
        for parameter in self.parameters:
            parameter.grad = None
