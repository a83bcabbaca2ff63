"""Whether anything observes what a network computes: hooks, tracing, transforms. Then only the plain network will do.

Private names of torch in this file were tried with torch 2.13; there are no public ones for these questions.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook  # hooks on all modules; nothing public lists them

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
"""Where nn.Module keeps its hooks. The dictionaries live as long as the module and are changed in place."""


def is_traced() -> bool:
    """Whether calls are traced or transformed: torch.compile, torch.export, torch.jit, torch.func, forward-mode AD."""
    if torch.compiler.is_compiling():  # its tracer understands none of the others
        return True
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()  # make_fx, fake tensors, FLOP counters
    )


class Snapshot:
    """The structure of a network at one time, and all places where hooks can appear. Checks take microseconds."""

    def __init__(self, network: nn.Module):
        modules = list(network.modules())
        self.hooks = [getattr(module, name) for module in modules for name in HOOKS]
        self.children = [module._modules for module in modules if module._modules]
        self.were = [dict(children) for children in self.children]
        self.parameter = next(network.parameters(), None)
        self.kind = None if self.parameter is None else (self.parameter.device, self.parameter.dtype)

    def is_observed(self) -> bool:
        """Whether any module has hooks."""
        return _has_any_global_hook() or any(self.hooks)

    def is_current(self) -> bool:
        """Whether the network still consists of the same modules, on the same device and in the same dtype."""
        kind = None if self.parameter is None else (self.parameter.device, self.parameter.dtype)
        return kind == self.kind and self.children == self.were
