"""The labels of images: from sub-folders, from file names, from EDM's dataset.json, or stored with each image."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from admg.warn import warn

from .errors import DataError, check_choice, listed
from .listing import DESCRIPTION, METADATA, Listing, nfc, relative_names
from .members import ImagePath, Member
from .metadata import metadata_labels

LabelSource = Literal["auto", "folders", "prefix", "json", "none"]
SPLITS = re.compile(r"(train|training|val|valid|validation|test|testing|eval|dev)(\d{4})?", re.IGNORECASE)
"""Names of folders that hold a part of a data set rather than a class."""
NUMBERED = re.compile(r"\d{5,}")
"""Names such as 00000, which the folders of StyleGAN's and EDM's data sets have."""
MAX_LABELS = 1_000_000
UNLABELLED = -1
"""Number in dataset.json of an image without a label, where others have one."""
CHOOSE = 'choose with labels="folders", or labels="none", "prefix" or "json"'


@dataclass(frozen=True)
class FoundLabels:
    """The labels of images.

    numbers: label of each image (N,)
    names: names of the labels, in the order of their numbers
    numbered: whether the labels were stored as numbers and have no names but these
    """

    numbers: Int64[np.ndarray, " n"]
    names: tuple[str, ...]
    numbered: bool = False


def find_labels(
    listing: Listing,
    files: Sequence[ImagePath],
    source: LabelSource | bool = "auto",
    order: tuple[str, ...] | None = None,
) -> FoundLabels | None:
    """Return the labels of images of a listing, or None if they have none.

    source: "folders", the names of the sub-folders; "prefix", file names up to the first underscore, in sub-folders as
        well, which is the layout of guided-diffusion; "json", the numbers in dataset.json, which is the layout of EDM
        and StyleGAN; "none", no labels. "auto" takes labels that are stored with the images, or in dataset.json or
        metadata.csv; else the sub-folders if there are any; else the file names if any has an underscore. Sub-folders
        that are all named as parts of a data set (train, val, 00000) give no label if file names do. True and False
        stand for "auto" and "none".
    order: names of the labels, in the order of their numbers; by default they are sorted

    Names are in Unicode's NFC. With "auto", a layout that may have been misunderstood is reported in a warning.
    Raises DataError if the labels cannot be read, or are not in `order`.
    """
    chosen = checked_source(source)
    if chosen == "none":
        return None
    root = listing.root
    if chosen == "auto" and any(isinstance(file, Member) and file.label is not None for file in files):
        return _stored(listing, [file.label if isinstance(file, Member) else None for file in files], files, order)
    if chosen in ("auto", "json") and (found := _labels_in_tars(listing, files, chosen == "json")) is not None:
        return None if all(label is None for label in found) else _stored(listing, found, files, order)
    if chosen == "json" or (chosen == "auto" and _has_description(listing)):
        top = "" if listing.description is None else listing.description.top
        return _described(root / DESCRIPTION, _description(listing), _names_below(listing, files, top), order)
    if chosen == "auto" and (labels_beside := _metadata_labels(listing, files)) is not None:
        return _stored(listing, labels_beside, files, order)
    names = names_within(listing, files)
    if chosen == "auto":
        chosen = recognise_source(root, names)
        if listing.unused and chosen != "folders":
            warn(f"{root}: {listing.unused}")
        if chosen == "none":
            return None
        labels = by_folder(root, names) if chosen == "folders" else by_prefix(root, names)
        for note in doubts(names, labels, chosen):
            warn(f"{root}: {note}; {CHOOSE}")
    else:
        labels = by_folder(root, names) if chosen == "folders" else by_prefix(root, names)
    return FoundLabels(*number_labels(labels, order))


def names_within(listing: Listing, files: Sequence[ImagePath]) -> list[str]:
    """Return the names of files relative to the folder that holds the data.

    In an archive of a folder, all names begin with the name of that folder; it is not a class if it has sub-folders.
    """
    if listing.top is not None or listing.members is None:
        return _names_below(listing, files, listing.top or "")
    if (stated := listing.description or listing.metadata) is not None:
        return _names_below(listing, files, stated.top)
    return _names_below(listing, files, common_top(_names_below(listing, files)))


def _names_below(listing: Listing, files: Sequence[ImagePath], top: str = "") -> list[str]:
    """Return the names of files relative to a folder of their listing, with "/" at its end."""
    if listing.members is None:
        names = relative_names(listing.root, files)
    else:
        names = [file.name for file in files if isinstance(file, Member)]
    return [name.removeprefix(top) for name in names]


def common_top(names: Sequence[str]) -> str:
    """Return the folder, with "/" at its end, that contains all files, each in a sub-folder; "" if there is none."""
    top = ""
    while names and all(name.count("/", len(top)) > 1 for name in names):
        folder = names[0][len(top) :].partition("/")[0] + "/"
        if not all(name.startswith(folder, len(top)) for name in names):
            break
        top += folder
    return top


def checked_source(source: LabelSource | bool) -> LabelSource:
    """Return the source of labels. Raises DataError if it is not one of the known sources."""
    if isinstance(source, bool):
        return "auto" if source else "none"
    check_choice(source, LabelSource, "labels")
    return source


def recognise_source(root: Path, names: Sequence[str]) -> Literal["folders", "prefix", "none"]:
    """Return the source of the labels of a folder without dataset.json. Raises DataError if it mixes two layouts."""
    nested = [name for name in names if "/" in name]
    if nested:
        loose = [name for name in names if "/" not in name]
        if loose:
            raise DataError(
                f"{root} mixes class sub-folders (such as {nested[0].split('/')[0]}) and loose images (such as "
                f"{loose[0]}): use one or the other, or pass labels='none'"
            )
        folders = {name.split("/")[0] for name in names}
        parts = all(SPLITS.fullmatch(folder) or NUMBERED.fullmatch(folder) for folder in folders)
        return "prefix" if parts and labelled_by_prefix(names) else "folders"
    labelled = sum("_" in name for name in names)
    if 0 < labelled < len(names):
        other = next(name for name in names if "_" not in name)
        raise DataError(
            f"{len(names) - labelled} of {len(names)} images in {root} have no underscore after a label, such as "
            f"{other}: label all or none, or pass labels='none'"
        )
    return "prefix" if labelled else "none"


def by_folder(root: Path, names: Sequence[str]) -> list[str]:
    """Return the names of the first sub-folder of each image. Raises DataError if an image is not in a sub-folder."""
    loose = [name for name in names if "/" not in name]
    if loose:
        raise DataError(
            f"{len(loose)} of {len(names)} images in {root} are not in a sub-folder, such as {loose[0]}: "
            f'labels="folders" needs one for each class'
        )
    return [nfc(name.split("/")[0]) for name in names]


def by_prefix(root: Path, names: Sequence[str]) -> list[str]:
    """Return each file name up to its first underscore. Raises DataError if one has none, or begins with it."""
    labels = [prefix(name) for name in names]
    missing = [name for name, label in zip(names, labels) if not label]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images in {root} have no label before an underscore, such as "
            f'{missing[0]}: labels="prefix" needs file names such as label_name.png'
        )
    return labels


def prefix(name: str) -> str:
    """Return the name of a file up to its first underscore; "" without one."""
    label, underscore, _ = name.rpartition("/")[2].partition("_")
    return nfc(label) if underscore else ""


def doubts(names: Sequence[str], labels: Sequence[str], source: Literal["folders", "prefix"]) -> list[str]:
    """Return the reasons, one line each, why these labels may not be the intended ones."""
    classes = sorted(set(labels))
    shown = listed(classes, 3)
    notes = []
    if source == "folders":
        splits = [name for name in classes if SPLITS.fullmatch(name)]
        if len(splits) > 1 or len(splits) == len(classes):
            notes.append(f"sub-folders are classes, including {listed(splits, 3)}, which may be parts of a data set")
        elif all(NUMBERED.fullmatch(name) for name in classes):
            notes.append(f"the classes are the sub-folders {shown}, which are named as parts of a data set")
        notes += _other_prefixes(names, labels)
    elif folders := sorted({name.split("/")[0] for name in names if "/" in name}):
        notes.append(
            f"the sub-folders ({listed(folders, 3)}) are named as parts of a data set: "
            f"the classes are the beginnings of the file names ({shown})"
        )
    where = "sub-folders" if source == "folders" else "beginnings of the file names"
    if len(classes) == 1 and len(labels) > 1:
        notes.append(f"all {len(labels)} images are of one class, {classes[0]} (classes are the {where})")
    elif len(classes) == len(labels) > 1:
        notes.append(f"each of the {len(classes)} classes ({shown}) has one image (classes are the {where})")
    return notes


def _other_prefixes(names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Return a note if file names begin with a label, as in guided-diffusion, that is not the name of the folder."""
    prefixes = [prefix(name) for name in names]
    classes = set(folders)
    wrong = [i for i, label in enumerate(prefixes) if label in classes and label != folders[i]]
    if wrong:
        return [f"{len(wrong)} images have the name of another class before the underscore, such as {names[wrong[0]]}"]
    if all(prefixes) and _repeated(prefixes) and prefixes != list(folders):
        own = listed(sorted(set(prefixes)), 3)
        return [
            f"the classes are the sub-folders ({listed(sorted(classes), 3)}), though the file names begin otherwise "
            f"({own})"
        ]
    return []


