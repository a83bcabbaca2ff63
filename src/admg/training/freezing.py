"""Parameters that are not trained."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn


def freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Turn off gradients of the parameters whose names match a pattern, such as "input_blocks.*".

    Raises ValueError if a pattern matches none, or if none is left to train.
    """
    if not patterns:
        return
    parameters = dict(network.named_parameters())
    for pattern in patterns:
        matches = [name for name in parameters if is_matched(name, [pattern])]
        if not matches:
            parts = dict.fromkeys(name.partition(".")[0] for name in parameters)
            raise ValueError(f"freeze {pattern!r} matches no parameter; their names begin with {'., '.join(parts)}.")
        for name in matches:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"freeze {', '.join(map(repr, patterns))} leaves no parameter to train")


def is_matched(name: str, patterns: Sequence[str]) -> bool:
    """Whether the name of a parameter matches any of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
