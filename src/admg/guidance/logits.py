"""Checks of the arguments and the result of a guiding classifier."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

CLEAN = ": a classifier of clean images guides with ExtendedClassifierGuidance(classifier, at='x0')"


def accepts(function: Callable[..., Any], *arguments: str) -> bool:
    """Whether a function or module can be called with so many arguments; True if its signature is not known."""
    try:
        check_arguments(function, *arguments)
    except ValueError:
        return False
    return True


def check_arguments(classifier: Callable[..., Any], *arguments: str, instead: str = "") -> None:
    """Raise ValueError if a classifier cannot be called with these arguments, judging by its signature.

    instead: advice for the error
    """
    function = classifier.forward if isinstance(classifier, nn.Module) else classifier
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        name = getattr(classifier, "__name__", type(classifier).__name__)
        raise ValueError(
            f"the classifier is called with ({', '.join(arguments)}), but {name} takes {signature}{instead}"
        ) from None


def check_arguments_at(classifier: Callable[..., Any], at: str) -> None:
    """Raise ValueError if a classifier does not take x0, or x_t and timesteps."""
    if at == "x0":
        check_arguments(classifier, "x0")
    else:
        check_arguments(classifier, "x_t", "timesteps", instead=CLEAN)


def check_logits(logits: Tensor, y: Tensor | None, highest: int | None = None) -> None:
    """Raise ValueError unless the logits are (N, K), of the N images and of all labels that are used.

    y: labels (N,), -1 for none, or None
    highest: highest of these labels, if it is known; otherwise labels are checked on a CPU only, as reading them from
        a GPU would wait for it
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or (y is not None and len(logits) != len(y)):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"type {type(logits).__name__}"
        count = "N" if y is None else len(y)
        raise ValueError(f"the classifier must return logits ({count}, K) of K classes, got {found}")
    if y is None or not len(y):
        return
    if highest is None and y.device.type == "cpu":
        highest = int(y.max())
    if highest is not None and highest >= logits.shape[1]:
        raise ValueError(
            f"labels must be from 0 to {logits.shape[1] - 1}, since the classifier returned logits of "
            f"{logits.shape[1]} classes, got {highest}"
        )
