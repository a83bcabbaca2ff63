"""Edits of a picture that a visitor uploads or paints: inpainting, changes of the label, interpolation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image

from admg.checkpoints.model import Model
from admg.config import check, setting
from admg.data.decoding import WIDE_MODES, Decoding
from admg.data.transforms import center_crop
from admg.diffusion.gaussian import Images
from admg.generation import Recipe, Samples, edit, interpolate, sample
from admg.generation.images import to_float
from admg.guidance import DPS, Mask, Sum
from admg.samplers import repaint

from .catalog import Entry, interruptible
from .jobs import Job
from .sampling import Recorder, Result, counting_model, recording_recipe
from .settings import MAX_SEED, Settings

Method = Literal["repaint", "dps", "sdedit", "inversion", "interpolate"]
METHODS: dict[str, Method] = {
    "Inpaint (RePaint)": "repaint",
    "Inpaint (DPS)": "dps",
    "Change the label (SDEdit)": "sdedit",
    "Change the label (DDIM inversion)": "inversion",
    "Interpolate": "interpolate",
}
INPAINTING = ("repaint", "dps")


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """Options of an edit.

    method: kind of edit
    strength: share of the steps that are run, for changes of the label
    from_label: label of the picture, for DDIM inversion; "" for none
    resamplings: RePaint passes over each segment of the steps
    jump_length: RePaint jump length in steps
    dps_scale: step size of DPS
    second_seed: seed of the last image of an interpolation without pictures
    """

    method: Method = "repaint"
    strength: float = setting(0.6, above=0, max=1)
    from_label: str = ""
    resamplings: int = setting(4, min=1, max=20)
    jump_length: int = setting(5, min=1, max=100)
    dps_scale: float = setting(1.0, min=0, max=100)
    second_seed: int = setting(1, min=0, max=MAX_SEED)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of an edit at the size of the model. Their files are picture.png, mask.png and second.png.

    picture: uint8 (S, S, C), or None
    painted: bool (S, S), True in the region to inpaint; None without a mask
    second: uint8 (S, S, C), last image of an interpolation; or None
    """

    picture: UInt8[np.ndarray, "s s c"] | None = None
    painted: Bool[np.ndarray, "s s"] | None = None
    second: UInt8[np.ndarray, "s s c"] | None = None

    def files(self) -> dict[str, Image.Image]:
        """Return the pictures by file name."""
        found = {}
        for name, pixels in (("picture.png", self.picture), ("second.png", self.second)):
            if pixels is not None:
                found[name] = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        if self.painted is not None:
            found["mask.png"] = Image.fromarray(self.painted.astype(np.uint8) * 255)
        return found

    def given(self) -> UInt8[np.ndarray, "s s c"]:
        """Return the picture. Raises ValueError without one."""
        if self.picture is None:
            raise ValueError("this edit needs a picture: upload or paint one")
        return self.picture


def prepared(image: Image.Image | None, model: Model) -> UInt8[np.ndarray, "s s c"] | None:
    """Return the centre square of a picture, resized to the model, or None without a picture."""
    if image is None:
        return None
    channels, size, _ = model.shape
    if channels not in (1, 3):
        raise ValueError(f"the studio can edit images with 1 or 3 channels; those of this model have {channels}")
    if image.mode in WIDE_MODES:
        image = Image.fromarray(np.asarray(Decoding().pixels(image)))
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    pixels = center_crop(image.convert("L" if channels == 1 else "RGB"), size)
    return np.ascontiguousarray(pixels.reshape(size, size, channels))


def painted(layers: Sequence[Image.Image], model: Model) -> Bool[np.ndarray, "s s"] | None:
    """Return the painted region at the size of the model, or None if nothing is painted."""
    _, size, _ = model.shape
    found = np.zeros((size, size), bool)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        found |= center_crop(alpha, size) >= 64  # a quarter of the pixel is covered
    return found if found.any() else None


