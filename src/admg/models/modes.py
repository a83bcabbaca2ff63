"""Evaluation mode of networks for a while, also of networks that several threads share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_lock = threading.Lock()
_holders: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Number of contexts that hold a module in evaluation mode, of modules that were in training mode before."""


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Context manager in which all modules of these networks are in evaluation mode.

    Afterwards each module has its own mode again. If several threads use a module, the last of them restores its mode.
    """
    with _lock:
        modules = [module for network in networks for module in network.modules()]
        switched = [module for module in modules if module.training or module in _holders]
        for module in switched:
            _holders[module] = _holders.get(module, 0) + 1
            module.training = False
    try:
        yield
    finally:
        with _lock:
            for module in switched:
                _holders[module] -= 1
                if not _holders[module]:
                    del _holders[module]
                    module.training = True
