"""Native checkpoints: a folder with `model.safetensors` (the weights) and `config.json` (everything else)."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from admg.checksums import damaged, is_damaged, write_json
from admg.diffusion.config import DiffusionConfig
from admg.diffusion.gaussian import Diffusion
from admg.disk import cannot_write
from admg.files import atomic, is_being_replaced, sha256
from admg.models.unet import EncoderConfig, effective_attention_resolutions

from . import card
from .config_file import check_types, read_json, section
from .labels import Labels
from .networks import NETWORK_KINDS, Kind, check_as_configured, kind_of
from .weights import CheckpointError, DamagedError, build_network, check_values

FORMAT = "admg"
CONFIG = "config.json"
FILES = frozenset({CONFIG, "model.safetensors"})
VERSION = 1
READS = 20
"""Number of times that a checkpoint is read again if it changes while being read, within a second."""


@dataclass(frozen=True)
class Parts:
    """The content of a checkpoint of any kind; the fields are those of Model and Classifier."""

    network: nn.Module
    diffusion: Diffusion
    labels: Labels
    config: DiffusionConfig | None
    training: dict[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


@dataclass(frozen=True)
class About:
    """The content of config.json: everything except the weights."""

    kind: Kind
    network: EncoderConfig
    diffusion: DiffusionConfig
    labels: Labels
    training: dict[str, Any]
    sha256: str | None


def save(folder: Path | str, kinds: Sequence[Kind], parts: Parts, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint.

    kinds: kinds of network that are allowed
    dtype: data type of the stored weights; None keeps the network's

    Raises ValueError if the network is of another kind or has other parameters than its architecture (adapters that
    were not merged), or if `parts.config` is None.
    """
    content = content_of(kinds, parts)
    check_as_configured(parts.network, "the network to save")
    write(folder, content, parts.network, dtype)


def content_of(kinds: Sequence[Kind], parts: Parts) -> dict[str, Any]:
    """Return the content of config.json, without format and checksums. Raises ValueError as `save` does."""
    kind = kind_of(parts.network)
    if kind is None or kind.name not in kinds:
        allowed = " or ".join(NETWORK_KINDS[name].network.__name__ for name in kinds)
        raise ValueError(f"a native checkpoint needs a {allowed}, got a {type(parts.network).__name__}")
    if parts.config is None:
        raise ValueError("only a model with its DiffusionConfig can be saved as a native checkpoint")
    return {
        "kind": kind.name,
        "network": dataclasses.asdict(cast(EncoderConfig, parts.network.config)),
        "diffusion": dataclasses.asdict(parts.config),
        "labels": parts.labels.names or parts.labels.count,
        "training": parts.training,
    }


def load(folder: Path | str, *kinds: Kind) -> Parts:
    """Read a checkpoint of one of these kinds, in float32 and eval mode. Raises CheckpointError if it is unusable.

    If a training run is replacing the checkpoint, either the old or the new one is read.
    """
    for _ in range(READS - 1):
        before = _identity(folder)
        try:
            return _load(folder, *kinds)
        except CheckpointError:
            if _identity(folder) == before and not is_being_replaced(Path(folder)):
                raise
        time.sleep(0.05)
    return _load(folder, *kinds)


def _identity(folder: Path | str) -> list[tuple[int, int, int]]:
    """Return metadata that change if the files of a checkpoint are replaced."""
    with suppress(OSError):
        found = [(Path(folder) / name).stat() for name in sorted(FILES)]
        return [(status.st_ino, status.st_size, status.st_mtime_ns) for status in found]
    return []


def _load(folder: Path | str, *kinds: Kind) -> Parts:
    about = read_about(folder, *kinds)
    kind = NETWORK_KINDS[about.kind]
    with verified_state(folder, about.sha256) as state:
        network = build_network(kind.network, about.network, state, folder)
    return Parts(
        network=network,
        diffusion=about.diffusion.build(),
        labels=about.labels,
        config=about.diffusion,
        training=about.training,
    )


def read_about(folder: Path | str, *kinds: Kind) -> About:
    """Read the config.json of a checkpoint of one of these kinds. Raises CheckpointError if it is unusable."""
    content = read_config(folder, *(kinds or NETWORK_KINDS))
    path = Path(folder) / "config.json"
    return About(
        kind=content["kind"],
        network=section(path, _as_trained(content), "network", NETWORK_KINDS[content["kind"]].config),
        diffusion=section(path, content, "diffusion", DiffusionConfig),
        labels=_labels(content),
        training=content.get("training", {}),
        sha256=content.get("sha256"),
    )


def _as_trained(content: dict[str, Any]) -> dict[str, Any]:
    """Return the contents with only those sides of attention that exist in the weights.

    Older checkpoints may have sides that match no level, and no attention there.
    """
    network: Any = content.get("network")
    try:
        sides = effective_attention_resolutions(
            network["attention_resolutions"], network["image_size"], len(network["channel_mult"])
        )
        return content | {"network": network | {"attention_resolutions": sides}}
    except (KeyError, TypeError, ZeroDivisionError):  # section() raises an error for them
        return content