def check_edit(settings: Settings, options: EditSettings, pictures: Pictures, entry: Entry) -> None:
    """Raise ValueError if the edit lacks an input, or if an input would have no effect."""
    if options.method == "interpolate":
        if (pictures.picture is None) != (pictures.second is None):
            raise ValueError("interpolation needs two pictures, or none to interpolate between two seeds")
        if settings.num < 2:
            raise ValueError(f"the number of images of an interpolation must be at least 2, got {settings.num}")
    else:
        pictures.given()
    if options.method in INPAINTING:
        if pictures.painted is None:
            raise ValueError("paint over the region to inpaint")
        if pictures.painted.all():
            raise ValueError("the whole picture is painted over: leave a part of it unpainted")
    if len(settings.labels) > 1:
        raise ValueError("an edit takes one label or none")
    if options.method in ("repaint", "dps") and settings.eta:
        raise ValueError("eta has no effect on inpainting: set it to 0")
    if options.from_label:
        entry.labels.parse(options.from_label)


def known_and_mask(pictures: Pictures) -> tuple[Images, torch.Tensor]:
    """Return the picture, (1, C, S, S) in [-1, 1], and the mask, (S, S), True where its pixels are kept."""
    assert pictures.painted is not None
    return to_float(pictures.given()[None]), torch.from_numpy(~pictures.painted)


def edit_recipe(settings: Settings, options: EditSettings, pictures: Pictures, entry: Entry) -> Recipe:
    """Return the recipe of an edit. Inpainting sets RePaint as its sampler, or adds DPS to its guide."""
    recipe = settings.recipe(entry)
    if options.method not in INPAINTING:
        return recipe
    known, mask = known_and_mask(pictures)
    if options.method == "repaint":
        sampler = repaint(known, mask, jump_length=options.jump_length, resamplings=options.resamplings)
        return dataclasses.replace(recipe, sampler=sampler)
    operator = Mask(mask)
    dps = DPS(operator, operator(known), options.dps_scale)
    guide: Any = dps if recipe.guide is None else Sum((recipe.guide, dps))
    return dataclasses.replace(recipe, guide=guide)


def run_edit(entry: Entry, settings: Settings, options: EditSettings, pictures: Pictures, job: Job) -> Result:
    """Generate the edits, reporting a Frame or a Counted after each step.

    Raises ValueError if the settings do not fit the picture or the model.
    """
    check_edit(settings, options, pictures, entry)
    recipe = edit_recipe(settings, options, pictures, entry)
    label = entry.labels.parse(settings.labels[0]) if settings.labels else None
    if options.method == "interpolate":
        return Result(settings, _interpolated(entry, settings, recipe, pictures, options, job, label), [])
    model = interruptible(entry.model, job.check)
    respaced = model.respace(settings.spec)
    if options.method in INPAINTING:
        recorder = Recorder(entry, job, len(respaced.diffusion), settings.num)
        arguments = recording_recipe(recipe, respaced, recorder).arguments()
        samples = sample(model, [label] * settings.num, progress=False, **arguments)
        return Result(settings, samples, recorder.frames)
    inverted = options.method == "inversion"
    source = entry.labels.parse(options.from_label) if inverted and options.from_label else None
    steps = max(1, int(options.strength * len(respaced.diffusion) + 0.5))
    recorder = Recorder(entry, job, steps, settings.num)
    samples = edit(
        model, to_float(pictures.given()[None]), [label] * settings.num, strength=options.strength, invert=inverted,
        from_labels=None if source is None else [source] * settings.num,
        progress=False, **recording_recipe(recipe, respaced, recorder).arguments(),
    )  # fmt: skip
    return Result(settings, samples, recorder.frames)


def _interpolated(
    entry: Entry,
    settings: Settings,
    recipe: Recipe,
    pictures: Pictures,
    options: EditSettings,
    job: Job,
    label: int | None,
) -> Samples:
    ends: Images | tuple[int, int] = (settings.seed, options.second_seed)
    steps = len(entry.model.respace(settings.spec).diffusion)
    if pictures.picture is not None and pictures.second is not None:
        ends = to_float(np.stack([pictures.picture, pictures.second]))
        steps *= 2  # for the encoding
    arguments = recipe.arguments()
    del arguments["compile"]
    return interpolate(
        counting_model(entry.model, job, steps), ends, label, frames=settings.num, progress=False, **arguments
    )  # fmt: skip
