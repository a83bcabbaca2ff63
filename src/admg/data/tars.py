"""Tars of images, such as the shards of WebDataset, with an index of their members in the cache folder.

A tar has no table of contents. It is read through once; the positions of its images and their labels are kept in an
index file, which is valid as long as the size and the modification time of the tar are unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import msgspec
from PIL import Image

from admg.config import printable
from admg.warn import warn

from . import cached
from .arrays import Split
from .errors import DataError, listed
from .generated import without_pictures
from .listing import DESCRIPTION, LABEL_FILES, METADATA, Description, Listing, in_order, visible
from .members import NOWHERE, Container, StoredMember
from .metadata import as_label, column_of, description_of, nearest
from .parts import of_split, top_of_part
from .tar_members import Place, read_places

VERSION = 4
"""Version of the index; other versions are rewritten."""
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""A range in a pattern of names, such as {000..099}."""
LABELS = ("cls", "class", "json", "txt")
"""Endings of the files that hold labels, in the order of precedence."""
KEYS = ("label", "cls", "class", "class_name", "category")
"""Entries of a .json that hold a label, in the order of precedence."""
MAX_TARS = 1_000_000
"""Largest number of files that a pattern may name."""
MAX_LABEL_BYTES = 1 << 20
"""Largest number of bytes of a file that is read as a label."""
BAR_AFTER = 2.0
"""Seconds of reading after which a progress bar appears."""

Row = tuple[str, int, int, int | str | None]
"""Name, first byte (NOWHERE if it cannot be read) and number of bytes of an image, and its label."""
Label = int | str | None


@dataclass(frozen=True)
class Content:
    """What admg reads of a tar; it is kept in the index.

    images: images, with the labels beside them
    described: content of dataset.json, metadata.csv and metadata.jsonl by name
    unused: content of a .json beside an image that holds no label, in words; "" if there is none
    """

    images: list[Row]
    described: dict[str, str] = field(default_factory=dict)
    unused: str = ""


def list_tars(
    root: Path, tars: Sequence[Path], split: Split = "train", *, classes: bool = True, progress: bool = True
) -> Listing:
    """Return the images in tars. Those of WebDataset have labels in files beside them.

    root: the tar, or the folder of the tars
    split: part to take, if the names of some tars begin with train, test, val, ...
    classes: see `find_source`

    The images of a sample, "n01/0001.jpg", and its label, "n01/0001.cls", have the same name up to the first dot. A
    label is a number or a name: the content of .cls or .class, the entry "label", "cls", "class", "class_name" or
    "category" of .json, or the content of .txt. A dataset.json, metadata.csv or metadata.jsonl holds the labels of its
    own tar; if there is only one, it may hold those of all tars. Raises DataError if a tar cannot be read, or if it is
    compressed.
    """
    from tqdm.auto import tqdm

    chosen = of_split(tars, split, root)
    members: dict[str, StoredMember] = {}
    left_out: list[str] = []
    contents: list[Content] = []
    bar = tqdm(chosen, desc=printable(f"indexing {root.name}"), unit=" tars", delay=BAR_AFTER, disable=not progress)
    for tar in bar:
        container = Container.from_path(tar)
        contents.append(_content(container))
        rows = {row[0]: row for row in contents[-1].images}
        names, hidden = visible(rows)
        left_out += hidden
        prefix = "" if tar == root else f"{tar.relative_to(root)}/"
        for name in in_order(names):
            _, start, size, label = rows[name]
            members[prefix + name] = StoredMember(container, name, size, label, start=start)
    texts = [member.label for member in members.values() if isinstance(member.label, str)]
    if len(set(texts)) > max(1, len(members) / 2):
        warn(f"{root}: texts such as {texts[0][:40]!r} are captions, not labels, and are left out")
        members = {name: replace(member, label=None) for name, member in members.items()}
    kind = "tar of images" if len(chosen) == 1 else f"set of {len(chosen)} tars"
    listing = Listing.of_members(root, members, left_out, kind, typed=True)
    listing = replace(listing, unused=next((content.unused for content in contents if content.unused), ""))
    return _as_folder(listing, dict(zip(chosen, (content.described for content in contents))), split, classes)


