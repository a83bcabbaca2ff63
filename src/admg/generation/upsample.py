"""upsample(): small images in, large images out, by a super-resolution diffusion model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from admg.checkpoints import loading
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.data.value_range import check_array_8_bits
from admg.diffusion.gaussian import Images
from admg.engine.compiling import Compile
from admg.engine.precision import Precision
from admg.guidance import Guide
from admg.samplers import Sampler

from .images import to_float
from .label_names import names_of
from .labels import LabelsArgument
from .sample import check_low_res, sample
from .samples import Samples
from .shards import NpzImages

UPSAMPLER_SEED = 2**32
"""Added to the seed: the noise of an upsampler must differ from that of its base images."""


def upsample(
    model: Model | str | Path,
    images: Images | UInt8[np.ndarray, "n h w c"] | Samples | str | Path,
    labels: LabelsArgument = None,
    *,
    augment_level: float = 0.0,
    guide: Guide | None = None,
    sampler: str | Sampler = "ddim",
    steps: int | str = 25,
    seed: int = 0,
    unconditional: bool = False,
    bound_guidance: bool = True,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    compile: Compile = "auto",
    progress: bool = True,
) -> Samples:
    """Enlarge images with a super-resolution model.

    model: an upsampling Model, or anything that admg.load_upsampler accepts
    images: (N, C, h, w) in [-1, 1], uint8 (N, h, w, C), Samples, or the path of an .npz of samples
    labels: one per image, as in sample(); None: those of Samples or of the .npz
    augment_level: level of noise to add to the images, at most the `augment_noise` that the model was trained with: a
        standard deviation s, which gives sqrt(1 - s²) image + s noise. The default, 0, uses them unchanged; noise
        hides errors in images that are samples, at the cost of detail
    The other arguments are those of sample(). The noise differs from that of sample() with the same seed, so that it
    does not repeat the noise of the base images.
    Raises ValueError as sample() does, and for images that this model cannot enlarge.

    >>> import admg  # doctest: +SKIP
    >>> small = admg.sample("openai/imagenet-64", "crane (wading bird)", num=2)  # doctest: +SKIP
    >>> large = admg.upsample("openai/imagenet-64-to-256", small)  # doctest: +SKIP
    """
    model = load_upsampler(model)
    x, own = small_images(images)
    if labels is None and own is not None:
        labels = [*by_name(own.tolist(), names_of(images), model.labels, "the images")]
    check_low_res(model, x, len(x))
    return sample(
        model, labels if labels is not None else [None] * len(x), low_res=x, augment_level=augment_level,
        guide=guide, sampler=sampler, steps=steps, seed=seed + UPSAMPLER_SEED, unconditional=unconditional,
        bound_guidance=bound_guidance, batch_size=batch_size, precision=precision, compile=compile, progress=progress,
    )  # fmt: skip


def small_images(images: Images | np.ndarray | Samples | str | Path) -> tuple[Images, Tensor | np.ndarray | None]:
    """Return images as (N, C, h, w) in [-1, 1], and their labels, -1 for none."""
    if isinstance(images, str | Path):
        stored = NpzImages(images).verify()
        check_array_8_bits(stored, f"the images in {images}", "multiply them by 255")
        return to_float(stored[:]), stored.labels
    if isinstance(images, Samples):
        return to_float(images.images), images.labels
    if isinstance(images, Tensor):
        return images, None
    if images.dtype != np.uint8:
        raise ValueError(
            f"images must be a uint8 array (N, h, w, C) or a tensor in [-1, 1], got an array of {images.dtype}"
        )
    if images.ndim != 4:
        raise ValueError(f"images must have shape (N, h, w, C), got {images.shape}")
    check_array_8_bits(images, "the images", "multiply them by 255")
    return to_float(images), None


def by_name(numbers: Sequence[int], names: Sequence[str], table: Labels, source: str) -> Iterator[int | None]:
    """Yield the upsampler's number of each label of the small images, None for -1.

    names: names of their labels, by number, if they are known; a label without a name keeps its number
    Raises ValueError if the upsampler has names and one of these is missing.
    """
    for number in numbers:
        name = names[number] if 0 <= number < len(names) else ""
        if number >= 0 and name and table.names and tuple(names) != table.names:
            try:
                number = table.number(name)
            except ValueError as error:
                raise ValueError(f"{source} have the label {name!r}, but the upsampler does not: {error}") from None
        yield number if number >= 0 else None


def load_upsampler(model: Model | str | Path) -> Model:
    """Return an upsampling model, loaded if it is a name or a path. Raises ValueError if it does not upsample."""
    loaded = loading.named(loading.load_upsampler(model), model) if isinstance(model, str | Path) else model
    if not loaded.upsamples:
        raise ValueError("this model makes images from noise: an upsampling model is needed")
    return loaded


def check_base(model: Model, name: str, small: tuple[int, ...], source: str) -> None:
    """Raise ValueError unless the model can enlarge images of this shape (H, W, C). source: their name in messages"""
    height, width, channels = small
    try:
        check_low_res(model, torch.empty(1, channels, height, width, device="meta"), 1)
    except ValueError:
        side = getattr(model.network.config, "small_size", 0)
        allowed = f"of {side}x{side}" if side else f"below {model.shape[1]}x{model.shape[2]}"
        raise ValueError(
            f"{source} has images of {height}x{width} pixels and {plural(channels)}: "
            f"{name} upsamples images {allowed} pixels and {plural(model.shape[0])}"
        ) from None


def plural(channels: int) -> str:
    return f"{channels} channel{'' if channels == 1 else 's'}"


def base_labels(base: NpzImages, table: Labels, num: int) -> list[int | None]:
    """Return the label of each of the first images, None for no label. Raises ValueError for one outside the table."""
    if base.labels is None:
        return [None] * num
    labels = [*by_name(base.labels[:num].tolist(), names_of(base.path), table, str(base.path))]
    if table.count and (highest := max(-1 if label is None else label for label in labels)) >= table.count:
        raise ValueError(f"{base.path}: labels in arr_1 must be from 0 to {table.count - 1}, got {highest}")
    return labels
