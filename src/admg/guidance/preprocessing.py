"""How images are prepared for networks of other libraries, differentiably: resized, cropped, normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images

Interpolation = Literal["bilinear", "bicubic"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIL = {2: "bilinear", 3: "bicubic"}
"""Filters of Pillow by their numbers, which configurations of transformers have. Others become bicubic."""


@dataclass(frozen=True)
class Preprocessing:
    """Images in [-1, 1] -> the input of a network: colour, resized, cropped from the centre, normalised.

    The resize has antialiasing, as that of Pillow, which libraries use. Theirs rounds to whole pixel values and cuts
    off what bicubic interpolation overshoots; this one does neither, so that gradients pass. Before the normalisation
    the difference is below 1.2 of 255 pixel values, except where theirs cuts off.

    resize: height and width to resize to, or the length to resize the shorter side to; None for no resize
    crop: height and width of the crop, or None
    mean, std: of the normalisation, per channel, for images in [0, 1]
    interpolation: bilinear or bicubic

    Raises ValueError if a number is out of range.
    """

    resize: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        sizes = [*_sides(self.resize), *_sides(self.crop)]
        if any(side < 1 for side in sizes):
            raise ValueError(f"sizes must be at least 1 pixel, got {sizes}")
        if len(self.mean) != len(self.std) or not all(number > 0 for number in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} must have a number per channel, std above 0")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(f"unknown interpolation {self.interpolation!r}: {' or '.join(get_args(Interpolation))}")

    def __call__(self, images: Images) -> Float[Tensor, "n c2 h2 w2"]:
        """Return the input of the network. Grey images become three equal channels.

        Raises ValueError if images have another number of channels than the network takes.
        """
        channels = len(self.mean)
        if images.shape[1] not in (1, channels):
            raise ValueError(f"the network takes images of {channels} channels, not of {images.shape[1]}")
        x = (images.expand(-1, channels, -1, -1) + 1) / 2
        height, width = self.target(x.shape[2], x.shape[3])
        if (height, width) != x.shape[2:]:
            x = F.interpolate(x, (height, width), mode=self.interpolation, antialias=True, align_corners=False)
        if self.crop is not None:
            x = centre(x, self.crop)
        mean, std = (x.new_tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
        return (x - mean) / std

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Return the size that images of this size are resized to."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short, side = min(height, width), self.resize
        return (side, int(side * width / short)) if height == short else (int(side * height / short), side)

    # -- as other libraries describe it -------------------------------------------------------------------------

    @classmethod
    def of_timm(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Return what timm's evaluation transform does, from `timm.data.resolve_model_data_config(model)`.

        Raises ValueError for a crop mode without a counterpart.
        """
        _, height, width = config["input_size"]
        share, mode = config.get("crop_pct") or 0.875, config.get("crop_mode") or "center"
        scaled = tuple(int(side / share) for side in (height, width))
        if mode not in ("center", "squash"):
            raise ValueError(f"crop_mode {mode!r} of timm has no counterpart: center or squash")
        resize = scaled[0] if mode == "center" and height == width else (scaled[0], scaled[1])
        return cls(resize, (height, width), _numbers(config["mean"]), _numbers(config["std"]),
                   _interpolation(config.get("interpolation", "bicubic")))  # fmt: skip

    @classmethod
    def of_torchvision(cls, preset: Any) -> Preprocessing:
        """Return what a preset of torchvision does, from `weights.transforms()`."""
        resize, crop = preset.resize_size, preset.crop_size[0]
        side = int(resize[0]) if len(resize) == 1 else (int(resize[0]), int(resize[1]))
        name = getattr(preset.interpolation, "value", preset.interpolation)
        return cls(side, (int(crop), int(crop)), _numbers(preset.mean), _numbers(preset.std), _interpolation(name))

    @classmethod
    def of_transformers(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Return what an image processor of transformers does, from its preprocessor_config.json.

        Raises ValueError for sizes in a form without a counterpart.
        """
        resize = _size(config.get("size")) if config.get("do_resize", True) else None
        crop = _size(config.get("crop_size")) if config.get("do_center_crop", False) else None
        mean, std = _numbers(config.get("image_mean") or (0, 0, 0)), _numbers(config.get("image_std") or (1, 1, 1))
        if not config.get("do_normalize", True):
            mean, std = (0.0,) * len(mean), (1.0,) * len(std)
        if not config.get("do_rescale", True):
            raise ValueError("an image processor without do_rescale, for values up to 255, has no counterpart")
        crop_size = (crop, crop) if isinstance(crop, int) else crop
        return cls(resize, crop_size, mean, std, _interpolation(config.get("resample", 3)))


def centre(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the centre of images; where they are smaller, they get a margin of zeros, as in other libraries."""
    (height, width), (rows, columns) = x.shape[2:], size
    missing = max(rows - height, 0), max(columns - width, 0)
    if any(missing):
        x = F.pad(x, (missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2))
        height, width = x.shape[2:]
    top, left = (height - rows) // 2, (width - columns) // 2
    return x[:, :, top : top + rows, left : left + columns]


def _sides(size: int | tuple[int, int] | None) -> Sequence[int]:
    return () if size is None else (size,) if isinstance(size, int) else size


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values))


def _interpolation(name: Any) -> Interpolation:
    text = PIL.get(name, "bicubic") if isinstance(name, int) else str(getattr(name, "value", name)).lower()
    return "bilinear" if "bilinear" in text else "bicubic"


def _size(size: Any) -> int | tuple[int, int] | None:
    """Return a size of transformers: a number, {"shortest_edge": n} or {"height": h, "width": w}."""
    if size is None or isinstance(size, int):
        return size
    known = {name: value for name, value in dict(size).items() if value is not None}
    if set(known) == {"shortest_edge"}:
        return int(known["shortest_edge"])
    if set(known) == {"height", "width"}:
        return int(known["height"]), int(known["width"])
    raise ValueError(
        f"the size {dict(size)} of an image processor has no counterpart: shortest_edge, or height and width"
    )
