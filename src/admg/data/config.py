"""The options that say which images to open and how to fit them to a square."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from admg.config import check, setting
from admg.warn import warn

from .arrays import find_idx
from .dataset import Dataset
from .decoding import Frames
from .errors import DataError
from .labelling import LabelSource
from .layouts import open
from .scan import Verify
from .value_range import ValueRange

Background = Literal["black", "white"]
GREY_LEVELS: dict[Background, int] = {"black": 0, "white": 255}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training images.

    data: folder with a sub-folder per class, with files named label_name.png, or with dataset.json; a zip or tar of
        such a folder; tars of WebDataset (a folder, or "shards-{000..099}.tar"); Parquet or Arrow files, or hf:NAME for
        a data set of the Hugging Face Hub; IDX files, or an .npz file
    image_size: side of the training images in pixels
    fit: fitting of other sizes: resize scales the shorter side to the image size, pad adds a border
    crop: position of the square that is cut out or, with --fit pad, of the image within its border
    flip: mirror a random half of the images left to right
    image_channels: channels of the images, 1 or 3; 2 and 4 keep the transparency of files as a channel
    value_range: values of black and white in all images
    frames: frames of animations and pages of TIFF files: first uses the first of each file, all uses every one
    background: colour behind transparent pixels and around padded images
    split: part of the data to read, if there are both a train and a test part
    labels: labels of a folder: folders, prefix (of file names, up to the first underscore), json (dataset.json of EDM),
        none, or auto, which recognises them
    strict: stop at the first file that is not an image instead of skipping it
    verify: what is read of a folder's images before training: full decodes them, headers reads their headers, none
        reads 64 headers
    """

    data: str = setting(metavar="PATH")
    image_size: int = setting(64, min=1)
    fit: Literal["resize", "pad"] = "resize"
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    image_channels: int | None = setting(None, min=1, default_text="1 if all images are grey, else 3; those of an .npz")
    value_range: tuple[float, ...] = setting(
        (), metavar="LOW,HIGH", dashes=True, default_text="from the type of the values, if unambiguous"
    )
    frames: Frames = "first"
    background: Background | None = setting(None, default_text="white behind; black around if none is transparent")
    split: Literal["train", "test"] = "train"
    labels: LabelSource = "auto"
    strict: bool = False
    verify: Verify = "headers"

    def __post_init__(self) -> None:
        check(self)
        check_value_range(self.value_range)

    def open(self) -> Dataset:
        """Open the images. Raises DataError if they cannot be used."""
        return open(self.data, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """The options of `admg.data.open` for these images."""
        return {
            "image_size": self.image_size,
            "fit": self.fit,
            "crop": self.crop,
            "flip": self.flip,
            "channels": self.image_channels,
            "value_range": as_range(self.value_range),
            "frames": self.frames,
            "background": None if self.background is None else GREY_LEVELS[self.background],
            "split": self.split,
            "labels": self.labels,
            "strict": self.strict,
            "verify": self.verify,
        }

    def held_out(self, path: str | None = None) -> DataConfig | None:
        """Return the options of images for validation, fitted in the same way but without augmentation.

        path: the images; None: the test split of a folder of IDX files, or None if there is none
        """
        plain = replace(self, crop="center", flip=False)
        folder = Path(self.data).expanduser()
        if path:
            given = Path(path).expanduser().resolve()
            if given == folder.resolve():
                warn(f"{path} has the training images: validation metrics are too optimistic")
            elif (folder / "train" if (folder / "train").is_dir() else folder).resolve() in given.parents:
                warn(f"{path} lies in {self.data}: if training uses its images, validation metrics are too optimistic")
            return replace(plain, data=path)
        if self.split == "test" or not folder.is_dir():
            return None
        with suppress(DataError):  # there is no test split beside the training split
            return replace(plain, split="test") if find_idx(folder, "test") else None
        return None


def check_value_range(value_range: tuple[float, ...]) -> None:
    """Raise ValueError unless this is empty, or two numbers in increasing order."""
    if value_range and not (len(value_range) == 2 and value_range[0] < value_range[1]):
        raise ValueError(f"value_range must be two numbers LOW,HIGH in increasing order, got {value_range}")


def as_range(value_range: tuple[float, ...]) -> ValueRange | None:
    """Return the values of black and white as `open` takes them: None if there are none."""
    return (value_range[0], value_range[1]) if value_range else None
