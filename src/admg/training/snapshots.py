"""Snapshots of two power-function averages in the folder ema/ of a run, from which `posthoc` makes other averages.

ema/step-0001000.safetensors holds both averages at step 1000 in the data type of the network: float32, since a
reconstruction can multiply the rounding of snapshots by 50. Whatever the length of the run, there are at most 32: when
there would be more, every other one is removed, and the spacing doubles.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from admg.disk import cannot_write
from admg.files import atomic

from .ema import EMA
from .profiles import SNAPSHOT_PROFILES, Power
from .sharding import network_state

FOLDER = "ema"
MAX_SNAPSHOTS = 32
"""Largest number of snapshots of a run, not counting one at a last step that is not among them."""


def save(run: Path, averages: Sequence[EMA], step: int, every: int, writes: bool) -> None:
    """Write a snapshot of step `step`, and remove surplus ones.

    averages: the averages of the run, including those of SNAPSHOT_PROFILES
    every: steps between snapshots, as the user chose it
    writes: whether this process writes; if the network is sharded, all processes must call this together
    """
    kept = {average.profile: average for average in averages}
    states = {profile: network_state(kept[profile].network) for profile in SNAPSHOT_PROFILES}
    if not writes:
        return
    tensors, digest = {}, hashlib.sha256()
    for key in sorted(states[SNAPSHOT_PROFILES[0]]):
        for profile, state in states.items():
            value = tensors[tensor_name(profile, key)] = state[key].detach().to("cpu").contiguous()
            digest.update(bytes_of(value))
    metadata = {"sha256": digest.hexdigest()}  # several entries would be written in random order
    with atomic(path_of(run, step), durable=True) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # raised for a full disk
            raise cannot_write(path_of(run, step), temporary.parent, error) from None
        temporary.chmod(stat.S_IMODE(temporary.parent.stat().st_mode) & 0o666)  # readable by others, too
    for other in steps_of(run):
        if other not in kept_steps(step, every):
            path_of(run, other).unlink()


def check_spacing(run: Path, every: int, before: int) -> None:
    """Raise ValueError if a resumed run would write snapshots at another spacing, which would replace existing ones.

    every, before: steps between snapshots, now and when the run was last started; 0 for none
    """
    if every and before and every != before and steps_of(run):
        raise ValueError(
            f"the snapshots of averages in {run / FOLDER} are {before} steps apart: resume the run with "
            f"ema_snapshots {before}, or with 0 to write no more of them"
        )


def kept_steps(step: int, every: int) -> set[int]:
    """Return the steps of a run's snapshots at this step: at most MAX_SNAPSHOTS multiples of `every`, and this step."""
    spacing = every
    while step // spacing > MAX_SNAPSHOTS:
        spacing *= 2
    return {*range(spacing, step + 1, spacing), step}


def steps_of(run: Path) -> list[int]:
    """Return the steps of the snapshots of a run directory, in their order."""
    names = (re.fullmatch(r"step-(\d+)\.safetensors", path.name) for path in (run / FOLDER).glob("step-*"))
    return sorted(int(match[1]) for match in names if match)


def remove_later_snapshots(run: Path, step: int) -> None:
    """Remove the snapshots of later steps, which a run that is resumed at this step will repeat."""
    for other in steps_of(run):
        if other > step:
            path_of(run, other).unlink()


def path_of(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:07d}.safetensors"


def tensor_name(profile: Power, key: str) -> str:
    """Return the name in the file of a tensor of one of the averages."""
    return f"{profile}/{key}"


def bytes_of(value: Tensor) -> memoryview:
    """Return the bytes of a tensor on the CPU. The checksum of a file is that of its tensors by key and average."""
    data: memoryview = value.reshape(-1).view(torch.uint8).numpy().data
    return data