def labelled_by_prefix(names: Sequence[str]) -> bool:
    """Whether all file names begin with possible labels, as in guided-diffusion."""
    prefixes = [prefix(name) for name in names]
    return all(prefixes) and _repeated(prefixes)


def _repeated(prefixes: Sequence[str]) -> bool:
    """Whether these can be labels: at least two, with two or more images each on average, unlike serial numbers."""
    return 1 < len(set(prefixes)) <= len(prefixes) / 2


def number_labels(
    names: Sequence[str], order: tuple[str, ...] | None
) -> tuple[Int64[np.ndarray, " n"], tuple[str, ...]]:
    """Return the number of each name, and all names in the order of their numbers: `order`, or sorted by default.

    Raises DataError if a name is not in `order`, or is not valid Unicode.
    """
    names = [nfc(name) for name in names]
    distinct = sorted(set(names))
    broken = next((name for name in distinct if any("\ud800" <= letter <= "\udfff" for letter in name)), None)
    if broken is not None:
        raise DataError(f"the label {broken!a} is not valid Unicode: rename its folder or files")
    order = tuple(distinct) if order is None else order
    numbers = {name: number for number, name in enumerate(order)}
    unknown = [name for name in distinct if name not in numbers]
    if unknown:
        raise DataError(f"images have labels that are not in label_names ({listed(order)}): {listed(unknown)}")
    return np.array([numbers[name] for name in names], np.int64), order


