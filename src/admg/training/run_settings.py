"""run.json of a run directory: the settings that determine the meaning of its weights, and changes of options."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from admg.checkpoints.weights import CheckpointError
from admg.checksums import read_json, write_json
from admg.data import Dataset, ImageDataset
from admg.data.members import stamp
from admg.files import atomic
from admg.generation.run_record import differences
from admg.warn import warn

from . import checkpointing
from .config import ObjectiveConfig, TrainConfig
from .tasks import part_of

FILE = "run.json"
LASTING = ("seed", "batch_size", "sampling", "class_power", "class_weight")
"""Options of TrainConfig that determine the images of a step. All others may change when a run is resumed."""
CHANGEABLE = ("label_dropout",)
"""Options of the objective that may change: the model records the largest share of dropped labels."""
UNKNOWN = {"data": ("value_range", "background", "frames", "pixels"), "noised": (), "loss": ()}
"""Settings that records of earlier versions lack, although a run may have had any value."""


def settings_of(task: Any, dataset: ImageDataset, config: TrainConfig, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must not change when a run is resumed, in JSON types.

    provenance: how the model is trained; its entries "objective", "init" and "augment_blur" count
    """
    part = part_of(task)
    config_of, diffusion = getattr(task.network, "config", None), getattr(part, "config", None)
    network: Any = type(task.network).__name__
    if dataclasses.is_dataclass(config_of) and not isinstance(config_of, type):
        network = dataclasses.asdict(config_of) | {"checkpoint": None}  # does not change results
    settings = {
        "task": type(task).__name__,
        "data": data_of(dataset),
        "network": network,
        "diffusion": dataclasses.asdict(diffusion) if diffusion is not None else None,
        "objective": {k: v for k, v in provenance.get("objective", {}).items() if k not in CHANGEABLE},
        **({} if "objective" in provenance else {"loss": loss_of(task)}),
        **{name: provenance[name] for name in ("init", "augment_blur") if name in provenance},
        **({"noised": task.noised} if hasattr(task, "noised") else {}),
        **{name: getattr(config, name) for name in LASTING},
    }
    converted: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return converted


def loss_of(task: Any) -> dict[str, Any]:
    """Return the options that determine the loss of a task, for runs that do not state their objective."""
    names = ("objective", "vlb_weight", "weighting", "timesteps", "augment_blur", "small_size")
    values = {name: getattr(task, name) for name in names if hasattr(task, name)}
    return {name: dict(vars(value)) if dataclasses.is_dataclass(value) else value for name, value in values.items()}


def data_of(dataset: ImageDataset) -> dict[str, Any]:
    """Return the number and size of the images, their labels, and a checksum of their names and sizes in bytes.

    The location and the modification time of the files are ignored. Nothing is read of a data set that is not ours.
    """
    record: dict[str, Any] = {"images": len(dataset), "image_size": dataset.image_size, "channels": dataset.channels}
    record |= {"labels": len(dataset.label_names), "names": checksum(json.dumps(dataset.label_names).encode())}
    if isinstance(dataset, Dataset):
        labels = b"" if dataset.labels is None else np.ascontiguousarray(dataset.labels).tobytes()
        record |= {
            "fit": dataset.fit,
            "crop": dataset.crop,
            "flip": dataset.flip,
            **reading_of(dataset),
            "content": checksum(labels, *parts(dataset)),
            "pixels": pixels_of(dataset),
        }
    return record


def reading_of(dataset: Dataset) -> dict[str, Any]:
    """Return the decoding of files into pixels, if it was stated or follows from the files."""
    decoding = dataset.decoding
    frames = None if dataset.frames is None else checksum(np.asarray(dataset.frames, np.int64).tobytes())
    return {
        "value_range": decoding.value_range or decoding.wide_range,
        "background": decoding.background,
        "frames": frames,
    }


