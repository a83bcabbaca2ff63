"""Starts of sampling other than the seed's noise, for jobs: images to edit, and given x_T."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from admg.checkpoints.model import Model
from admg.data import Dataset
from admg.data import open as open_dataset
from admg.data.dataset import Fit
from admg.data.decoding import choose_decoding, note_frames
from admg.data.folder import read_kind
from admg.data.layouts import in_channels
from admg.data.sources import COLLECTIONS, is_image
from admg.data.transforms import check_pad
from admg.data.value_range import ValueRange, check_array_8_bits
from admg.diffusion.gaussian import Images
from admg.warn import warn

from .edit import start_from_inversion, start_from_noised
from .recipe import Start


class Starts(Protocol):
    """Where the sampling of each image of a run begins. strength: see edit(); record: everything that determines it."""

    @property
    def strength(self) -> float: ...

    @property
    def record(self) -> dict[str, Any]: ...

    def start(self, images: range) -> Start: ...


@dataclass(frozen=True, eq=False)
class FromImages:
    """Image i begins at images[which[i]], with noise added, or at its DDIM inversion.

    images: (M, C, H, W) in [-1, 1]
    which: for each image of the run, the index of the image at which it begins
    strength: see edit()
    invert: whether images are inverted
    from_y: (M,) labels that the network is conditioned on during inversion, or None for no labels
    """

    images: Images
    which: Sequence[int]
    strength: float
    invert: bool = False
    from_y: Tensor | None = None

    @property
    def record(self) -> dict[str, Any]:
        return {
            "images": checksum(self.images),
            "strength": self.strength,
            "invert": self.invert,
            "from_label": None if self.from_y is None else self.from_y.tolist(),
        }

    def start(self, images: range) -> Start:
        chosen = [self.which[i] for i in images]
        if not self.invert:
            return start_from_noised(self.images[chosen])
        return start_from_inversion(self.images[chosen], None if self.from_y is None else self.from_y[chosen])


@dataclass(frozen=True, eq=False)
class FromNoise:
    """Image i begins at x_T[i]. record: everything that determines x_T"""

    x_T: Images
    record: dict[str, Any]
    strength: float = 1.0

    def start(self, images: range) -> Start:
        chosen = self.x_T[images.start : images.stop]
        return lambda model, noise, _: chosen.to(noise)


@dataclass(frozen=True)
class TrainedReading:
    """How the training images of a model were read, if known.

    wide_range: values of black and white in images of more than 8 bits
    background: grey level behind transparent pixels and around padded images
    byte_range: values of black and white that were stated for images of 8 bits
    """

    wide_range: tuple[float, float] | None = None
    background: int | None = None
    byte_range: tuple[float, float] | None = None

    @classmethod
    def from_model(cls, model: Model) -> TrainedReading:
        """Return what was recorded during training."""
        ranges = (_pair(model.training.get(name)) for name in ("value_range", "byte_range"))
        return cls(next(ranges), model.training.get("background"), next(ranges))

    def options(self, value_range: ValueRange | None = None) -> dict[str, Any]:
        """Return the options of `admg.data.open`.

        Raises ValueError without a value range if one was stated for the training images of 8 bits, since the images to
        be read may be of that kind, or usual ones.
        """
        if value_range is None and self.byte_range is not None:
            low, high = self.byte_range
            raise ValueError(
                f"the model was trained on 8-bit images in which black and white are {low:g} and {high:g}: pass "
                f"value_range (--value-range {low:g},{high:g}; or 0,255 for other images)"
            )
        return {"value_range": value_range, "wide_range": self.wide_range, "background": self.background}


def _pair(found: Any) -> tuple[float, float] | None:
    return (float(found[0]), float(found[1])) if isinstance(found, list | tuple) and len(found) == 2 else None


def load_images(
    sources: Sequence[str | Path], model: Model, fit: Fit | None = None, value_range: ValueRange | None = None
) -> tuple[Images, list[str]]:
    """Load images at the size of a model. Return (M, C, S, S) in [-1, 1] and their names.

    sources: pictures, folders or archives of pictures, .npz, .npy or IDX files
    fit: "resize" or "pad" images of another size; None: as in the training of the model, if known
    value_range: values of black and white; None: as in training, if known, or as `admg.data.open` finds them
    Raises ValueError for files that hold no images or other channels, and with "pad" for images larger than the
    model's. Grey and colour images are converted for a model of the other kind, with a warning.
    """
    fit = fit or trained_fit(model)
    images, names = [], []
    for source in sources:
        data = _open(Path(source).expanduser(), model, fit, value_range)
        images.append(data.batch(range(len(data)))[0])
        if value_range is None:
            check_array_8_bits(((images[-1] + 1) * 127.5).round().numpy(), f"the pixels of {source}")
        paths = [] if hasattr(data.images, "dtype") else [Path(str(path)).stem for path in data.images]
        names += paths or [f"{Path(source).stem} {i}" for i in range(len(data))]
    return torch.cat(images), names


def trained_fit(model: Model) -> Fit:
    """Return the fit in the record or the command of the training, or else "resize", as for published models."""
    if (recorded := model.training.get("fit")) in ("pad", "resize"):
        return "pad" if recorded == "pad" else "resize"
    named = re.search(r"--fit[ =](pad|resize)\b", str(model.training.get("command", "")))
    return "pad" if named and named[1] == "pad" else "resize"


def checksum(images: Images) -> str:
    """Return a checksum of the values of images."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()[:12]


def open_in_channels(path: Path | str, size: int, channels: int, **options: Any) -> Dataset:
    """Open images with the channels of a model. Grey and colour are converted into each other, with a warning.

    options: those of `admg.data.open`. Raises DataError if the images have other channels than grey and colour.
    """
    data = open_dataset(path, size, channels=None if channels in (1, 3) else channels, **options)
    if data.channels == channels:
        return data
    note_channels(path, data.channels, channels)
    return in_channels(data, channels)


def note_channels(path: Path | str, found: int, channels: int) -> None:
    """Warn that colour images are converted to grey for a model of grey images, or the reverse."""
    if found == 3 and channels == 1:
        warn(f"{path} is in colour, but the model's images are grey: converting it to grey")
    elif found == 1 and channels == 3:
        warn(f"{path} is grey, but the model's images are in colour: repeating its channel three times")


def _open(path: Path, model: Model, fit: Fit, value_range: ValueRange | None) -> Dataset:
    channels, size, _ = model.shape
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected an image or a folder of images")
    reading = TrainedReading.from_model(model).options(value_range)
    is_idx = "idx" in path.name and not is_image(path.name)
    if not path.is_file() or path.suffix.lower() in COLLECTIONS or is_idx:
        options: dict[str, Any] = {"fit": fit, "labels": "none", "split": "test"}
        return open_in_channels(path, size, channels, **options, **reading)
    kind, shape = read_kind(path)
    if fit == "pad":
        check_pad(*shape, size, path)
    note_channels(path, kind.channels, channels)
    note_frames([(path, kind)], path, None if channels == 3 else channels)
    decoding = choose_decoding([(path, kind)], path, padded=fit == "pad", **reading)
    return Dataset((path,), size, channels, fit=fit, decoding=decoding)
