"""Differentiable preprocessing of images for networks of other libraries: resize, crop, normalise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from admg.diffusion.gaussian import Images

Interpolation = Literal["nearest", "bilinear", "bicubic"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIL: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's filters by the numbers used in configurations of transformers. Other filters become bicubic."""


@dataclass(frozen=True)
class Preprocessing:
    """Images in [-1, 1] -> the input of a network: colour, resized, cropped from the centre, normalised.

    The resize has antialiasing, as Pillow's does, which the libraries use. Pillow rounds to whole pixel values and
    clips the overshoot of bicubic interpolation. This one does neither, so that gradients pass. Before normalisation,
    the two differ by less than 1.2 of 255 pixel values, except where Pillow clips.

    resize: height and width to resize to, or the length to resize the shorter side to; None for no resize
    crop: height and width of the crop, or None
    mean, std: mean and standard deviation of the normalisation, per channel, for images in [0, 1]
    interpolation: nearest, bilinear or bicubic
    reverse_channels: whether the network expects blue, green and red
    round_crop: whether the corner of the crop is rounded to the nearest pixel, as torchvision does, rather than down

    Raises ValueError if a number is out of range.
    """

    resize: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bicubic"
    reverse_channels: bool = False
    round_crop: bool = False

    def __post_init__(self) -> None:
        sizes = [*_sides(self.resize), *_sides(self.crop)]
        if any(side < 1 for side in sizes):
            raise ValueError(f"sizes must be at least 1 pixel, got {sizes}")
        if len(self.mean) != len(self.std) or not all(number > 0 for number in self.std):
            raise ValueError(f"mean and std must have one number per channel, std above 0, got {self.mean}, {self.std}")
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(f"interpolation must be {' or '.join(get_args(Interpolation))}, got {self.interpolation}")

    def __call__(self, images: Images) -> Float[Tensor, "n c2 h2 w2"]:
        """Return the input of the network. Grey images become three equal channels.

        Raises ValueError if the number of channels is wrong.
        """
        channels = len(self.mean)
        if images.shape[1] not in (1, channels):
            raise ValueError(f"the network expects images of {channels} channels, got {images.shape[1]}")
        x = (images.expand(-1, channels, -1, -1) + 1) / 2
        height, width = self.target(x.shape[2], x.shape[3])
        if (height, width) != x.shape[2:]:
            x = self.resized(x, (height, width))
        if self.crop is not None:
            x = centre(x, self.crop, self.round_crop)
        mean, std = (x.new_tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
        prepared = (x - mean) / std
        return prepared.flip(1) if self.reverse_channels else prepared

    def resized(self, x: Images, size: tuple[int, int]) -> Images:
        """Return images of this height and width."""
        if self.interpolation == "nearest":
            return F.interpolate(x, size, mode="nearest-exact")
        return F.interpolate(x, size, mode=self.interpolation, antialias=True, align_corners=False)

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
        """Return the counterpart of timm's evaluation transform, from `timm.data.resolve_model_data_config(model)`.

        Raises ValueError for a crop mode without a counterpart.
        """
        _, height, width = config["input_size"]
        share, mode = config.get("crop_pct") or 0.875, config.get("crop_mode") or "center"
        scaled = tuple(int(side / share) for side in (height, width))
        if mode not in ("center", "squash"):
            raise ValueError(f"crop_mode of timm must be center or squash, got {mode!r}")
        resize = scaled[0] if mode == "center" and height == width else (scaled[0], scaled[1])
        return cls(resize, (height, width), _numbers(config["mean"]), _numbers(config["std"]),
                   _interpolation(config.get("interpolation", "bicubic")), round_crop=True)  # fmt: skip

    @classmethod
    def of_torchvision(cls, preset: Any) -> Preprocessing:
        """Return the counterpart of a preset of torchvision, from `weights.transforms()`."""
        resize, crop = preset.resize_size, preset.crop_size[0]
        side = int(resize[0]) if len(resize) == 1 else (int(resize[0]), int(resize[1]))
        name = getattr(preset.interpolation, "value", preset.interpolation)
        return cls(side, (int(crop), int(crop)), _numbers(preset.mean), _numbers(preset.std), _interpolation(name),
                   round_crop=True)  # fmt: skip

    @classmethod
    def of_transformers(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Return the counterpart of an image processor of transformers, from its `to_dict()`.

        Raises ValueError if it has none, or if entries are missing, whose defaults depend on the class.
        """
        kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "image processor")
        for name, wanted in {"do_rescale": True, "do_pad": False}.items():
            if bool(config.get(name, wanted)) != wanted:
                raise ValueError(f"{kind} with {name}={config[name]} is not supported")
        if kind.startswith("Perceiver"):
            raise ValueError(f"{kind} is not supported, since its crop depends on the size of the image")
        check_complete(config, kind)
        resize, crop = _geometry(config, kind)
        mean, std = _numbers(config.get("image_mean") or (0, 0, 0)), _numbers(config.get("image_std") or (1, 1, 1))
        if not config.get("do_normalize", not kind.startswith("MobileViT")):
            mean, std = (0.0,) * len(mean), (1.0,) * len(std)
        white = 255 * float(config.get("rescale_factor") or 1 / 255)  # the value of white before the normalisation
        black = -1.0 if config.get("rescale_offset") else 0.0
        if config.get("include_top"):  # EfficientNet divides by image_std once more
            std = tuple(a * b for a, b in zip(std, _numbers(config["image_std"])))
        mean, std = tuple((number - black) / white for number in mean), tuple(number / white for number in std)
        flip = bool(config.get("do_flip_channel_order"))
        return cls(resize, crop, mean, std, _interpolation(config.get("resample", 3)), flip)


def check_complete(config: Mapping[str, Any], kind: str) -> None:
    """Raise ValueError if an entry is missing that an image processor of transformers needs."""
    needed = ["do_resize"] + ["size", "resample"] * bool(config.get("do_resize"))
    needed += ["crop_size"] * (bool(config.get("do_center_crop")) and config.get("crop_pct") is None)
    if not kind.startswith("MobileViT"):  # which does not normalise
        needed += ["do_normalize"] + ["image_mean", "image_std"] * bool(config.get("do_normalize"))
    if missing := [name for name in needed if config.get(name) is None]:
        raise ValueError(
            f"{kind} has no {' and no '.join(missing)}, whose defaults depend on its class: pass the image processor "
            "itself, or all of its entries (to_dict())"
        )


def centre(x: Tensor, size: tuple[int, int], rounded: bool = False) -> Tensor:
    """Return the centre of images; smaller images are padded with zeros, as in other libraries.

    rounded: if an odd number of pixels is cut off, round half of it to the nearest even number rather than down
    """
    (height, width), (rows, columns) = x.shape[2:], size
    missing = max(rows - height, 0), max(columns - width, 0)
    if any(missing):
        x = F.pad(x, (missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2))
        height, width = x.shape[2:]
    cut = height - rows, width - columns
    top, left = (round(pixels / 2) if rounded else pixels // 2 for pixels in cut)
    return x[:, :, top : top + rows, left : left + columns]


def _sides(size: int | tuple[int, int] | None) -> Sequence[int]:
    return () if size is None else (size,) if isinstance(size, int) else size


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values))


def _interpolation(name: Any) -> Interpolation:
    text = PIL.get(name, "bicubic") if isinstance(name, int) else str(getattr(name, "value", name)).lower()
    return next((known for known in get_args(Interpolation) if known in text), "bicubic")


def _size(size: Any) -> int | tuple[int, int] | None:
    """Return a size of transformers: a number, {"shortest_edge": n} or {"height": h, "width": w}."""
    if size is None or isinstance(size, int):
        return size
    known = {name: value for name, value in dict(size).items() if value is not None}
    if set(known) == {"shortest_edge"}:
        return int(known["shortest_edge"])
    if set(known) == {"height", "width"}:
        return int(known["height"]), int(known["width"])
    raise ValueError(f"the size of an image processor must have shortest_edge, or height and width, got {dict(size)}")


def _geometry(config: Mapping[str, Any], kind: str) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """Return the sizes of the resize and of the crop of an image processor of transformers."""
    resize = _size(config.get("size")) if config.get("do_resize", True) else None
    crop = _size(config.get("crop_size")) if config.get("do_center_crop", False) else None
    crop = (crop, crop) if isinstance(crop, int) else crop
    share = config.get("crop_pct")
    if isinstance(resize, int) and kind.startswith("Levit"):
        resize = int(256 / 224 * resize)
    elif share is not None and resize is not None:
        if not isinstance(resize, int):
            raise ValueError(f"{kind} with crop_pct is supported for a size of shortest_edge only, got {resize}")
        if crop is not None:  # PoolFormer
            resize = int(resize / share)
        elif resize < 384:  # ConvNeXt, which distorts larger images instead
            resize, crop = int(resize / share), (resize, resize)
        else:
            resize = (resize, resize)
    return resize, crop