def parts(dataset: Dataset) -> list[bytes]:
    """Return data that identify the images: names and sizes of files, or values of at most 1000 images of an array.

    It is in the records of all versions. `pixels_of` covers the other images of an array.
    """
    images = dataset.images
    if isinstance(images, np.ndarray):
        return [np.ascontiguousarray(images[i]).tobytes() for i in range(0, len(images), max(1, len(images) // 1000))]
    return [f"{name} {size}".encode(errors="surrogateescape") for name, size, _ in map(stamp, images)]


def pixels_of(dataset: Dataset) -> str | None:
    """Return the checksum of all values of an array of images, or None for files. Takes a second per gigabyte."""
    images = dataset.images
    if not isinstance(images, np.ndarray):
        return None
    digest = hashlib.sha256()
    for start in range(0, len(images), 1000):  # a copy of few images at a time
        digest.update(np.ascontiguousarray(images[start : start + 1000]).data)
    return digest.hexdigest()[:16]


def checksum(*contents: bytes) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:16]


def defaults_of(task: Any) -> dict[str, Any]:
    """Return the defaults of the settings of a run and of its network, noise process and objective, in JSON types.

    They are the values of settings that the record of a run of an earlier version lacks.
    """
    part = part_of(task)
    configs = {
        "network": getattr(task.network, "config", None),
        "diffusion": getattr(part, "config", None),
        "objective": ObjectiveConfig(),
    }
    defaults = {name: _defaults(config) for name, config in configs.items() if dataclasses.is_dataclass(config)}
    defaults |= {name: value for name, value in _defaults(TrainConfig).items() if name in LASTING}
    converted: dict[str, Any] = json.loads(json.dumps(defaults, default=str))
    return converted


def _defaults(config: Any) -> dict[str, Any]:
    return {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}


def check_settings(out: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise CheckpointError, which names the differences, unless the resumed run has these settings.

    defaults: of the settings, by `defaults_of`; those that the record lacks had these values
    """
    record = read(out)
    if record is None:
        return
    before = {name: value for name, value in record["settings"].items() if name != "init" or name in settings}
    for name, fields in UNKNOWN.items():
        if not fields and name in settings:
            before.setdefault(name, settings[name])
        elif isinstance(before.get(name), Mapping):
            now = settings[name]
            before[name] = {field: now[field] for field in fields if field in now} | before[name]
    for name, value in defaults.items():
        if not isinstance(value, Mapping):
            before.setdefault(name, value)
        elif isinstance(before.get(name), Mapping) and isinstance(settings.get(name), Mapping):
            before[name] = {field: v for field, v in value.items() if field in settings[name]} | before[name]
    if differing := differences(before, settings):
        raise CheckpointError(
            f"the run in {out} was begun with other settings: {'; '.join(differing)}; choose another --out, or "
            f"--overwrite it"
        )


def changes(out: Path, config: TrainConfig, provenance: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the options changed since the last start, as (old, new) pairs."""
    record = read(out)
    if record is None:
        return {}
    before, now = record["options"], _options(config, provenance)
    return {name: (before[name], value) for name, value in now.items() if before.get(name, value) != value}


def _options(config: TrainConfig, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that may change, in JSON types."""
    objective = provenance.get("objective", {})
    more = {name: objective[name] for name in CHANGEABLE if name in objective}
    options: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config) | more, default=str))
    return options


def write(
    out: Path, settings: Mapping[str, Any], config: TrainConfig, provenance: Mapping[str, Any], step: int
) -> None:
    """Write the settings of a new run, or the changed options of a run that is resumed at this step."""
    options = _options(config, provenance)
    record = read(out) or {"settings": settings, "options": options, "changes": []}
    known = {name: options[name] for name in CHANGEABLE if name in options} | record["options"]
    if changed := differences(known, options):
        record["changes"].append({"step": step, "changed": changed})
    record["options"] = options
    with atomic(out / FILE) as temporary:
        write_json(temporary, record)


def read(out: Path) -> dict[str, Any] | None:
    """Return the record of the run, or None if no record can be read.

    If the record in the run directory is missing or damaged, the last one in a checkpoint is used.
    """
    for folder in (out, *reversed(checkpointing.saved_checkpoints(out))):
        try:
            record = read_json(folder / FILE)
            dict(record["settings"]), dict(record["options"]), list(record["changes"])
            return record
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn(f"{folder / FILE} will be rewritten: {error}")
    return None
