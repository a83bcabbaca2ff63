"""Image files and Pillow images -> 8-bit pixels: modes, depths, transparency, frames; one rule per data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Shaped
from PIL import Image, ImageOps, ImageSequence

from admg.warn import warn

from .errors import DataError
from .members import ImagePath, check_pixels, open_image
from .spread import spread_indices
from .transforms import Pixels
from .value_range import (
    ValueRange,
    check_8_bits,
    check_extremes,
    check_range,
    clear_range,
    extremes,
    infer_range,
    to_8_bits,
)

T = TypeVar("T")
Frames = Literal["first", "all"]

WIDE_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
"""Modes of one channel with more than 8 bits."""
GREY_MODES = frozenset({"1", "L", "LA"}) | WIDE_MODES
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's mode of images, by their number of channels."""
ANIMATED = frozenset({"GIF", "PNG", "TIFF", "WEBP", "AVIF"})
"""Formats whose further frames are pictures of their own, unlike the previews in a camera's JPEG."""
PHOTOMETRIC, SAMPLE_FORMAT, SIGNED = 262, 339, 2  # tags of TIFF, and a value
PROBED = 64
"""Number of files that are read to learn the range of their values."""


@dataclass(frozen=True)
class Kind:
    """The pixel format of an image file, from its header.

    mode: Pillow's mode
    deep: whether the file has 16-bit colours; Pillow reads their upper 8 bits
    transparent: whether the file has a channel or colour of transparency
    frames: number of frames of an animation, or of pages
    paged: whether the frames are the grey pages of a TIFF file, which can be the channels of one image
    """

    mode: str
    deep: bool = False
    transparent: bool = False
    frames: int = 1
    paged: bool = False

    @classmethod
    def from_image(cls, image: Image.Image) -> Kind:
        """Return the kind of an opened file without reading its pixels. Raises DataError if Pillow would misread it."""
        tags: Any = getattr(image, "tag_v2", {})  # of a TIFF file
        if tags.get(PHOTOMETRIC) == 0 and image.mode in WIDE_MODES:
            raise DataError("it stores white as 0 (WhiteIsZero) in more than 8 bits: invert it first")
        if SIGNED in np.atleast_1d(tags.get(SAMPLE_FORMAT, 1)) and image.mode not in WIDE_MODES:
            raise DataError("it has signed 8-bit values: convert it to unsigned 8 bits, or to 16")
        if "transparency" in image.info and (_deep(image) or _raw_mode(image) in ("L;2", "L;4")):
            raise DataError("it has a transparent colour (tRNS) but not 8 bits per channel: convert it to 8-bit RGBA")
        frames = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
        paged = frames > 1 and image.format == "TIFF" and image.mode == "L"
        mode = "LA" if _raw_mode(image) == "LA;16B" else image.mode  # which Pillow opens as RGBA
        return cls(mode, _deep(image), image.has_transparency_data, int(frames), paged)

    @property
    def wide(self) -> bool:
        """Whether there is one channel of more than 8 bits."""
        return self.mode in WIDE_MODES

    @property
    def has_8_bits(self) -> bool:
        """Whether each channel has 8 bits in the file."""
        return not (self.wide or self.deep or self.mode == "1")

    @property
    def channels(self) -> int:
        """1 if the image is grey, else 3."""
        return 1 if self.mode in GREY_MODES else 3

    def has_page_for_each(self, channels: int | None) -> bool:
        """Whether the pages of the file are the channels of an image of so many channels, which are not RGB."""
        return self.paged and self.frames == channels != 3


@dataclass(frozen=True)
class Decoding:
    """How the files of a data set become 8-bit pixels.

    value_range: values of black and white in all files; None: 0 and 255 in those of 8 bits
    wide_range: values of black and white in files of more than 8 bits, if `value_range` is not given
    background: grey level behind transparent pixels and around padded images; None: white behind, black around
    """

    value_range: ValueRange | None = None
    wide_range: ValueRange | None = None
    background: int | None = None

    @property
    def byte_range(self) -> ValueRange | None:
        """Values of black and white that were stated for files of 8 bits, if they are not 0 and 255."""
        return None if self.wide_range or self.value_range == (0, 255) else self.value_range

    @property
    def canvas(self) -> int:
        """The grey level around padded images."""
        return 0 if self.background is None else self.background

    def pixels(self, image: Image.Image, channels: int | None = None) -> Pixels:
        """Return a Pillow image upright and with 8 bits: mode "L" or "RGB", or an array (H, W, C) of other channels.

        channels: 1 or 3; 2 or 4 for grey or colour with its transparency; None: 1 if the image is grey, else 3
        Raises DataError if values are outside of the value range, or if the image does not have these channels.
        """
        if channels is not None and channels not in (1, 3):
            return self._all_channels(image, channels)
        behind = 255 if self.background is None else self.background
        if image.mode in WIDE_MODES:
            array = wide_array(image)
            bits = to_8_bits(array, self.value_range or self.wide_range or range_of_one(array), "its pixels")
            if "transparency" in image.info:
                bits[array == image.info["transparency"]] = behind
            plain = Image.fromarray(bits)
        else:
            shown = upright(image)
            if self.value_range is not None and self.value_range != (0, 255):
                shown = in_8_bits(shown, self.value_range)
            plain = flattened(shown, behind).convert("L" if image.mode in GREY_MODES else "RGB")
        return plain if channels is None else plain.convert(MODES[channels])

    def _all_channels(self, image: Image.Image, channels: int) -> Pixels:
        """Return the channels of an image as they are: colours and transparency, or the grey pages of a TIFF file."""
        kind = Kind.from_image(image)
        if kind.has_page_for_each(channels):
            return pages(image, channels)
        colours, transparent = kind.channels, kind.transparent
        if not transparent or channels != colours + 1:
            have = colours + transparent
            raise DataError(f"it has {have} channel{'s' if have > 1 else ''} ({image.mode}), not {channels}")
        if self.value_range is not None:
            raise DataError("value_range does not apply to images with transparency as a channel")
        return np.asarray(upright(image).convert(MODES[channels]))


