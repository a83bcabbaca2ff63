"""What is not a guide: typical mistakes, with what to pass instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .base import Guidance, Sum, Wrapper
from .logits import accepts

IMAGES = ("input", "x", "x0", "x_0", "image", "images")
"""Names of the argument of a network of clean images."""


def check_is_guide(guide: Any) -> None:
    """Raise ValueError unless a guide is None, a Guidance or a function of a State, as far as its signature says.

    A Guidance that overrides nothing is refused, too: its class may have a method of another name.
    """
    if isinstance(guide, Sum | Wrapper):
        for part in guide.guides if isinstance(guide, Sum) else (guide.guide,):
            check_is_guide(part)
    elif isinstance(guide, Guidance):
        own, methods = type(guide), ("__call__", "modify_prediction", "begin")
        if all(getattr(own, name) is getattr(Guidance, name) for name in methods):
            raise ValueError(f"{own.__name__} has no effect: a Guidance overrides __call__ or modify_prediction")
    elif guide is not None and (mistake := mistake_of(guide)) is not None:
        raise ValueError(f"a guide must be a Guidance or a function of a guidance.State, got {mistake}")


def mistake_of(guide: Any) -> str | None:
    """Return what was passed as a guide and what to pass instead; None for a function of one argument."""
    name = getattr(guide, "__name__", type(guide).__name__)
    if isinstance(guide, str):
        return f"{guide!r}: use guidance.ClassifierGuidance(admg.load_classifier({guide!r}), scale)"
    if isinstance(guide, list | tuple):
        return f"a {name}: add guides with +"
    if isinstance(guide, type):
        return f"the class {name}: make an object of it"
    if not callable(guide):
        return repr(guide) if isinstance(guide, int | float) else name
    if accepts(guide, "state"):
        if not (isinstance(guide, nn.Module) and parameters(guide.forward)[0] in IMAGES):
            return None
        return f"the network {name}: use guidance.ExtendedClassifierGuidance(network, scale, at='x0')"
    if "y" in parameters(guide):  # cond_fn(x, t, y=None) of guided-diffusion
        call = f"{name}(state.x, state.t.expand(len(state.x)), y=state.y)"
        return f"a function of ({', '.join(parameters(guide))}): use lambda state: {call}"
    return f"{name}, which takes other arguments: use guidance.ClassifierGuidance(classifier, scale) for a classifier"


def parameters(function: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments of a function."""
    return [*inspect.signature(function).parameters]
