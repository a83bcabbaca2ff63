"""Checks of the arguments and the result of a guiding classifier."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from admg.warn import warn

from .base import Guidance
from .state import State

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


def logits_of(classifier: Callable[..., Any], *inputs: Tensor) -> Any:
    """Return what a classifier returns. Raises ValueError if it computes in another number format or on another device.

    inputs: images, and timesteps if it takes them
    """
    try:
        return classifier(*inputs)
    except RuntimeError as error:
        if not re.search(r"dtype|scalar type|type .* should be the same|same device", str(error)):
            raise
        x = inputs[0]
        raise ValueError(
            f"the guide's classifier must compute with images of {x.dtype} on {x.device}, as classifier.to(...) makes "
            f"it: {error}"
        ) from error


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


# -- logits for a guide ----------------------------------------------------------------------------------------------


class OfClassifier(Guidance):
    """Base class of the guides that evaluate a classifier."""

    @cached_property
    def notes(self) -> set[str]:
        """What has been checked once for this guide."""
        return set()


def checked_logits(guide: Any, state: State, *inputs: Tensor) -> Tensor:
    """Return the logits of an OfClassifier's classifier, and warn once if they are probabilities.

    inputs: images, and timesteps if the classifier takes them

    Raises ValueError unless they are logits of the labels that are used and, for the sampler's labels, of all labels of
    the model.
    """
    logits: Tensor = logits_of(guide.classifier, *inputs)
    y = state.y if getattr(guide, "labels", None) is None else None
    check_logits(logits, y, state.highest_label)
    count = getattr(getattr(state.model, "labels", None), "count", 0)
    if y is not None and logits.shape[1] < count:
        raise ValueError(
            f"the classifier has {logits.shape[1]} classes, fewer than the {count} labels of the model: choose a class "
            "for all images, ExtendedClassifierGuidance(..., labels={number: 1.0})"
        )
    if "logits" not in guide.notes and logits.device.type == "cpu":  # reading them would wait for a GPU
        guide.notes.add("logits")
        note_probabilities(logits)
    return logits


def note_probabilities(logits: Tensor) -> None:
    """Warn if a classifier returns probabilities, to judge by these images."""
    values = logits.detach().float()
    if values.shape[1] > 1 and bool((values >= 0).all() & ((values.sum(1) - 1).abs() < 1e-3).all()):
        warn(
            "the classifier returns probabilities (rows that sum to 1): guidance expects logits, the values before the "
            "softmax, or log-probabilities, log_softmax"
        )