def pages(image: Image.Image, count: int) -> Shaped[np.ndarray, "h w c"]:
    """Return the grey pages of a file as channels. Raises DataError if their sizes or types differ."""
    found = []
    for page in range(count):
        image.seek(page)
        check_pixels(image)
        found.append(np.asarray(upright(image)))
    if len({(page.shape, page.dtype) for page in found}) > 1 or found[0].ndim != 2:
        raise DataError("its pages differ in size or type, and cannot be the channels of an image")
    return np.stack(found, -1)


def upright(image: Image.Image) -> Image.Image:
    """Return the image as its EXIF orientation shows it; guided-diffusion ignores it and learns photographs rotated."""
    return ImageOps.exif_transpose(image)


def in_8_bits(image: Image.Image, value_range: ValueRange) -> Image.Image:
    """Return an 8-bit image with its colours scaled from a value range; transparency is unchanged.

    Raises DataError if a value that is not fully transparent is outside of the range.
    """
    grey = image.mode in GREY_MODES
    if not image.has_transparency_data:
        array = np.asarray(image.convert("L" if grey else "RGB"))
        return Image.fromarray(to_8_bits(array, value_range, "its pixels"))
    array = np.array(image.convert("LA" if grey else "RGBA"))
    array[array[..., -1] == 0, :-1] = np.clip(array[array[..., -1] == 0, :-1], *value_range)
    array[..., :-1] = to_8_bits(array[..., :-1], value_range, "its pixels")
    return Image.fromarray(array)


