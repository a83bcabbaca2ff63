"""Images of any size -> square uint8 arrays, by the rules of guided-diffusion.

Images are Pillow images of mode "L" or "RGB"; arrays are uint8, (H, W) or (H, W, C). All randomness comes from `rng`.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from .errors import DataError

GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"})


def plain(image: Image.Image) -> Image.Image:
    """Return a Pillow image as mode "L" if it is grey, else "RGB": upright, with 8 bits, on white if transparent."""
    # guided-diffusion ignores the EXIF orientation and learns such photographs rotated.
    image = ImageOps.exif_transpose(image)
    mode = "L" if image.mode in GREY_MODES else "RGB"
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255; we scale 0..65535 to 0..255
        wide = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def scale_to(image: Image.Image, shorter: int) -> Image.Image:
    """Resize so that the shorter side is `shorter`: box-filtered halvings while they fit, then one bicubic step."""
    while min(image.size) >= 2 * shorter:  # bicubic alone would skip pixels of a large image
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = shorter / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> UInt8[np.ndarray, "size size *c"]:
    """Scale the shorter side, up or down, to `size`, and return the square in the middle."""
    array = np.array(scale_to(image, size))
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size]


def random_crop(
    image: Image.Image, size: int, rng: np.random.Generator, min_fraction: float = 0.8, max_fraction: float = 1.0
) -> UInt8[np.ndarray, "size size *c"]:
    """Return a random square of `min_fraction` to `max_fraction` of the shorter side, scaled to `size`.

    The shorter side of the scaled image is drawn first, then y and x of the square, each uniformly over integers.
    """
    shorter = rng.integers(math.ceil(size / max_fraction), math.ceil(size / min_fraction), endpoint=True)
    array = np.array(scale_to(image, int(shorter)))
    y, x = rng.integers(array.shape[0] - size + 1), rng.integers(array.shape[1] - size + 1)
    return array[y : y + size, x : x + size]


def pad(
    array: UInt8[np.ndarray, "h w *c"], size: int, rng: np.random.Generator | None = None
) -> UInt8[np.ndarray, "size size *c"]:
    """Place the image on a black canvas, in the middle or, with `rng`, at a uniformly random place (y, then x).

    Raises DataError if the image is larger than the canvas.
    """
    height, width = array.shape[:2]
    check_pad(width, height, size)
    room_y, room_x = size - height, size - width
    y, x = (rng.integers(room_y + 1), rng.integers(room_x + 1)) if rng else (room_y // 2, room_x // 2)
    canvas = np.zeros((size, size, *array.shape[2:]), np.uint8)
    canvas[y : y + height, x : x + width] = array
    return canvas


def check_pad(width: int, height: int, size: int, what: object = "the image") -> None:
    """Raise DataError if an image of that width and height is larger than the canvas."""
    if max(width, height) > size:
        raise DataError(
            f'{what} is {width}x{height}, larger than image_size {size}x{size}: fit="pad" needs smaller images, '
            f'fit="resize" takes any'
        )
