"""The options that say which images to open and how to fit them to a square."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from admg.config import check, setting

from .arrays import find_idx
from .dataset import Dataset
from .layouts import open


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training images.

    data: Folder with a sub-folder per class, folder of files named label_name.png, folder of IDX files, or .npz file
    image_size: Side of the training images in pixels
    fit: Fitting of other sizes: resize scales the shorter side to the image size, pad adds a black border
    crop: Position of the square that is cut out or, with --fit pad, of the image on its border
    flip: Mirror a random half of the images left to right
    split: Part of the data, where it has both
    strict: Stop at the first file that is not an image instead of skipping it
    """

    data: str = setting(metavar="PATH")
    image_size: int = setting(64, min=1)
    fit: Literal["resize", "pad"] = "resize"
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    split: Literal["train", "test"] = "train"
    strict: bool = False

    def __post_init__(self) -> None:
        check(self)

    def open(self) -> Dataset:
        """Open the images. Raises DataError if they cannot be used."""
        return open(
            self.data,
            self.image_size,
            fit=self.fit,
            crop=self.crop,
            flip=self.flip,
            split=self.split,
            strict=self.strict,
        )

    def open_held_out(self, path: str | None = None) -> Dataset | None:
        """Open images for validation, fitted in the same way but without augmentation.

        path: the images; None: the test split of a folder of IDX files, or None if there is none
        """
        plain = replace(self, crop="center", flip=False)
        if path:
            return replace(plain, data=path).open()
        folder = Path(self.data).expanduser()
        return replace(plain, split="test").open() if folder.is_dir() and find_idx(folder, "test") else None
