"""Image files: their headers and their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image, UnidentifiedImageError

from .decoding import Decoding, Kind
from .errors import DataError, UnreadableError
from .members import ORIENTATION, ImagePath, check_pixels, open_image
from .transforms import Pixels

WIDTH, HEIGHT = 256, 257
"""Tags of EXIF and TIFF."""


@dataclass(frozen=True)
class ImageFile:
    """A readable image file, with its upright size (width, height) and its pixel format."""

    path: ImagePath
    size: tuple[int, int]
    kind: Kind


def read_image(
    path: ImagePath, channels: int | None = None, decoding: Decoding | None = None, frame: int = 0
) -> Pixels:
    """Return the decoded image, see `Decoding.pixels`. Raises UnreadableError, or DataError if it does not fit."""
    try:
        with open_image(path, whole=True) as image:
            if frame:
                image.seek(frame)
                check_pixels(image)
            return (decoding or Decoding()).pixels(image, channels)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # decoders raise many kinds: SyntaxError, struct.error, IndexError, ...
        raise UnreadableError(f"{path} cannot be read as an image: {_reason(error)}") from error


def read_kind(path: ImagePath) -> tuple[Kind, tuple[int, int]]:
    """Return the pixel format and the size from the header of an image. Raises DataError if it is not an image."""
    found = check(path, decode=False)
    if isinstance(found, str):
        raise DataError(f"{path} cannot be read as an image: {found}")
    return found.kind, found.size


def check(path: ImagePath, decode: bool) -> ImageFile | str:
    """Return the size and pixel format of an image file, or the reason why it is not an image.

    decode: read the whole image, not only its header
    """
    try:
        with open_image(path, whole=decode) as image:
            found = ImageFile(path, upright_size(image), Kind.from_image(image))
            if decode:
                image.load()
            return found
    except Exception as error:  # as in read_image
        return _reason(error)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height of an opened image as its EXIF orientation shows it, without reading its pixels."""
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF file, whose size Pillow may have turned already
    width, height = (tags[WIDTH], tags[HEIGHT]) if image.format == "TIFF" else image.size
    turned = width != height and Image.Image.getexif(image).get(ORIENTATION) in (5, 6, 7, 8)  # PNG's reads the pixels
    return (height, width) if turned else (width, height)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
