"""Detection of hooks, tracing and transforms, which require the plain network.

Private names of torch in this file were tested with torch 2.13; there are no public equivalents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook  # hooks on all modules; nothing public lists them

from admg.models.surgery import is_known

from .layers import computes_plainly

HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
"""Where nn.Module keeps its hooks. The dictionaries live as long as the module and are changed in place."""


def is_traced() -> bool:
    """Whether calls are traced or transformed: torch.compile, torch.export, torch.jit, torch.func, forward-mode AD."""
    if torch.compiler.is_compiling():  # its tracer does not support the other checks
        return True
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()  # make_fx, fake tensors, FLOP counters
    )


def is_transformed(gradient: Tensor) -> bool:
    """Whether calls are traced or transformed, or this stands for many gradients at once (is_grads_batched=True)."""
    return is_traced() or torch._C._functorch.is_legacy_batchedtensor(gradient)


class Snapshot:
    """What a fast network is built from at one time, and all places where hooks can appear. Checks take microseconds.

    Besides the modules and their classes, these are the plain attributes of those that fast modules stand for or are
    copies of. Of other modules, whose attributes are read from the original, it is whether they have a `forward` of
    their own.
    """

    def __init__(self, network: nn.Module):
        modules = list(network.modules())
        self.modules, self.classes = modules, [*map(type, modules)]
        self.attributes = [vars(module) for module in modules if _is_read_once(module)]
        self.counts = [*map(len, self.attributes)]
        watched = [(found, name) for found in self.attributes for name in found if _is_plain(name, found[name])]
        watched += [(vars(module), "forward") for module in modules if not _is_read_once(module)]
        self.places, self.names = [found for found, _ in watched], [name for _, name in watched]
        self.values = [*map(dict.get, self.places, self.names)]
        self.parameters = [module._parameters for module in modules if module._parameters]
        self.hooks = [getattr(module, name) for module in modules for name in HOOKS]
        self.children = [module._modules for module in modules if module._modules]
        self.were = [dict(children) for children in self.children]
        self.parameter = next(network.parameters(), None)
        self.kind = None if self.parameter is None else (self.parameter.device, self.parameter.dtype)

    def is_observed(self) -> bool:
        """Whether any module has hooks."""
        return _has_any_global_hook() or any(self.hooks)

    def is_current(self) -> bool:
        """Whether the network is as it was, except for the values of its weights."""
        kind = None if self.parameter is None else (self.parameter.device, self.parameter.dtype)
        return (
            kind == self.kind
            and self.children == self.were
            and [*map(type, self.modules)] == self.classes
            and [*map(len, self.attributes)] == self.counts
            and [*map(dict.get, self.places, self.names)] == self.values
        )

    def trains(self) -> bool:
        """Whether any parameter requires a gradient."""
        return any(p is not None and p.requires_grad for found in self.parameters for p in found.values())


def _is_read_once(module: nn.Module) -> bool:
    """Whether fast modules may hold the attributes of the module, rather than read them at each call."""
    return is_known(module) or computes_plainly(module)


def _is_plain(name: str, value: object) -> bool:
    """Whether it is a setting of a module, as the stride of a convolution."""
    plain = value is None or isinstance(value, bool | int | float | str | tuple)
    return plain and not name.startswith("_") and name not in ("training", "forward")
