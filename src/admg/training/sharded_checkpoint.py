"""Checkpoints of a sharded network: every process writes its part, by torch.distributed.checkpoint.

The parts are safetensors, which cannot contain code. Any number of processes can read them, each only its own part.
Everything that is not sharded, such as numbers of steps, is in rest.pt.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from admg.checkpoints import pickles
from admg.disk import cannot_write
from admg.engine.device import Processes
from admg.files import atomic

from .sharding import is_part

REST = "rest.pt"
FILE_BYTES = 256 << 20
"""Size of the files of a process. They are prepared in memory one at a time, before they are written."""


def save_parts(
    folder: Path, state: Mapping[str, Any], processes: Processes, finish: Callable[[Path], None] = lambda path: None
) -> None:
    """Write a nested state into a folder that appears when it is complete; all processes must call this together.

    finish: function of the folder that the first process calls before the folder appears
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    parts = {name: value for name, value in flat(state) if is_part(value)}
    first = processes.rank == 0
    with atomic(folder, durable=True) if first else nullcontext(folder) as temporary:
        place = [temporary]
        if processes.count > 1:
            dist.broadcast_object_list(place)
        if first:
            place[0].mkdir()
            try:
                torch.save(without_parts(state), place[0] / REST)
            except RuntimeError as error:  # torch raises it for a full disk
                raise cannot_write(folder, place[0], error) from None
        # returns in the first process when all have written
        files = numbers_of_files(parts, FILE_BYTES * processes.count)
        with plain_errors():
            save(parts, storage_writer=HuggingFaceStorageWriter(str(place[0]), files, save_distributed=True))
        if first:
            finish(place[0])


def numbers_of_files(parts: Mapping[str, Tensor], size: int) -> dict[str, int]:
    """Return the number of the file that each tensor is written to, from 1; a file holds about `size` bytes."""
    numbers, total = {}, 0
    for name, value in parts.items():
        numbers[name] = 1 + total // size
        total += value.numel() * value.element_size()
    return numbers


def load_whole(folder: Path) -> dict[str, Any]:
    """Return the state that save_parts() wrote, with whole tensors on the CPU, in this process alone."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    known = reader.read_metadata().state_dict_metadata
    parts: dict[str, Any] = {
        name: torch.empty(found.size, dtype=found.properties.dtype)  # type: ignore[union-attr]
        for name, found in known.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single process reads it intentionally
        load(parts, storage_reader=reader, no_dist=True)
    return with_parts(load_rest(folder), parts)


def load_parts(folder: Path, like: Callable[[str], Tensor]) -> dict[str, Any]:
    """Return the state that save_parts() wrote; each process gets its parts of sharded tensors.

    All processes must call this together. Raises an error of torch.distributed.checkpoint if a tensor has another
    shape.

    like: returns a sharded tensor of the same shape, given the key of a tensor in the flattened state
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    parts: dict[str, Any] = {key: torch.zeros_like(like(key)) for key in reader.read_metadata().state_dict_metadata}
    with plain_errors():
        load(parts, storage_reader=reader)
    return with_parts(load_rest(folder), parts)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Context manager that raises the first error of a process as an OSError, instead of the report of all errors."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as report:  # which derives from BaseException
        rank, (error, _) = next(iter(report.failures.items()))
        raise OSError(f"process {rank}: {' '.join(str(error).split())}") from report


def load_rest(folder: Path) -> dict[str, Any]:
    """Return the state that save_parts() wrote, with None instead of sharded tensors."""
    state: dict[str, Any] = pickles.load(folder / REST)
    return state


def flat(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dictionaries with their keys, joined by slashes."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def without_parts(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return nested dictionaries without the sharded tensors in them; the keys stay."""
    return {
        key: without_parts(value) if isinstance(value, Mapping) else None if is_part(value) else value
        for key, value in state.items()
    }


def with_parts(state: Mapping[Any, Any], parts: Mapping[str, Tensor], prefix: str = "") -> dict[Any, Any]:
    """Return nested dictionaries with the tensors of these names, as `flat` joins them, inserted."""
    return {
        key: with_parts(value, parts, f"{prefix}{key}/")
        if isinstance(value, Mapping)
        else parts.get(f"{prefix}{key}", value)
        for key, value in state.items()
    }
