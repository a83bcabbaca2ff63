"""Models on the Hugging Face Hub: `hf:user/name@revision`, from_pretrained and push_to_hub.

The cache, the token, HF_ENDPOINT and HF_HUB_OFFLINE are those of huggingface_hub, whose functions move the files. Its
ModelHubMixin is not used: it would have to be imported with the class, and builds models from a flat configuration.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Self, TypeVar

import torch

from . import card, download
from .weights import CheckpointError, DamagedError

PREFIX = "hf:"
FILES = (
    "config.json", "model.safetensors", "README.md", "card-*.png",  # ours
    "model_index.json", "scheduler_config.json", "diffusion_pytorch_model*.safetensors", "unet/config.json",
    "unet/diffusion_pytorch_model*.safetensors", "scheduler/scheduler_config.json",  # of diffusers
)  # fmt: skip
"""Files of a model, within its folder of a repository."""
PICKLES = "diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.bin"
"""Weights of diffusers that are only downloaded if there are no others."""
CLIENTS = "httpx", "httpx2", "requests"
"""Packages by which versions of huggingface_hub speak HTTP; their errors are not OSErrors in all of them."""
AnyModel = TypeVar("AnyModel", bound="Pretrained")


@dataclass(frozen=True)
class HubName:
    """Location of a model on the Hub.

    repo: `user/name` of the repository
    folder: folder of the model within it, or ""
    revision: branch, tag or commit; None for the main branch
    """

    repo: str
    folder: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Return the place that `user/name`, `user/name/folder` or one of these with `@revision` names.

        Raises ValueError for anything else.
        """
        match = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)(?:@([\w./-]+))?", text, re.ASCII)
        if match is None or re.search(r"(^|/)\.\.?(/|@|$)", text):
            raise ValueError(
                f"{text!r} is not a model of the Hugging Face Hub: expected user/name or user/name/folder, with or "
                "without @revision"
            )
        return cls(match[1], match[2].strip("/"), match[3])

    def __str__(self) -> str:
        place = f"{self.repo}/{self.folder}" if self.folder else self.repo
        return f"{PREFIX}{place}@{self.revision}" if self.revision else f"{PREFIX}{place}"


@dataclass(frozen=True)
class Access:
    """How the Hub is accessed; the fields are those of huggingface_hub.

    offline: use the cache alone
    force: download again what is in the cache
    cache: folder of the cache; None: that of the Hub
    token: token of the user; None: that of `hf auth login`
    """

    offline: bool = False
    force: bool = False
    cache: Path | str | None = None
    token: str | bool | None = None


def named(name: object) -> HubName | None:
    """Return the place of a name `hf:...`, or None for any other name. Raises ValueError if it is malformed."""
    text = str(name)
    return HubName.parse(text.removeprefix(PREFIX)) if text.startswith(PREFIX) else None


def fetch(name: HubName, access: Access) -> Path:
    """Return the folder of a model in the cache of the Hub, after downloading what is missing.

    Raises ValueError if there is no such model, and OSError if it cannot be downloaded.
    """
    within = f"{name.folder}/" if name.folder else ""

    def download_files(*patterns: str) -> Path:
        root = library().snapshot_download(
            name.repo, revision=name.revision, cache_dir=access.cache, force_download=access.force, token=access.token,
            local_files_only=access.offline or download.offline(), allow_patterns=[within + p for p in patterns],
        )  # fmt: skip
        return Path(root) / name.folder

    with explained(name):
        folder = download_files(*FILES)
        if not any(folder.rglob("*.safetensors")):
            folder = download_files(*FILES, *PICKLES)
    if not folder.is_dir():
        raise ValueError(f"{name}: the repository has no model in the folder {name.folder!r}")
    return folder


def loaded(name: HubName, load: Callable[[Path], AnyModel], access: Access) -> AnyModel:
    """Return a model of the Hub, with the repository and the commit in its provenance.

    load: function that reads the folder

    Raises CheckpointError if the files cannot be used, and otherwise as fetch() does.
    """
    folder = fetch(name, access)
    try:
        model = load(folder)
    except CheckpointError as error:
        again = ": remove it to download it again" if isinstance(error, DamagedError) else ""
        raise type(error)(f"{name}: {error}{again}") from None
    commit = folder.parents[len(Path(name.folder).parts) - 1] if name.folder else folder
    source = HubName(name.repo, name.folder, commit.name)
    model.training = {**model.training, "hub": str(source).removeprefix(PREFIX)}
    return model


