"""The run directory: written by one process only, and never overwritten unless that is requested."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from admg.files import LockedError, LockError, locked_nowait, remove, remove_leftovers
from admg.generation.run_record import DamagedRecordError, read_record
from admg.warn import warn

from . import checkpointing, log, run_settings, services, snapshots

LOCK = ".lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Create a run directory, lock it, and remove incomplete files of processes that were killed.

    Raises ValueError if another process trains there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_nowait(out / LOCK, f"the run directory {out}"))
        except LockedError as error:
            if f" process {os.getpid()} on {platform.node()}," not in str(error):
                raise
            raise LockedError(
                f"the run directory {out} is in use by a run of this process: end that run with run.stop() and "
                f"next(run), which saves a checkpoint, or with run.close()"
            ) from None
        except LockError as error:
            warn(f"{error}: a second training in {out} cannot be prevented")
        remove_unfinished_files(out)
        yield


def remove_unfinished_files(out: Path) -> None:
    """Remove incomplete files of processes that were killed."""
    within = (checkpointing.FOLDER, snapshots.FOLDER, "samples", "model")
    for folder in (out, *(out / name for name in within), *out.glob("model-ema-*")):
        remove_leftovers(folder)
    for path in (out / snapshots.FOLDER).glob(".tmp*"):  # of safetensors
        remove(path)


def check_new(out: Path) -> None:
    """Raise ValueError if the directory, which has no checkpoint, holds a model that a new run would replace."""
    if (out / "model").exists():
        raise ValueError(
            f"{out} holds a model but no checkpoint to resume from: choose another directory, or --overwrite this one"
        )


def check_no_samples(out: Path) -> None:
    """Raise ValueError if the directory holds samples, whose run.json a training run would replace."""
    try:
        holds_samples = read_record(out) is not None
    except DamagedRecordError:
        holds_samples = True
    except ValueError:  # that of a training run
        holds_samples = False
    if holds_samples:
        raise ValueError(f"{out} holds samples ({run_settings.FILE}): choose another directory for the training run")


def clear(out: Path) -> None:
    """Remove a run, and nothing else, from a directory."""
    names = ("model", checkpointing.FOLDER, log.CSV, log.JSONL, services.IDS, snapshots.FOLDER, run_settings.FILE,
             "curves.png", "samples", "tensorboard")  # fmt: skip
    for path in (*(out / name for name in names), *out.glob("model-ema-*")):
        remove(path)


def roll_back(out: Path, limit: int) -> Path | None:
    """Return the last good checkpoint of fewer steps than `limit`, or None, after removing later ones.

    Later ones would otherwise be resumed, although training failed after them. A checkpoint that was saved while the
    run was failing, because of a request to stop, is used only if there is no other.
    """
    earlier = [path for path in checkpointing.saved_checkpoints(out) if checkpointing.step_of(path) < limit]
    whole = [path for path in earlier if checkpointing.damage(path) is None]
    good = next((path for path in reversed(whole) if checkpointing.was_healthy(path)), whole[-1] if whole else None)
    if good is not None:
        remove_later_checkpoints(out, checkpointing.step_of(good))
    return good


def remove_later_checkpoints(out: Path, step: int) -> None:
    """Remove the checkpoints of more than this number of steps."""
    for path in checkpointing.saved_checkpoints(out):
        if checkpointing.step_of(path) > step:
            remove(path)
