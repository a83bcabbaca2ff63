"""The images of a data set by name, in the same order on every system: files below a folder, or members."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from .errors import DataError
from .generated import IMAGES, beside_samples
from .members import ImagePath, Member

DESCRIPTION = "dataset.json"
"""File beside the images, of a folder or in an archive, that holds their labels."""
METADATA = ("metadata.csv", "metadata.jsonl")
"""Files beside the images of a folder that `imagefolder` of Hugging Face's `datasets` reads."""
LABEL_FILES = (DESCRIPTION, *METADATA)
"""All files beside the images that may hold their labels."""
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
SYSTEM_FOLDERS = frozenset(
    {"@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin", "lost+found", "system volume information"}
)
"""Folders, in lower case, that systems and archives create beside the user's own."""


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file below a folder.

    name: path relative to the folder, with "/"
    size, changed: size in bytes, and time of the last change in nanoseconds; -1 if they are unknown
    """

    name: str
    size: int = -1
    changed: int = -1


@dataclass(frozen=True)
class Description:
    """The content of a dataset.json or of metadata that lie in an archive.

    top: folder in the archive that contains it, to which its names are relative; "" or with "/" at its end
    name: name of the file
    """

    content: bytes
    top: str = ""
    name: str = DESCRIPTION


@dataclass(frozen=True)
class Listing:
    """The files of a data set, ordered by path.

    root: folder, or file that holds them
    left_out: hidden and system folders that were left out
    members: members of archives by name, or None if these are files below the folder
    description: dataset.json of an archive
    metadata: metadata.csv or metadata.jsonl of an archive
    descriptions: of several tars, the dataset.json or metadata in each that has one, which name its own images
    top: folder below the root that holds the data, with "/" at its end; None if it follows from the names
    unused: note on what is beside the images and may be meant as labels, but is not used; "" if there is nothing
    label_names: names of the numbers that are stored with the members, () if they have none
    kind: kind of the source, in words
    typed: whether all files are known to be images, whatever their names
    """

    root: Path
    files: list[ListedFile]
    left_out: list[str]
    members: Mapping[str, Member] | None = None
    description: Description | None = None
    label_names: tuple[str, ...] = ()
    kind: str = "folder of images"
    typed: bool = False
    metadata: Description | None = None
    top: str | None = None
    unused: str = ""
    descriptions: Mapping[Path, Description] = field(default_factory=dict)

    @classmethod
    def of_members(
        cls,
        root: Path,
        members: Mapping[str, Member],
        left_out: Sequence[str],
        kind: str,
        description: Description | None = None,
        label_names: tuple[str, ...] = (),
        typed: bool = False,
    ) -> Listing:
        """Return the listing of members in the order of the mapping."""
        files = [ListedFile(name, member.size, member.container.changed) for name, member in members.items()]
        return cls(root, files, list(left_out), members, description, label_names, kind, typed)

    def at(self, name: str) -> ImagePath:
        """Return the location of the file of this name."""
        return self.root / name if self.members is None else self.members[name]


def list_files(root: Path, *, sizes: bool = True) -> Listing:
    """Return the files in a folder and below it. Hidden and system files are left out.

    sizes: whether to read the size and the modification time of each file

    Names are compared in Unicode's NFC, so that a copy of the folder from a Mac, which stores NFD, has the same order.
    Raises DataError if a folder cannot be listed.
    """
    left_out: list[str] = []
    return Listing(root, list(_walk(str(root), "", (), left_out, sizes)), left_out)


def visible(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the names other than hidden and system files, and the hidden and system folders that were left out."""
    kept: list[str] = []
    left_out: dict[str, None] = {}
    for name in names:
        *folders, file = name.split("/")
        hidden = next((i for i, folder in enumerate(folders) if is_hidden_folder(folder)), None)
        if hidden is not None:
            left_out["/".join(folders[: hidden + 1])] = None
        elif file and not file.startswith(".") and file.lower() not in SYSTEM_FILES:
            kept.append(name)
    return kept, list(left_out)


def in_order(names: Iterable[str]) -> list[str]:
    """Return names in the order of `list_files` for a folder of these files."""
    return sorted(names, key=lambda name: [(nfc(part), part) for part in name.split("/")])


def relative_names(root: Path, paths: Sequence[ImagePath]) -> list[str]:
    """Return paths below a folder relative to it, with "/". It is many times as fast as `Path.relative_to`."""
    text = str(root)
    skip = 0 if text == "." else len(text.rstrip(os.sep)) + 1  # Path(".") / "a" is "a"
    return [str(path)[skip:].replace(os.sep, "/") for path in paths]


def is_image(name: str) -> bool:
    """Whether a file has the ending of an image that Pillow reads."""
    return os.path.splitext(name)[1].lower() in Image.registered_extensions()


def nfc(text: str) -> str:
    """Return text in Unicode's NFC, in which "é" is one character. Macs name files in NFD, in which it is two."""
    return unicodedata.normalize("NFC", text)


def _walk(folder: str, prefix: str, above: tuple[str, ...], left_out: list[str], sizes: bool) -> Iterator[ListedFile]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that contains this one
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: (nfc(entry.name), entry.name))
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror}") from error
    names = {entry.name for entry in entries}
    if prefix and is_run(names):
        left_out.append(prefix.rstrip("/"))
        return
    ours = beside_samples(names)
    described = f"{prefix}{IMAGES}/{DESCRIPTION}" if ours else None
    for entry in entries:
        if entry.name in ours:
            continue
        hidden, linked = entry.name.startswith("."), entry.is_symlink()
        if os.path.isdir(entry.path) if linked else entry.is_dir():
            if is_hidden_folder(entry.name):
                left_out.append(prefix + entry.name)
            else:
                inner = _walk(entry.path, f"{prefix}{entry.name}/", (*above, real), left_out, sizes)
                yield from inner if described is None else (file for file in inner if file.name != described)
        elif hidden or entry.name.lower() in SYSTEM_FILES:
            continue
        elif linked or entry.is_file():  # a broken link is reported; opening a pipe would block
            yield _listed(entry, prefix) if sizes else ListedFile(prefix + entry.name)


def is_run(names: set[str]) -> bool:
    """Whether a folder with these files is a training run, whose pictures are not part of a data set."""
    return "run.json" in names and not names.isdisjoint({"checkpoints", "log.csv"})


def is_hidden_folder(folder: str) -> bool:
    """Whether a folder of this name is hidden or a system folder, and not part of a data set."""
    return folder.startswith(".") or folder.lower() in SYSTEM_FOLDERS


def _listed(entry: os.DirEntry[str], prefix: str) -> ListedFile:
    try:
        status = entry.stat()
    except OSError:  # a broken link
        return ListedFile(prefix + entry.name)
    return ListedFile(prefix + entry.name, status.st_size, status.st_mtime_ns)
