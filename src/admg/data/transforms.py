"""Images of any size -> square uint8 arrays, by the rules of guided-diffusion.

Images are Pillow images of mode "L" or "RGB", or arrays (H, W, C) whose channels are resampled one by one; arrays are
uint8, (H, W) or (H, W, C). All randomness comes from `rng`.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from .errors import DataError

Pixels = Image.Image | UInt8[np.ndarray, "h w c"]


def scale_to(image: Image.Image, shorter: int) -> Image.Image:
    """Resize so that the shorter side is `shorter`: box-filtered halvings while they fit, then one bicubic step."""
    while min(image.size) >= 2 * shorter:  # bicubic alone would skip pixels of a large image
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = shorter / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def scaled(image: Pixels, shorter: int) -> UInt8[np.ndarray, "h w *c"]:
    """Apply `scale_to` to an image, or to each channel of an array."""
    if isinstance(image, Image.Image):
        return np.array(scale_to(image, shorter))
    # Pillow would take a fourth channel for transparency and weight the other three by it.
    return np.stack([np.array(scale_to(Image.fromarray(one), shorter)) for one in np.moveaxis(image, -1, 0)], -1)


def center_crop(image: Pixels, size: int) -> UInt8[np.ndarray, "size size *c"]:
    """Scale the shorter side, up or down, to `size`, and return the square in the middle."""
    array = scaled(image, size)
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size]


def random_crop(
    image: Pixels, size: int, rng: np.random.Generator, min_fraction: float = 0.8, max_fraction: float = 1.0
) -> UInt8[np.ndarray, "size size *c"]:
    """Return a random square of `min_fraction` to `max_fraction` of the shorter side, scaled to `size`.

    The shorter side of the scaled image is drawn first, then y and x of the square, each uniformly over integers.
    """
    shorter = rng.integers(math.ceil(size / max_fraction), math.ceil(size / min_fraction), endpoint=True)
    array = scaled(image, int(shorter))
    y, x = rng.integers(array.shape[0] - size + 1), rng.integers(array.shape[1] - size + 1)
    return array[y : y + size, x : x + size]


def pad(
    array: UInt8[np.ndarray, "h w *c"], size: int, rng: np.random.Generator | None = None, canvas: int = 0
) -> UInt8[np.ndarray, "size size *c"]:
    """Place the image on a canvas, in the middle or, with `rng`, at a uniformly random place (y, then x).

    canvas: grey level of the canvas, by default black

    Raises DataError if the image is larger than the canvas.
    """
    height, width = array.shape[:2]
    check_pad(width, height, size)
    room_y, room_x = size - height, size - width
    y, x = (rng.integers(room_y + 1), rng.integers(room_x + 1)) if rng else (room_y // 2, room_x // 2)
    square = np.full((size, size, *array.shape[2:]), canvas, np.uint8)
    square[y : y + height, x : x + width] = array
    return square


def check_pad(width: int, height: int, size: int, what: object = "the image") -> None:
    """Raise DataError if an image of that width and height is larger than the canvas."""
    if max(width, height) > size:
        raise DataError(
            f'{what} is {width}x{height}, larger than image_size {size}x{size}: fit="pad" needs smaller images, '
            f'fit="resize" takes any'
        )
