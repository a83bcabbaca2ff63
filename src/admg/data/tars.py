"""Tars of images, such as the shards of WebDataset, with an index of their members in the cache folder.

A tar has no table of contents. It is read through once; the positions of its images and their labels are kept in an
index file, which is valid as long as the size and the modification time of the tar are unchanged.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from PIL import Image

from admg.config import printable
from admg.files import atomic, cache_folder

from .arrays import Split
from .errors import DataError, listed
from .listing import DESCRIPTION, Description, Listing, in_order, visible
from .members import Container, StoredMember
from .parts import of_split

VERSION = 1
"""Version of the index; other versions are rewritten."""
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""A range in a pattern of names, such as {000..099}."""
LABELS = ("cls", "json", "txt")
"""Endings of the files that hold labels, in the order of precedence."""
KEYS = ("label", "cls", "class", "class_name")
"""Entries of a .json that hold a label, in the order of precedence."""
MAX_TARS = 1_000_000
"""Largest number of files that a pattern may name."""
MAX_LABEL_BYTES = 1 << 20
"""Largest number of bytes of a file that is read as a label."""
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""First bytes of files of gzip, bzip2, xz and zstd."""
BAR_AFTER = 2.0
"""Seconds of reading after which a progress bar appears."""

Row = tuple[str, int, int, int | str | None]
"""Name, first byte and number of bytes of an image, and its label."""
Content = tuple[list[Row], Description | None]
"""The images of a tar, and its dataset.json."""


def list_tars(root: Path, tars: Sequence[Path], split: Split = "train", *, progress: bool = True) -> Listing:
    """Return the images in tars. Those of WebDataset have labels in files beside them.

    root: the tar, or the folder of the tars
    split: part to take, if the names of some tars begin with train, test, val, ...

    The images of a sample, "n01/0001.jpg", and its label, "n01/0001.cls", have the same name up to the first dot. A
    label is a number or a name: the content of .cls, the entry "label", "cls", "class" or "class_name" of .json, or the
    content of .txt. Raises DataError if a tar cannot be read, or if it is compressed.
    """
    from tqdm.auto import tqdm

    chosen = of_split(tars, split, root)
    members: dict[str, StoredMember] = {}
    left_out: list[str] = []
    description = None
    bar = tqdm(chosen, desc=printable(f"indexing {root.name}"), unit=" tars", delay=BAR_AFTER, disable=not progress)
    for tar in bar:
        container = Container.from_path(tar)
        images, description = _content(container)
        rows = {row[0]: row for row in images}
        names, hidden = visible(rows)
        left_out += hidden
        prefix = "" if tar == root else f"{tar.relative_to(root)}/"
        for name in in_order(names):
            _, start, size, label = rows[name]
            members[prefix + name] = StoredMember(container, name, size, label, start=start)
    texts = [member.label for member in members.values() if isinstance(member.label, str)]
    if len(set(texts)) > max(1, len(members) / 2):
        warnings.warn(
            f"{root}: texts such as {texts[0][:40]!r} are captions, not labels, and are left out", stacklevel=4
        )
        members = {name: _unlabelled(member) for name, member in members.items()}
    kind = "tar of images" if len(chosen) == 1 else f"set of {len(chosen)} tars"
    return Listing.of_members(root, members, left_out, kind, description if len(chosen) == 1 else None, typed=True)


def expand(pattern: str) -> list[Path]:
    """Return the files that a pattern of tars names: with {000..099} or *; [] if it is not a pattern.

    Raises DataError if a file of a range does not exist, or if no file matches.
    """
    path = Path(pattern).expanduser()
    if match := NUMBERS.search(path.name):
        low, high = match.groups()
        if (count := int(high) - int(low) + 1) > MAX_TARS:
            raise DataError(f"{path} names {count:,} tars, more than the limit of {MAX_TARS:,}")
        numbers = range(int(low), int(high) + 1)
        paths = [path.with_name(NUMBERS.sub(f"{number:0{len(low)}}", path.name, 1)) for number in numbers]
        paths = [file for one in paths for file in (expand(str(one)) if NUMBERS.search(one.name) else [one])]
        if missing := [file for file in paths if not file.is_file()]:
            raise DataError(
                f"{len(missing)} of {len(paths)} files of {path} do not exist; the first is {missing[0].name}"
            )
        return paths
    if "*" in path.name or "?" in path.name:
        matches = sorted(path.parent.glob(path.name))
        if not matches:
            raise DataError(f"no file matches {path}")
        if other := [file for file in matches if file.suffix.lower() != ".tar"]:
            raise DataError(f"{path} must match only .tar files, but matches {other[0].name}")
        return matches
    return []


def index_path(tar: Path) -> Path:
    """Return the index file of a tar."""
    return cache_folder() / "tars" / f"{hashlib.sha256(_place(tar).encode()).hexdigest()[:24]}.json.gz"


def _place(tar: Path) -> str:
    return ascii(str(tar.resolve()))


def _content(container: Container) -> Content:
    """Return the images of a tar, from its index or by reading it."""
    path = container.path
    about = [VERSION, _place(path), container.size, container.changed]
    with suppress(Exception):  # an index only saves time: ignore every failure
        content = json.loads(gzip.decompress(index_path(path).read_bytes()))
        if content["about"] == about:
            described = content["description"]
            rows = msgspec.convert(content["images"], list[Row])
            return rows, None if described is None else Description(described[0].encode(), described[1])
    rows, description = _read(path)
    described = None if description is None else [description.content.decode("utf-8", "replace"), description.top]
    text = json.dumps({"about": about, "images": rows, "description": described}, separators=(",", ":"))
    with suppress(OSError), atomic(index_path(path)) as temporary:
        temporary.write_bytes(gzip.compress(text.encode("ascii"), compresslevel=1, mtime=0))
    return rows, description


def _read(path: Path) -> Content:
    """Return the images of a tar by reading it. Raises DataError if it cannot be read or accessed at random."""
    images: list[tuple[str, int, int]] = []
    labels: dict[tuple[str, str], int | str | None] = {}
    others: list[str] = []
    length = path.stat().st_size
    description: Description | None = None
    try:
        with tarfile.open(path, "r:") as file:
            for entry in file:
                name = entry.name.removeprefix("./")
                key, ending = split_name(name)
                if not entry.isreg() or entry.issparse():
                    continue
                if entry.offset_data + entry.size > length:
                    raise DataError(f"{path} is truncated or damaged: {name} would end beyond the end of the file")
                if PurePosixPath(name).suffix.lower() in Image.registered_extensions():
                    images.append((name, entry.offset_data, entry.size))
                elif PurePosixPath(name).name == DESCRIPTION:
                    description = Description(_bytes(file, entry), name.removesuffix(DESCRIPTION))
                elif ending in LABELS and entry.size <= MAX_LABEL_BYTES:
                    labels[key, ending] = _label(ending, _bytes(file, entry), f"{path}/{name}")
                else:
                    others.append(name)
    except (tarfile.TarError, OverflowError) as error:  # sizes may be larger than any file
        with path.open("rb") as raw:
            packed = raw.read(6).startswith(COMPRESSED)
        hint = "it is compressed, and its images cannot be read one by one: unpack it" if packed else error
        raise DataError(f"{path} cannot be read as a tar: {hint}") from error
    if not images:
        raise DataError(f"{path} holds no image files (it holds {listed(others, 3) or 'nothing'})")
    if labels:
        check_keys(images, path)
    return list(_labelled(images, labels)), description


def check_keys(images: Sequence[tuple[str, int, int]], path: Path) -> None:
    """Raise DataError if a sample of WebDataset has several images."""
    first: dict[str, str] = {}
    for name, _, _ in images:
        if (other := first.setdefault(split_name(name)[0], name)) != name:
            raise DataError(f"{path} has several images per sample, such as {other} and {name}: expected one")


def _bytes(file: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    content = file.extractfile(entry)
    return b"" if content is None else content.read()


def split_name(name: str) -> tuple[str, str]:
    """Return the key of a member (its name up to the first dot of the last part) and the rest in lower case."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, ending = file.partition(".")
    return folder + slash + key, ending.lower()


def _labelled(images: Sequence[tuple[str, int, int]], labels: dict[tuple[str, str], int | str | None]) -> Iterator[Row]:
    for name, start, size in images:
        key = split_name(name)[0]
        yield name, start, size, next((label for e in LABELS if (label := labels.get((key, e))) is not None), None)


def _label(ending: str, content: bytes, what: str) -> int | str | None:
    """Return the label that a file beside an image holds, or None if it holds none. Raises DataError."""
    try:
        text = content.decode("utf-8").strip()
        value: Any = json.loads(text) if ending == "json" else text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} cannot be read as a label: {error}") from None
    if ending == "json":
        value = next((value[key] for key in KEYS if key in value), None) if isinstance(value, dict) else value
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) and value != "" else None


def _unlabelled(member: StoredMember) -> StoredMember:
    return StoredMember(member.container, member.name, member.size, None, start=member.start)
