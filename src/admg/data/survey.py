"""`survey`: the contents of a data set: kind, image sizes and modes, classes, and files that are not images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from .arrays import Split, open_arrays_file, open_idx
from .classes import class_counts
from .dataset import Dataset
from .labelling import LabelSource, checked_source, find_labels, names_for
from .layouts import FASHION_MNIST_LABELS, is_fashion_mnist
from .listing import Listing
from .members import ImagePath
from .scan import Verify, open_images
from .sources import find_source


@dataclass(frozen=True)
class Survey:
    """The contents of a data set.

    kind: kind of the source, in words
    count: number of images
    sizes: number of images of each width and height
    modes: number of images of each kind of pixels, in words
    classes: name and number of images of each class, in the order of their numbers; {} without labels
    numbered: whether the classes are numbers
    skipped: files that are not images, each with the reason
    frames: number of frames and pages of files that have several
    """

    kind: str
    count: int
    sizes: Counter[tuple[int, int]]
    modes: Counter[str]
    classes: dict[str, int]
    numbered: bool
    skipped: list[tuple[ImagePath, str]]
    frames: int = 0


def survey(
    path: str | Path,
    *,
    labels: LabelSource | bool = "auto",
    split: Split = "train",
    verify: Verify = "headers",
    progress: bool = True,
) -> Survey:
    """Return the contents of a data set.

    verify: "headers" reads headers; "full" decodes every image as well, which finds damaged images
    See `open` for the arguments and errors.
    """
    source = find_source(path, split, classes=checked_source(labels) != "none", progress=progress)
    if not isinstance(source, Listing):
        return _of_arrays(source, labels)
    images, skipped = open_images(source, verify=verify, progress=progress)
    labelling = find_labels(source, [image.path for image in images], labels)
    dataset = Dataset(images=[image.path for image in images], image_size=1, channels=1)
    if labelling is not None:
        dataset = replace(dataset, labels=labelling.numbers, label_names=labelling.names, numbered=labelling.numbered)
    return Survey(
        source.kind,
        len(images),
        Counter(image.size for image in images),
        Counter(_mode(image.kind.mode, image.kind.deep, image.kind.transparent) for image in images),
        _classes(dataset),
        dataset.numbered,
        skipped,
        sum(image.kind.frames for image in images if image.kind.frames > 1),
    )


def _of_arrays(path: Path, labels: LabelSource | bool) -> Survey:
    numpy, labelled = path.suffix.lower() in (".npz", ".npy"), checked_source(labels) != "none"
    images, numbers = open_arrays_file(path, labelled) if numpy else open_idx(path, labelled)
    count, height, width, channels = map(int, images.shape)
    dataset = Dataset(images, 1, channels)
    if numbers is not None:
        names = FASHION_MNIST_LABELS if is_fashion_mnist(path) else None
        dataset = replace(dataset, labels=numbers, label_names=names_for(numbers, names, path), numbered=names is None)
    mode = f"{channels} channel{'s' if channels > 1 else ''}, {images.dtype}, {images.min():.6g} to {images.max():.6g}"
    kind = "arrays of NumPy" if numpy else "IDX file"
    sizes = Counter({(width, height): count})
    return Survey(kind, count, sizes, Counter({mode: count}), _classes(dataset), dataset.numbered, [])


def _classes(dataset: Dataset) -> dict[str, int]:
    counts = class_counts(dataset)
    return {} if counts is None else dict(zip(dataset.label_names, counts.tolist(), strict=True))


def _mode(mode: str, deep: bool, transparent: bool) -> str:
    notes = [note for note, holds in (("16 bits", deep), ("transparent", transparent)) if holds]
    return f"{mode} ({', '.join(notes)})" if notes else mode
