"""The note about missing kernels, shared by the commands that run networks."""

from __future__ import annotations

import sys
from functools import cache

import torch

from admg.engine import cpu as native
from admg.engine.device import Processes


@cache
def note_missing_kernels(device: torch.device) -> None:
    """Print a note, once in the first process, if the kernels for this CPU were not built."""
    if device.type == "cpu" and native.missing() and Processes.from_environment().rank == 0:
        what = "there are no kernels for this CPU, so PyTorch computes everything, at about half the speed"
        print(f"note: {what}; see `admg doctor`", file=sys.stderr)