class Pretrained:
    """The methods of Model and Classifier for the Hugging Face Hub."""

    training: dict[str, Any]

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        cache_dir: Path | str | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Load a model from a folder, or from the Hugging Face Hub through its cache.

        name: an existing folder, or `user/name` of a repository, `user/name/folder` for a folder in it; the prefix
            `hf:` and a suffix `@revision` are allowed
        revision: branch, tag or commit
        force_download: download again what is in the cache
        local_files_only: use the cache alone, as with HF_HUB_OFFLINE=1
        token: token of the user, if not that of `hf auth login`

        Raises ValueError if there is no such model, if it is of another kind, or if its weights do not have the SHA-256
        of its config.json, and OSError if it cannot be downloaded.
        """
        from .loading import load_kind

        text = str(name)
        if Path(text).expanduser().is_dir() and not text.startswith(PREFIX):
            if revision is not None:
                raise ValueError(f"{text} is a folder, which has no revision {revision!r}")
            return load_kind(Path(text), cls)
        place = HubName.parse(text.removeprefix(PREFIX))
        if revision is not None:
            place = HubName.parse(f"{place.repo}/{place.folder}".rstrip("/") + f"@{revision}")
        access = Access(local_files_only, force_download, cache_dir, token)
        return loaded(place, lambda folder: load_kind(folder, cls), access)

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write a native checkpoint, as save() does, with a model card, README.md. One that you have written stays."""
        from .card_text import write_short_card

        model: Any = self
        folder = Path(folder).expanduser()
        model.save(folder, dtype)
        write_short_card(folder, model, folder.resolve().name, "this-folder")

    def push_to_hub(
        self,
        repo: str,
        *,
        revision: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        message: str = "Upload a model of admg",
        dtype: torch.dtype | None = None,
    ) -> str:
        """Upload the checkpoint and its card to the Hugging Face Hub in one commit, and return the URL of the commit.

        repo: `user/name` of the repository, which is created if it does not exist, or `user/name/folder`
        revision: branch to commit to, which must exist
        private: whether a new repository is private; None: as the user's or organisation's default
        token: token of the user, if not that of `hf auth login`
        message: commit message
        dtype: data type of the weights, such as torch.float16 for half the size

        A README.md in the repository that admg has not written stays. Raises ValueError if the model cannot be saved,
        or if the repository cannot be written, and OSError if the Hub cannot be reached.
        """
        from .card_text import write_short_card

        model: Any = self
        place = HubName.parse(repo.removeprefix(PREFIX))
        if place.revision is not None:
            raise ValueError(f"{repo!r}: pass the branch to push to as revision={place.revision!r}")
        with tempfile.TemporaryDirectory() as temporary, explained(HubName(place.repo, place.folder, revision)):
            folder = Path(temporary) / "model"
            model.save(folder, dtype)
            write_short_card(folder, model, place.folder or place.repo.partition("/")[2], str(place))
            api = library().HfApi(token=token)
            api.create_repo(place.repo, private=private, exist_ok=True)
            path = f"{place.folder}/{card.CARD}" if place.folder else card.CARD
            ignored = [card.CARD] if _has_users_card(api, place.repo, path, revision) else None
            commit = api.upload_folder(
                repo_id=place.repo, folder_path=folder, path_in_repo=place.folder or None, revision=revision,
                commit_message=message, ignore_patterns=ignored,
            )  # fmt: skip
        return str(commit.commit_url)


def _has_users_card(api: Any, repo: str, path: str, revision: str | None) -> bool:
    """Return whether the repository has a README.md that admg has not written."""
    if not api.file_exists(repo, path, revision=revision):
        return False
    with tempfile.TemporaryDirectory() as temporary:
        found = Path(api.hf_hub_download(repo, path, revision=revision, local_dir=temporary))
        return card.is_users(found.parent)


# -- huggingface_hub ---------------------------------------------------------------------------------------------------


def library() -> ModuleType:
    """Return huggingface_hub. Raises ValueError if it is not installed."""
    try:
        return import_module("huggingface_hub")
    except ImportError:
        raise ValueError("models of the Hugging Face Hub need huggingface_hub: pip install 'admg[hub]'") from None


@contextmanager
def explained(name: HubName) -> Iterator[None]:
    """Turn the errors of huggingface_hub into one line that says what to do."""
    errors: Any = import_module(f"{library().__name__}.errors")
    try:
        yield
    except errors.GatedRepoError:
        raise ValueError(
            f"{name}: the owner grants access on the page of the model; then log in: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ValueError(f"{name}: no such model, or it is private: hf auth login") from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{name}: the repository has no such revision") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        cause = error.__cause__
        reason = f"the Hub cannot be reached ({' '.join(str(cause).split())})" if cause else "downloads are off"
        if cause is None or isinstance(cause, errors.OfflineModeIsEnabled):
            reason = "downloads are off (--offline, HF_HUB_OFFLINE)"
        raise OSError(f"{name} is not in the cache of the Hub, and {reason}") from None
    except errors.HfHubHTTPError as error:
        raise OSError(f"{name}: {' '.join(str(error).split())}") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        raise OSError(f"{name}: the Hub cannot be reached ({' '.join(str(error).split())})") from None
