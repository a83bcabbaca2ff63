"""Flip single bits in every kind of file that is written and read again, and read it as the commands do."""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import admg
from admg.checkpoints import download, native
from admg.checkpoints.openai import pt
from admg.checkpoints.weights import digest_of
from admg.data.index import read_index
from admg.data.pack import pack
from admg.data.sources import find_source
from admg.data.tars import list_tars
from admg.evaluation import metrics_cache
from admg.evaluation.features import extraction
from admg.generation import run_record
from admg.generation.shards import NpzImages, Shards
from admg.training import checkpointing, log, posthoc, run_settings, services

Outcome = Literal["noticed", "harmless", "missed"]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    files: pattern of the files below the folder of `corpus.build`
    read: reads a file as the commands do, and returns what they use of it; None if it is left out
    """

    files: str
    read: Callable[[Path], Any]


def model(path: Path) -> Any:
    about = native.read_about(path.parent)
    found = admg.load(path.parent)
    return digest_of(found.network), found.config, found.labels, found.training, about.network


def checkpoint(path: Path) -> Any:
    return checkpointing.damage(path.parent) is None or None


def settings(path: Path) -> Any:
    return run_settings.read(path.parent)


def rows(path: Path) -> Any:
    """Read both files of a log; the checksum is the one that a checkpoint has."""
    found = log.Log(path.parent, 4)
    found.check(EXPECTED_LOG[0])
    others = log.read_jsonl(path.parent / log.JSONL)
    return (found.rows, others) if log.checksum(others) == EXPECTED_LOG[0] else None


EXPECTED_LOG = [""]


def merged(path: Path) -> Any:
    images = NpzImages(path).verify()
    return images[:].tobytes(), images.shape, images.labels.tolist() if images.labels is not None else None


def shard(path: Path) -> Any:
    folder = path.parent.parent
    record = run_record.read_record(folder)
    assert record is not None
    shards = Shards(folder, record["num"], record["shard_size"], tuple(record["shape"]), record["labelled"])
    if shards.missing():
        return None
    result = merged(shards.merge())
    shards.target.unlink()
    return result


def features(path: Path) -> Any:
    found = extraction.read(path)
    return None if found is None else found.features.tobytes()


def folder_index(path: Path) -> Any:
    root = path.parents[2] / "many"
    files = find_source(root, progress=False).files
    return read_index(root, files) or None


def tar_index(path: Path) -> Any:
    tar = path.parents[2] / "d.tar"
    return list_tars(tar, [tar], progress=False).members


def snapshots(path: Path) -> Any:
    return digest_of(posthoc.reconstruct_ema(path.parents[1], "10%").network)


def packed(path: Path) -> Any:
    data = admg.data.open(path, progress=False)
    x, y = data.batch(range(len(data)))
    return x.numpy().tobytes(), y.tolist(), data.label_names


def downloaded(path: Path) -> Any:
    name = path.with_name(path.name.removesuffix(".json"))
    return download.verify(name).sha256, name.read_bytes()


def exported(path: Path) -> Any:
    if path.suffix == ".pt":
        return {name: value.numpy().tobytes() for name, value in pt.read_state(path).items()}
    return digest_of(admg.load(path.parent).network)


KINDS = {
    "weights of a model": Kind("model/model.safetensors", model),
    "config.json of a model": Kind("model/config.json", model),
    "state of a run": Kind("run/checkpoints/*/state.pt", checkpoint),
    "checksums of a checkpoint": Kind("run/checkpoints/*/checksums.json", checkpoint),
    "run.json of a run": Kind("run/run.json", settings),
    "log of a run": Kind("run/log.csv", rows),
    "metrics.jsonl of a run": Kind("run/metrics.jsonl", rows),
    "services.json": Kind("run/services.json", lambda path: services.read_ids(path.parent)),
    "snapshots of averages": Kind("run/ema/*.safetensors", snapshots),
    "run.json of samples": Kind("o/run.json", lambda path: run_record.read_record(path.parent)),
    "shards of samples": Kind("half/shards/*.npz", shard),
    "merged samples": Kind("o/*.npz", merged),
    "metrics of a sweep": Kind("sweep/*/metrics.json", metrics_cache.read_record),
    "cached features": Kind("home/features/*/*.npz", features),
    "index of a folder": Kind("home/folders/*", folder_index),
    "index of a tar": Kind("home/tars/*", tar_index),
    "packed data set": Kind("packed.zip", packed),
    "weights exported for guided-diffusion": Kind("m.pt", exported),
    "weights exported for diffusers": Kind("exported/*.safetensors", exported),
    "download": Kind("download.bin", downloaded),
    "record of a download": Kind("download.bin.json", downloaded),
}


def prepare(root: Path) -> None:
    """Add the files that corpus.build does not make, and indices for this place; ADMG_HOME must be root/home."""
    prepare_files(root)
    tar_index(root / "home" / "tars" / "any")
    services.keep_id(services.RunFacts(root / "run", 4, {}), "wandb", "abc123")
    EXPECTED_LOG[0] = log.checksum(log.read_rows(root / "run" / log.CSV))


def prepare_files(root: Path) -> None:
    """Add a packed data set, a download, and the index of a folder."""
    for name in ("folders", "tars"):
        shutil.rmtree(root / "home" / name, ignore_errors=True)
    for _ in pack(admg.data.open(root / "many", 8, progress=False), root / "packed.zip"):
        pass
    (root / "download.bin").write_bytes(np.random.default_rng(0).bytes(5000))
    download.verify(root / "download.bin")


def flips(root: Path, num: int, seed: int, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Outcome, Path, int]]:
    """Flip a bit at a time, and yield the kind of file, the outcome, the file and the bit."""
    rng = random.Random(seed)
    kinds = {name: kind for name, kind in KINDS.items() if not names or name in names}
    wanted: dict[Path, Any] = {}
    for number in range(num):
        name = list(kinds)[number % len(kinds)]
        path = rng.choice(sorted(root.glob(kinds[name].files)))
        before, status = path.read_bytes(), path.stat()
        bit = rng.randrange(8 * len(before))
        if path not in wanted:
            wanted[path] = _outcome(kinds[name], path)
            assert wanted[path] is not None, path
        content = bytearray(before)
        content[bit // 8] ^= 1 << bit % 8
        _write(path, bytes(content), status)
        found = _outcome(kinds[name], path)
        yield name, "noticed" if found is None else "harmless" if found == wanted[path] else "missed", path, bit
        _write(path, before, status)


def _write(path: Path, content: bytes, status: Any) -> None:
    """Write a file that keeps its size and time, as a disk that forgets a bit does."""
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _outcome(kind: Kind, path: Path) -> Any:
    """Return what is read, or None if the damage is noticed: by an error, by a warning, or by leaving the file out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            return kind.read(path)
        except (ValueError, OSError, UserWarning):
            return None


def table(found: list[tuple[str, Outcome, Path, int]]) -> str:
    """Return a line for each kind of file."""
    counts = Counter((name, outcome) for name, outcome, _, _ in found)
    names = list(dict.fromkeys(name for name, *_ in found))
    return "\n".join(
        f"{name}: " + ", ".join(f"{counts[name, o]} {o}" for o in ("noticed", "harmless", "missed") if counts[name, o])
        for name in names
    )