def _labels(content: dict[str, Any]) -> Labels:
    labels = content.get("labels", 0)
    return Labels(labels) if isinstance(labels, int) else Labels.of(labels)


# -- files ------------------------------------------------------------------------------------------------------------


def check_target(folder: Path | str) -> None:
    """Check that a checkpoint may be written here: nothing, an empty folder or one of our checkpoints.

    Raises CheckpointError if something else would be replaced.
    """
    folder = Path(folder).expanduser()
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - FILES - card.FILES:
        raise CheckpointError(
            f"{folder} exists and is not (only) an admg checkpoint, so it is not replaced: choose another folder"
        )
    if not is_ours(folder / "config.json"):
        read_config(folder)


def is_ours(path: Path) -> bool:
    """Whether a config.json was written by admg, even if it is damaged."""
    return path.is_file() and f'"format": "{FORMAT}"'.encode() in path.read_bytes()[:1000]


def write(folder: Path | str, config: dict[str, Any], network: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Write both files. An existing checkpoint is replaced only when the new one is complete; a README.md that the user
    has written stays.

    dtype: data type of the stored weights, such as torch.float16 for half the size; None keeps the network's

    Raises CheckpointError if something else would be replaced, or if the weights are not finite.
    """
    folder = Path(folder).expanduser()
    check_target(folder)
    state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in network.state_dict().items()}
    check_values(f"the network for {folder}", state)
    own: dict[int, str] = {}
    for name, value in state.items():  # tied weights, which safetensors refuses to store twice
        if own.setdefault(value.untyped_storage().data_ptr(), name) != name:
            state[name] = value.clone()
    with atomic(folder, durable=True) as temporary:
        temporary.mkdir()
        try:
            save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # raised for a full disk
            raise cannot_write(folder, temporary, error) from None
        about = {**with_format(config), "sha256": sha256(temporary / "model.safetensors")}
        write_json(temporary / CONFIG, about, indent=2)
        card.keep(folder, temporary)
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")  # readable by others, too


def with_format(config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of config.json, with the format that identifies it."""
    return {"format": FORMAT, "version": VERSION, **config}


def is_part(path: Path | str) -> bool:
    """Whether a file belongs to a checkpoint of admg."""
    path = Path(path)
    if path.name not in FILES or not path.is_file():
        return False
    try:
        read_config(path.parent)
    except CheckpointError:
        return False
    return True


def read_config(folder: Path | str, *kinds: str) -> dict[str, Any]:
    """Return the contents of config.json.

    Raises CheckpointError if it is missing, not ours, of a newer version, of none of the given kinds, damaged, or if an
    entry has another type than it must have.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not folder.is_dir():
        problem = "is a file; expected" if folder.exists() else "does not exist; expected"
        raise CheckpointError(f"{folder} {problem} a folder with config.json and model.safetensors")
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json, so it is not an admg checkpoint")
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f'{path} does not belong to an admg checkpoint ("format": "{FORMAT}" is missing)')
    version = config.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise CheckpointError(
            f"{path} has version {version!r}; this admg reads up to version {VERSION}: update admg to load it"
        )
    unchanged = not is_damaged(config)
    config = {name: value for name, value in config.items() if value is not None}
    check_types(path, config)
    if "kind" not in config:
        raise CheckpointError(f"{path} has no 'kind'")
    if not unchanged:
        raise DamagedError(damaged(path))
    if kinds and config.get("kind") not in kinds:
        needed = " or ".join(map(repr, kinds))
        raise CheckpointError(f"expected a {needed} checkpoint, but {folder} holds a {config.get('kind')!r} one")
    return config


def verify(folder: Path | str) -> bool:
    """Read all of a checkpoint, and return whether its weights have a checksum, as all but old ones have.

    Raises CheckpointError if it is damaged.
    """
    checksum = read_about(folder).sha256
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no model.safetensors")
    _check_weights(path, checksum)
    return checksum is not None


def _check_weights(path: Path, checksum: str | None, opened: Path | None = None) -> None:
    if checksum is not None and sha256(opened or path) != checksum:
        raise DamagedError(f"{path} is damaged: its SHA-256 differs from config.json")


@contextmanager
def verified_state(folder: Path | str, checksum: str | None) -> Iterator[dict[str, Tensor]]:
    """Context manager of the memory-mapped weights. If it raises, do not use anything computed from them.

    Another thread computes their checksum while the context runs.

    checksum: their SHA-256 by config.json, or None if it has none

    Raises CheckpointError if they are missing, truncated, damaged or unreadable. If they are damaged, this error
    takes precedence over any other error in the context.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no model.safetensors")
    before = _identity(folder)
    try:
        with path.open("rb") as file, ThreadPoolExecutor(1) as pool:
            opened = Path(f"/proc/self/fd/{file.fileno()}")  # the same file, even if it is replaced
            opened = opened if opened.exists() else path
            checked = pool.submit(_check_weights, path, checksum, opened)
            try:
                yield load_file(opened)
            finally:
                checked.result()
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path} is truncated or not a safetensors file: {error}") from None
    if opened == path and _identity(folder) != before:  # it may not be the file whose checksum was computed
        raise CheckpointError(f"{path} was replaced while it was read")
