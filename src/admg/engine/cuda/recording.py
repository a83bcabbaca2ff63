"""Losses and gradients that a GPU replays from a recording (a CUDA graph), without Python launching each kernel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .graphs import CAPTURING, FIRST

Backward = Callable[[Sequence[Tensor]], dict[str, Tensor]]


class RecordedBackward:
    """backward(drawn), which adds gradients to the network's weights that have none yet, replayed from its third call.

    Of batches of another shape than that of the recording, and where a task does what cannot be recorded (wait for
    the GPU, say), it runs as usual.
    """

    def __init__(self, backward: Backward, network: nn.Module):
        self.plain, self.parameters = backward, list(network.parameters())
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, drawn: Sequence[Tensor]) -> dict[str, Tensor]:
        with torch.cuda.device(self.parameters[0].device):  # a recording is of the current GPU
            return self._call(drawn)

    def _call(self, drawn: Sequence[Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == FIRST + 1:
            self._record(drawn)
        if self.graph is None or [t.shape for t in drawn] != [t.shape for t in self.drawn]:
            return self.plain(drawn)
        for mine, given in zip(self.drawn, drawn):
            mine.copy_(given)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients):
            parameter.grad = gradient
        return {name: value.clone() for name, value in self.means.items()}

    def _record(self, drawn: Sequence[Tensor]) -> None:
        self.drawn = [tensor.clone() for tensor in drawn]
        graph = torch.cuda.CUDAGraph()
        try:
            with CAPTURING, torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.means = self.plain(self.drawn)
            self.gradients = [parameter.grad for parameter in self.parameters]
            self.graph = graph
        except RuntimeError as error:
            warnings.warn(f"training steps are not recorded: {str(error).splitlines()[0][:200]}", stacklevel=2)
        for parameter in self.parameters:
            parameter.grad = None