def _as_folder(listing: Listing, described: dict[Path, dict[str, str]], split: Split, classes: bool) -> Listing:
    """Return the listing of tars with the part and the files of labels that a folder of these images would have.

    described: `Content.described` of each tar
    """
    members = listing.members or {}
    names = [*(member.name for member in members.values()), *(name for found in described.values() for name in found)]
    labelled = any(member.label is not None for member in members.values())
    top = None if labelled else top_of_part(names, split, listing.root, classes=classes)
    if top is not None:
        members = {name: member for name, member in members.items() if member.name.startswith(top)}
        files = [file for file in listing.files if file.name in members]
        listing = replace(listing, members=members, files=files, top=top)
    images: dict[Path, list[str]] = {tar: [] for tar in described}
    for member in members.values():
        images[member.container.path].append(member.name)
    found = {tar: _description(content, images[tar]) for tar, content in described.items()}
    descriptions = {tar: description for tar, description in found.items() if description is not None}
    distinct = len({member.name for member in members.values()}) == len(members)
    if len(described) > 1 and not (len(descriptions) == 1 and distinct):  # a single one may be that of all tars
        return replace(listing, descriptions=descriptions)
    description = next(iter(descriptions.values()), None)
    if description is None or description.name == DESCRIPTION:
        return replace(listing, description=description)
    return replace(listing, metadata=description)


def _description(described: dict[str, str], images: Sequence[str]) -> Description | None:
    """Return the nearest file of the labels of these images in a tar, or None if there is none."""
    found = nearest(described, [DESCRIPTION], images) or nearest(described, METADATA, images)
    return None if found is None else description_of(found, described[found])


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
    return cached.cache_path("tars", tar, ".json.gz")


def _content(container: Container) -> Content:
    """Return the images of a tar, from its index or by reading it."""
    path = container.path
    about = [VERSION, cached.place_of(path), container.size, container.changed]
    with suppress(Exception):  # an index only saves time: ignore every failure
        stored = cached.read_index(index_path(path))
        if stored.pop("about") == about:
            return msgspec.convert(stored, Content)
    content = _read(path)
    cached.write_index(index_path(path), {"about": about, **vars(content)})
    return content


def _read(path: Path) -> Content:
    """Return the images of a tar by reading it. Raises DataError if it cannot be read or accessed at random."""
    images: list[tuple[str, int, int]] = []
    labels: dict[tuple[str, str], Label] = {}
    others: list[str] = []
    content = Content([])
    places, linked = read_places(path)
    with path.open("rb") as file:
        for name, place in places.items():
            key, ending = split_name(name)
            if PurePosixPath(name).suffix.lower() in Image.registered_extensions() or name in linked:
                images.append((name, *place))
            elif place[0] == NOWHERE:
                others.append(name)
            elif PurePosixPath(name).name in LABEL_FILES:
                content.described[name] = _bytes(file, place).decode("utf-8", "surrogateescape")
            elif ending in LABELS and place[1] <= MAX_LABEL_BYTES:
                labels[key, ending] = _label(ending, _bytes(file, place), f"{path}/{name}")
                if ending == "json" and labels[key, ending] is None and not content.unused:
                    content = replace(content, unused=_unused(_bytes(file, place)))
            else:
                others.append(name)
    if not images:
        raise DataError(f"{path} holds no image files (it holds {listed(others, 3) or 'nothing'})")
    if labels:
        check_keys(visible(name for name, start, _ in images if start != NOWHERE)[0], path)
    kept = set(without_pictures([*(name for name, _, _ in images), *others]))
    images = [image for image in images if image[0] in kept]
    return replace(content, images=list(_labelled(images, labels)))


def check_keys(images: Sequence[str], path: Path) -> None:
    """Raise DataError if a sample of WebDataset has several images."""
    first: dict[str, str] = {}
    for name in images:
        if (other := first.setdefault(split_name(name)[0], name)) != name:
            raise DataError(f"{path} has several images per sample, such as {other} and {name}: expected one")


def _bytes(file: BinaryIO, place: Place) -> bytes:
    file.seek(place[0])
    return file.read(place[1])


def split_name(name: str) -> tuple[str, str]:
    """Return the key of a member (its name up to the first dot of the last part) and the rest in lower case."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    key, _, ending = file.partition(".")
    return folder + slash + key, ending.lower()


def _labelled(images: Sequence[tuple[str, int, int]], labels: dict[tuple[str, str], Label]) -> Iterator[Row]:
    for name, start, size in images:
        key = split_name(name)[0]
        yield name, start, size, next((label for e in LABELS if (label := labels.get((key, e))) is not None), None)


def _label(ending: str, content: bytes, what: str) -> Label:
    """Return the label that a file beside an image holds, or None if it holds none. Raises DataError."""
    try:
        text = content.decode("utf-8").strip()
        value: Any = json.loads(text) if ending == "json" else text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} cannot be read as a label: {error}") from None
    if isinstance(value, dict):
        value = value.get(column_of([*value], KEYS))
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value):
        return int(value)
    return as_label(value)


def _unused(content: bytes) -> str:
    """Return a note on a .json that holds no label."""
    value = json.loads(content)
    entries = listed([*value], 5) if isinstance(value, dict) else ""
    return (
        f"the .json files beside the images have no label that is recognised (they have {entries or 'no entries'}): "
        f"use an entry such as {', '.join(KEYS[:3])} with a number or a name"
    )