def names_for(numbers: Int64[np.ndarray, " n"], names: tuple[str, ...] | None, source: object) -> tuple[str, ...]:
    """Return the names of all labels, the numbers themselves by default. Raises DataError if there are too few."""
    classes = int(numbers.max()) + 1
    if names is None and classes > MAX_LABELS:
        raise DataError(f"{source}: labels must be less than {MAX_LABELS:,}, got {classes - 1}")
    if names is None:
        return tuple(map(str, range(classes)))
    if classes > len(names):
        raise DataError(f"{source} has a label {classes - 1}, but there are {len(names)} label_names: {listed(names)}")
    return names


def checked_names(label_names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return names of labels in Unicode's NFC. Raises DataError if they are not distinct names."""
    if label_names is None:
        return None
    if isinstance(label_names, str) or not all(isinstance(name, str) for name in label_names):
        raise DataError(f"label_names must be a list of distinct names, got {label_names!r}")
    names = tuple(map(nfc, label_names))
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise DataError(f"label_names must be distinct: {listed(twice)} occurs twice")
    return names


def description(files: Sequence[str], labels: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """Return the content of dataset.json, from which `open` can read the labels of these files.

    labels, names: number and name of each file's label, -1 and any name for none
    """
    if all(label < 0 for label in labels):
        return {"labels": None}
    content: dict[str, Any] = {"labels": [[file, label] for file, label in zip(files, labels, strict=True)]}
    named = {str(label): name for label, name in sorted(zip(labels, names, strict=True)) if label >= 0}
    return content if all(number == name for number, name in named.items()) else content | {"label_names": named}


def _stored(
    listing: Listing, labels: Sequence[int | str | None], files: Sequence[ImagePath], order: tuple[str, ...] | None
) -> FoundLabels:
    """Return labels that are stored as numbers or names. Raises DataError if one is missing or has no name."""
    root = listing.root
    if None in labels:
        missing = files[labels.index(None)]
        raise DataError(
            f"{list(labels).count(None)} of {len(files)} images in {root} have no label, such as {missing}: label "
            f"all or none, or pass labels='none'"
        )
    texts = [label for label in labels if isinstance(label, str)]
    if len(texts) == len(labels):
        return FoundLabels(*number_labels(texts, order))
    if texts:
        raise DataError(f"some labels in {root} are numbers, and some are names, such as {texts[0]}: use only one kind")
    values = [label for label in labels if isinstance(label, int)]
    if (wrong := min(values)) < 0 or (wrong := max(values)) >= MAX_LABELS:
        raise DataError(
            f"{root}: labels must be from 0 to {MAX_LABELS - 1:,}, got {wrong}: change it, or pass labels='none'"
        )
    numbers = np.array(values, np.int64)
    if listing.label_names:
        names = names_for(numbers, listing.label_names, root)
        return FoundLabels(*number_labels([names[number] for number in numbers], names if order is None else order))
    return FoundLabels(numbers, names_for(numbers, order, root), numbered=order is None)


def _metadata_labels(listing: Listing, files: Sequence[ImagePath]) -> list[int | str] | None:
    """Return the labels in metadata.csv or metadata.jsonl, or None if there are none. Raises DataError."""
    if (stated := listing.metadata) is not None:
        path = listing.root / f"{stated.top}{stated.name}"
        return metadata_labels(path, stated.content, _names_below(listing, files, stated.top))
    beside = [] if listing.members is not None else [listing.root / name for name in METADATA]
    found = next((path for path in beside if path.is_file()), None)
    return None if found is None else metadata_labels(found, found.read_bytes(), _names_below(listing, files))


def _labels_in_tars(listing: Listing, files: Sequence[ImagePath], json_only: bool) -> list[int | str | None] | None:
    """Return the labels in the dataset.json or metadata of each of several tars; None for an image without one.

    json_only: leave metadata out
    None if there are neither labels nor a dataset.json. Raises DataError if a file cannot be read or lacks an image.
    """
    labels: dict[ImagePath, int | str] = {}
    images_in: dict[Path, list[Member]] = {}
    for file in files:
        if isinstance(file, Member):
            images_in.setdefault(file.container.path, []).append(file)
    used = [it for it in listing.descriptions.items() if it[1].name == DESCRIPTION or not json_only]
    for tar, description in used:
        images, path = images_in.get(tar, []), tar / f"{description.top}{description.name}"
        names = _names_below(listing, images, description.top)
        if description.name != DESCRIPTION:
            labels.update(zip(images, metadata_labels(path, description.content, names) or ()))
        elif images and (found := _described(path, description.content, names, None)) is not None:
            numbers = found.numbers.tolist()
            labels.update(zip(images, numbers if found.numbered else [found.names[number] for number in numbers]))
    if not labels and all(description.name != DESCRIPTION for _, description in used):
        return None
    return [labels.get(file) for file in files]


def _has_description(listing: Listing) -> bool:
    return listing.description is not None or (listing.members is None and (listing.root / DESCRIPTION).is_file())


def _description(listing: Listing) -> bytes:
    """Return the content of dataset.json. Raises DataError if there is none."""
    path = listing.root / DESCRIPTION
    if listing.description is not None:
        return listing.description.content
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f'cannot read {path}: {error.strerror}; labels="json" needs this file') from None


def _described(path: Path, text: bytes, names: Sequence[str], order: tuple[str, ...] | None) -> FoundLabels | None:
    """Return the labels in dataset.json, or None if it has none.

    EDM and StyleGAN write {"labels": [["00000/img00000000.png", 3], ...]}, or null for no labels. The images of samples
    also have {"label_names": {"3": "Dress", ...}}: then the labels are these names, in the order of their numbers.
    """
    allowed = 'expected {"labels": [["folder/name.png", 3], ...]} or {"labels": null}, or another source of labels'
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error}): {allowed}") from None
    if not isinstance(content, dict) or not isinstance(content.get("labels", 0), list | None):
        raise DataError(f"{path} holds no labels: {allowed}")
    if content["labels"] is None:
        return None
    given = _entries(path, content["labels"])
    missing = [name for name in names if nfc(name) not in given]
    if missing:
        raise DataError(f"{path} has no label for {len(missing)} of {len(names)} images, such as {missing[0]}")
    if unlabelled := [name for name in names if given[nfc(name)] == UNLABELLED]:
        raise DataError(
            f"{path} states no label ({UNLABELLED}) for {len(unlabelled)} of {len(names)} images "
            f'({listed(unlabelled, 3)}): label all images, or pass labels="none" (--unlabelled)'
        )
    numbers = np.array([given[nfc(name)] for name in names], np.int64)
    named = content.get("label_names")
    if named is None:
        return FoundLabels(numbers, names_for(numbers, order, path), numbered=order is None)
    present = [int(number) for number in np.unique(numbers)]
    if not isinstance(named, dict) or not all(isinstance(named.get(str(number)), str) for number in present):
        raise DataError(f'{path} does not name all its labels: expected {{"label_names": {{"3": "name", ...}}}}')
    if order is None:
        order = checked_names([named[str(number)] for number in present])
    return FoundLabels(*number_labels([named[str(number)] for number in numbers.tolist()], order))


def _entries(path: Path, entries: list[Any]) -> dict[str, int]:
    """Return the label of each file, -1 for none. Raises DataError for an entry that is not a file with a number."""
    labels: dict[str, int] = {}
    for entry in entries:
        match entry:
            case [str(name), int(label)] if UNLABELLED <= label < 2**63 and not isinstance(label, bool):
                name = nfc(name.replace("\\", "/"))
                if labels.setdefault(name, label) != label:
                    raise DataError(f"{path} has {name} twice, with the labels {labels[name]} and {label}")
            case _:
                shown = json.dumps(entry, ensure_ascii=False)[:80]
                raise DataError(
                    f'{path}: entries must be ["folder/name.png", 3] with a label of at least 0, got {shown}'
                )
    return labels
