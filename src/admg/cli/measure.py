"""The note about missing kernels, which the commands that run networks share."""

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
        why = "were not built at installation, since there was no C compiler"
        print(f"note: admg's kernels for this CPU {why}; torch is used, at about half the speed", file=sys.stderr)