def flattened(image: Image.Image, background: int) -> Image.Image:
    """Return a transparent image on a plain background of this grey level, and any other unchanged."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (background,) * 3 + (255,)), image)


def wide_array(image: Image.Image) -> Shaped[np.ndarray, "h w"]:
    """Return the values of an image of more than 8 bits, upright, as uint16, int32 or float32."""
    array = np.asarray(upright(image))
    sixteen = image.mode == "I" and image.format in ("PNG", "PPM")  # of 0..65535, as Pillow opens some versions of them
    return array.astype(np.uint16 if sixteen else array.dtype.newbyteorder("="), copy=False)


def range_of_one(array: Shaped[np.ndarray, "h w"]) -> ValueRange:
    """Return the range of a single image; 16 bits are taken to be used in full."""
    return (0, 65535) if array.dtype == np.uint16 else infer_range(array, "its pixels")


def choose_decoding(
    files: Sequence[tuple[ImagePath, Kind]],
    what: object,
    *,
    value_range: ValueRange | None = None,
    wide_range: ValueRange | None = None,
    background: int | None = None,
    padded: bool = False,
    every: bool = False,
) -> Decoding:
    """Return the rule for all files of a data set.

    what: name of the data set in messages
    value_range: values of black and white
    wide_range: those of files of more than 8 bits, if `value_range` is not given; None: found from the type and from
        some of the files, see `clear_range`
    background: grey level behind transparent pixels and around padded images; None: white for transparent pixels, and
        for the canvas as well if some pixels are transparent
    padded: whether images are padded
    every: whether to read all files of more than 8 bits instead of some
    Raises DataError if the range is ambiguous, or if it is unclear to which of several bit depths it applies.
    """
    wide = [path for path, kind in files if kind.wide]
    deep = [path for path, kind in files if kind.deep]
    if value_range is not None:
        check_range(value_range)
        if deep:
            raise DataError(f"value_range cannot be used, since {deep[0]} has colours of 16 bits: convert them first")
        if 0 < len(wide) < len(files):
            other = next(path for path, kind in files if not kind.wide)
            raise DataError(
                f"{what} has images of 8 bits, such as {other.name}, and of more, such as {wide[0].name}: one "
                f"value_range cannot fit both"
            )
    measured = measured_range(wide, what, value_range or wide_range, every) if wide else None
    if deep:
        check_depth(deep, what)
    transparent = [path for path, kind in files if kind.transparent]
    if padded and background is None and transparent and any(some_of(transparent, _transparent)):
        background = 255
        warn(
            f"{what} has transparent images: they lie on white, and all images are padded with white (--background "
            f"black puts them on black)"
        )
    return Decoding(value_range, measured, background)


def measured_range(
    paths: Sequence[ImagePath], what: object, stated: ValueRange | None = None, every: bool = False
) -> ValueRange:
    """Return the range of files of more than 8 bits. Raises DataError if it is ambiguous or not the stated one."""
    extremes = some_of(paths, _extremes, len(paths) if every else PROBED)
    types = {dtype for dtype, _, _ in extremes}
    if len(types) > 1:
        raise DataError(f"{what} must have images of one type, got {' and '.join(sorted(map(str, types)))}")
    low, high = min(low for _, low, _ in extremes), max(high for _, _, high in extremes)
    name = f"the images in {what}"
    if stated is None:
        return clear_range(types.pop(), low, high, name)
    check_extremes(types.pop(), low, high, stated, name)
    return stated


def check_depth(paths: Sequence[ImagePath], what: object) -> None:
    """Raise DataError if no value of 16-bit colours uses the highest bit, since they may have fewer bits."""
    high = max(some_of(paths, _highest))
    if high < 128:
        raise DataError(
            f"the images in {what} have colours of 16 bits, but no value above {high * 256 + 255}, and may therefore "
            f"have fewer bits: scale them to 8 bits, or store them as an .npz with value_range"
        )


def check_not_binary(paths: Sequence[ImagePath], what: object) -> None:
    """Raise DataError if the only values of 8-bit files are 0 and 1. Usually one file is enough to rule it out."""
    try:
        highest = max(some_of(paths, _highest_shown, 1), default=255)
        highest = highest if highest > 1 else max(some_of(paths, _highest_shown))
    except (DataError, OSError):  # an image that cannot be decoded is named when it is used
        return
    check_8_bits(0, highest, f"the images in {what}")


def some_of(paths: Sequence[ImagePath], function: Callable[[Image.Image], T], most: int = PROBED) -> list[T]:
    """Apply a function to some images, spread over the files. Raises DataError if one cannot be read."""

    def read(path: ImagePath) -> T:
        with open_image(path) as image:
            return function(image)

    with ThreadPoolExecutor(4) as pool:  # Pillow decodes without Python's lock
        return list(pool.map(read, [paths[i] for i in spread_indices(len(paths), most)]))


def note_frames(files: Sequence[tuple[ImagePath, Kind]], what: object, channels: int | None = None) -> None:
    """Warn that only the first frame of some files is used, unless the pages are the channels."""
    several = [kind for _, kind in files if kind.frames > 1 and not kind.has_page_for_each(channels)]
    if several:
        total, counts = sum(kind.frames for kind in several), {(kind.mode, kind.frames) for kind in several}
        hint = "frames='all' uses every one"
        if len(counts) == 1 and several[0].has_page_for_each(several[0].frames):
            hint += f", and {several[0].frames} channels make them the channels of one image"
        warn(
            f"{len(several)} of {len(files)} files in {what} have several frames or pages, {total} in all: only the "
            f"first of each is used ({hint})"
        )


def _deep(image: Image.Image) -> bool:
    """Whether a file has 16-bit colours. Pillow's decoders keep their upper 8 bits."""
    return image.mode not in WIDE_MODES and "16" in _raw_mode(image)


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the storage of the pixels in a file, "" if it is not known."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments if isinstance(arguments, str) else arguments[0] if arguments else "")


def _extremes(image: Image.Image) -> tuple[np.dtype, float, float]:
    array = wide_array(image)
    return array.dtype, *extremes(array, str(getattr(image, "filename", "an image")))


def _highest(image: Image.Image) -> int:
    """Return the highest value of colours, in the upper 8 bits of those of 16."""
    array = np.asarray(image)
    return int((array[..., :-1] if image.mode in ("LA", "RGBA") else array).max())


def _highest_shown(image: Image.Image) -> int:
    return int(np.asarray(flattened(image, 255).convert("RGB")).max())


def has_colours(path: ImagePath) -> bool:
    """Whether any frame of a file has colours."""
    with open_image(path) as image:
        return any(frame.mode not in GREY_MODES for frame in ImageSequence.Iterator(image))


def _transparent(image: Image.Image) -> bool:
    return image.convert("RGBA").getchannel("A").getextrema()[0] != 255
