"""Detection of hooks, tracing and transforms, which require the plain network.

Private names of torch in this file were tested with torch 2.13; there are no public equivalents.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook  # hooks on all modules; nothing public lists them

from admg.models.surgery import is_known, is_setting

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
    """The state of a network that its fast version was built from, and all hooks. Checks take microseconds.

    The state consists of the modules, their classes, and the settings of modules that the fast version replaces or
    copies. The settings of other modules are read from the original at each call; for these modules, the state records
    only whether `forward` was set on the instance.
    """

    def __init__(self, network: nn.Module):
        modules = [m for m in network.modules() if not isinstance(m, torch.jit.ScriptModule)]  # which run as they are
        self.modules, self.classes = modules, [*map(type, modules)]
        self.attributes = [vars(module) for module in modules if _is_read_once(module)]
        self.counts = [*map(len, self.attributes)]
        watched = [(values, name) for values in self.attributes for name in values if is_setting(name, values[name])]
        watched += [(vars(module), "forward") for module in modules if not _is_read_once(module)]
        self.places, self.names = [values for values, _ in watched], [name for _, name in watched]
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
        """Whether the network is unchanged, except for the values of its weights."""
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
        return any(p is not None and p.requires_grad for parameters in self.parameters for p in parameters.values())


def _is_read_once(module: nn.Module) -> bool:
    """Whether a fast version of the module copies its settings, instead of reading them at each call."""
    return is_known(module) or computes_plainly(module)
