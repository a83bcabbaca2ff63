"""run.json: the settings with which a run of images was begun, which determine whether it may be continued."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from admg.checksums import KEY, damaged, is_damaged, parse_json, with_checksum
from admg.data.generated import ANIMATIONS, IMAGES, RUN, SHARDS, SHEET, TRAJECTORY
from admg.data.listing import is_image
from admg.files import temporary_beside

from .shards import Shards

IGNORED = ("loaded_as", "label_names")
"""Keys that do not affect the images: a network is identified by its weights, not by its name."""
MIN_DATASET_IMAGES = 10
"""Minimum number of images for which a folder counts as a data set."""
UNIDENTIFIED = "unidentified"
"""Key in the description of an object that cannot be identified: a run with it cannot be continued."""


class RunMismatchError(ValueError):
    """The folder holds a run with other settings."""


class DamagedRecordError(RunMismatchError):
    """run.json was written by admg but cannot be read any more."""


class RunRecord(msgspec.Struct):
    """Types and ranges of the content of run.json."""

    settings: dict[str, Any]
    num: Annotated[int, msgspec.Meta(ge=1)]
    shape: tuple[int, int, int]
    labelled: bool
    shard_size: Annotated[int, msgspec.Meta(ge=1)]


def open_run(settings: Mapping[str, Any], shards: Shards, label_names: Sequence[str] = ()) -> Shards:
    """Begin the run with these settings in the folder of the shards, or find an existing one. Return its shards.

    A run that exists keeps its shard size. run.json is written before anything else, and only once: processes that
    share a run may call this function at the same time.

    settings: everything that determines the images, in JSON types
    label_names: names of all labels of the model, to interpret the labels of the images
    Raises ValueError as find_run does.
    """
    existing = find_run(settings, shards)
    if existing is None:
        content = _content(settings, shards) | {"shard_size": shards.size}
        content |= {"label_names": [*label_names]} if label_names else {}
        _write_once(shards.folder / RUN, json.dumps(with_checksum(content), indent=2) + "\n")
        existing = find_run(settings, shards)
    return existing or shards


def find_run(settings: Mapping[str, Any], shards: Shards) -> Shards | None:
    """Return the shards of the run with these settings in the folder, with its shard size, or None if it has no run.

    Raises RunMismatchError, which names the differences, if the folder holds a run with other settings. Raises
    ValueError if it holds files that a run would replace but no run.json, a run.json that admg did not write, or a data
    set.
    """
    present = [path.name for path in (shards.target, *_outputs(shards.folder)) if os.path.lexists(path)]
    record = read_record(shards.folder)  # after the listing: a process that begins this run writes its record first
    if record is None:
        if present:
            missing = f"no {RUN} with its settings"
            raise ValueError(f"{shards.folder} holds {present[0]}, but {missing}: choose another folder")
        check_no_data_set(shards.folder)
        return None
    run = recorded_shards(shards.folder, record)
    here = _content(settings, shards) | {"shard_size": run.size}
    recorded, flat = dict(_flat(record)), dict(_flat(here))
    for key in flat:
        part, _, last = key.rpartition(".")
        if last == UNIDENTIFIED and recorded.get(key) != flat[key]:
            why = f"its {part} cannot be identified: {flat[key]}"
            raise RunMismatchError(f"{shards.folder} holds a run that cannot be continued: {why}")
    if differing := differences(record, json.loads(json.dumps(here))):
        raise RunMismatchError(f"{shards.folder} holds a run with other settings: {'; '.join(differing)}")
    return run


def check_no_data_set(folder: Path) -> None:
    """Raise ValueError if a folder looks like a data set, where results would be taken for images of it."""
    if image := _image_of_a_data_set(folder):
        raise ValueError(f"{folder} looks like a data set ({image}): choose another folder")


def _image_of_a_data_set(folder: Path) -> str | None:
    """Return the name of an image if the folder looks like a data set, which must not be mixed with samples, else None.

    It does if it holds many images, or a folder of images that is not a run directory.
    """
    if not folder.is_dir():
        return None
    own = _outputs(folder)  # files of a process that has begun this run in the meantime
    entries = sorted(path for path in folder.iterdir() if path not in own)
    beside = [path.name for path in entries if is_image(path.name)]
    if len(beside) >= MIN_DATASET_IMAGES:
        return beside[0]
    classes = [path for path in entries if path.is_dir() and not (path / RUN).exists()]
    for path in classes:
        with suppress(OSError):  # a folder that cannot be read
            if inner := next(filter(is_image, os.listdir(path)), None):
                return f"{path.name}/{inner}"
    return None


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the content of run.json, or None if there is none.

    Raises DamagedRecordError if it is damaged, and ValueError if it is the file of another program.
    """
    path = folder / RUN
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        record: dict[str, Any] = parse_json(content, path)
        msgspec.convert(record, RunRecord)
        recorded_shards(folder, record)
        if is_damaged(record):
            raise DamagedRecordError(damaged(path))
        record.pop(KEY, None)
    except DamagedRecordError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        if all(b'"%s":' % key in content for key in (b"settings", b"options", b"changes")):
            raise ValueError(f"{folder} holds a training run: choose another folder") from None
        ours = sum(content.count(b'"%s":' % key) for key in (b"settings", b"num", b"shape", b"labelled", b"shard_size"))
        kind = DamagedRecordError if ours >= 3 else ValueError
        raise kind(f"{path} is not the record of a run: {type(error).__name__}: {error}") from None
    return record


def run_files(folder: Path) -> list[Path]:
    """Return the paths that the run in this folder writes to, or [] if the folder holds no run."""
    try:
        record = read_record(folder)
    except DamagedRecordError:
        return [*_outputs(folder), *folder.glob("samples_*x*x*x*.npz"), folder / RUN]
    except ValueError:  # a run.json of another program
        return []
    if record is None:
        return []
    return [*_outputs(folder), recorded_shards(folder, record).target, folder / RUN]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `scale is 4 there, 2 here` for each setting that differs; nested settings read `base.scale`."""
    a, b = dict(_flat(old)), dict(_flat(new))
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key) and key.split(".")[-1] not in IGNORED]
    return [f"{key} is {_shown(a.get(key))} there, {_shown(b.get(key))} here" for key in keys]


def recorded_shards(folder: Path, record: Mapping[str, Any]) -> Shards:
    """Return the shards of the run in this folder, as run.json describes them."""
    return Shards(folder, record["num"], record["shard_size"], tuple(record["shape"]), record["labelled"])


def _outputs(folder: Path) -> list[Path]:
    return [folder / name for name in (SHARDS, IMAGES, SHEET, *ANIMATIONS.values(), TRAJECTORY)]


def _content(settings: Mapping[str, Any], shards: Shards) -> dict[str, Any]:
    return {"settings": settings, "num": shards.num, "shape": shards.shape, "labelled": shards.labelled}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flat(value, prefix if key == "settings" else f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: Any) -> str:
    text = "unset" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _write_once(path: Path, text: str) -> None:
    """Write a file unless another process has written it. A link, unlike a rename, never replaces a file."""
    temporary = temporary_beside(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        with suppress(FileExistsError):
            os.link(temporary, path)
    except OSError:  # a file system without links
        if not path.exists():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
