"""Networks that share the parameters of another one, with some of its modules replaced."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from .blocks import Attention

Replace = Callable[[str, nn.Module], nn.Module]
"""(qualified name, module) -> the module to use in its place, or the same one."""
ORIGINAL, CHILDREN = "_admg_original", "_admg_children"
"""Attributes of a View, under names that no attribute or method of a user's class has."""


def with_replaced(network: nn.Module, replace: Replace) -> nn.Module:
    """Return a network in which `replace` has substituted modules; the given network stays as it is.

    Parameters, buffers and hooks are shared, not copied: each change of a weight is seen by both. Subtrees without
    replacements are the original modules. The others are shallow copies or, of classes that are neither torch's
    nor ours, views that read and write all attributes of the original. `replace` is called for every module, children
    first, and is given a module whose children have already been replaced. It must not change that module. A module
    whose `forward` was set on the instance is returned unchanged, with all its children.

    A module that acts as a proxy of another one, such as an accelerated network, may define `with_replaced(replace)`.
    """
    own: Any = getattr(network, "with_replaced", None)
    return own(replace) if callable(own) else _visit("", network, replace, {})


def _visit(name: str, module: nn.Module, replace: Replace, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in seen and (type(module).__call__ is not nn.Module.__call__ or "forward" in vars(module)):
        seen[module] = module  # compiled, scripted, or bound to the original
    if module not in seen:
        prefix = f"{name}." if name else ""
        children = {
            key: None if child is None else _visit(prefix + key, child, replace, seen)
            for key, child in module._modules.items()
        }
        changed = any(children[key] is not child for key, child in module._modules.items())
        seen[module] = replace(name, _with_children(module, children) if changed else module)
    return seen[module]


def _with_children(module: nn.Module, children: dict[str, Any]) -> nn.Module:
    if isinstance(module, View):
        module = object.__getattribute__(module, "__dict__")[ORIGINAL]
    if is_known(module):
        return shallow_copy(module, children)
    view = object.__new__(_view_class(cast(Any, type(module))))
    object.__getattribute__(view, "__dict__").update({ORIGINAL: module, CHILDREN: children})
    return view


def is_setting(name: str, value: object) -> bool:
    """Whether an attribute of a module is a plain setting, such as the stride of a convolution."""
    plain = isinstance(value, int | float | str | tuple | None)
    return plain and not name.startswith("_") and name not in ("training", "forward")


def is_known(module: nn.Module) -> bool:
    """Whether the class is torch's or ours, so that its attributes do not change from call to call."""
    return type(module).__module__.startswith(("torch.nn.modules.", "admg."))


class View(nn.Module):
    """A module with other children that otherwise reads and writes the attributes of the original.

    Its `__dict__` is that of the original.
    """

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name == "_modules":
            return own[CHILDREN]
        attributes = vars(own[ORIGINAL])
        if name == "__dict__":
            return attributes
        kind = object.__getattribute__(self, "__class__")
        if name in attributes and not hasattr(getattr(kind, name, None), "__set__"):  # properties take precedence
            return attributes[name]
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        return own[CHILDREN][name] if name in own[CHILDREN] else getattr(own[ORIGINAL], name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = object.__getattribute__(self, "__dict__")
        setattr(own[ORIGINAL], name, value)
        if name in own[ORIGINAL]._modules:
            own[CHILDREN][name] = value

    def __delattr__(self, name: str) -> None:
        own = object.__getattribute__(self, "__dict__")
        delattr(own[ORIGINAL], name)
        own[CHILDREN].pop(name, None)


@cache
def _view_class(kind: Any) -> type[nn.Module]:
    return type(f"{kind.__name__}View", (View, kind), {})


def shallow_copy(module: nn.Module, children: dict[str, Any], kind: type[nn.Module] | None = None) -> nn.Module:
    """Return a module with all attributes of the given one, but with these children, of the same class or of `kind`."""
    copy = object.__new__(kind or type(module))
    copy.__dict__.update(vars(module), _modules=children)
    return copy


def with_identity_attention(network: nn.Module) -> nn.Module:
    """Return the network with each pixel of its middle block attending only to itself; parameters are shared.

    Ahn et al. 2024, "Self-rectifying diffusion sampling with perturbed-attention guidance".
    """
    return with_replaced(network, _identity_in_middle_block)


def _identity_in_middle_block(name: str, module: nn.Module) -> nn.Module:
    return IdentityAttention() if name.startswith("middle_block.") and isinstance(module, Attention) else module


class IdentityAttention(Attention):
    """Attention whose map is the identity: it returns v."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v
