"""How images are drawn: the settings that sample(), edits, upsampling and jobs share, and the loop over batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch

from admg.checkpoints.calling import rows_of
from admg.checkpoints.model import Model
from admg.config import check_integer, with_fields
from admg.diffusion.gaussian import Images
from admg.diffusion.noise import SeededNoise
from admg.engine import accelerate_parts, adapt_threads
from admg.engine.compiling import Compile
from admg.engine.memory import in_batches
from admg.engine.precision import Precision, resolve, without_autocast
from admg.guidance import Bounded, Guide, Recorded
from admg.guidance.mistakes import check_is_guide
from admg.guidance.rows import batch_context
from admg.samplers import NoiseSampler, Step
from admg.warn import warn

from .acceleration import batch_that_fits
from .augmentation import augmented, check_level
from .guide_specs import guide_title
from .identity import identify_or_mark, identify_sampler
from .labels import as_tensor, uses_labels
from .modes import evaluation_mode
from .pairing import check_guide, check_null_label, note_empty_intervals
from .sampler_specs import find_sampler, is_users, sampler_name, set_options

Start = Callable[[Model, Images, bool], Images]
"""(model, noise, unconditional) -> x (N, C, H, W) at the model's highest step, where sampling begins."""


MAX_INITIAL_ALPHA_BAR = 0.3
"""Largest ᾱ of the first step of sampling for which there is no warning; sampling begins with x_T ~ N(0, I)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How images are drawn from a model.

    guide: guidance, or None
    sampler: a name in admg.samplers, "path/to/file.py:name", or a function with the same signature
    steps: respacing of the schedule: a number, "ddim25", "10,15,20", "karras25", see NoiseSchedule.respace
    seed: seed of the noise; image i of a seed is always the same
    unconditional: if True, the network is not conditioned on the labels; the guide still uses them
    bound_guidance: whether gradients are limited to what images in [-1, 1] make possible, see guidance.Bounded
    batch_size: images per batch; None: as many as fit in memory, at most 64
    precision: number format of matrix products: fp32, bf16, fp16 (on GPUs), or auto (bf16 where it is native)
    compile: whether torch.compile builds the networks first: auto (no), on or off
    augment_level: level of noise to add to the low-resolution images of an upsampler, see upsample()
    Raises ValueError for what is not a guide, an unknown sampler, a negative seed, a batch size below 1 or a level
    outside [0, 1].
    """

    guide: Guide | None = None
    sampler: Any = "ddim"
    steps: int | str = 25
    seed: int = 0
    unconditional: bool = False
    bound_guidance: bool = True
    batch_size: int | None = None
    precision: Precision = "fp32"
    compile: Compile = "auto"
    augment_level: float = 0.0

    def __post_init__(self) -> None:
        check_is_guide(self.guide)
        find_sampler(self.sampler)
        if not 0 <= self.augment_level <= 1:
            raise ValueError(f"augment_level must be from 0 to 1, got {self.augment_level}")
        check_integer("seed", self.seed, 0)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size)

    def arguments(self) -> dict[str, Any]:
        """Return the settings as arguments of generate(), whose model is not an upsampler."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "augment_level"]
        return {name: getattr(self, name) for name in names}

    @property
    def title(self) -> str:
        """Short text for pictures: `ddim 25, seed 0, scale 4`."""
        options = "".join(f" {name} {value}" for name, value in set_options(self.sampler).items())
        guide = guide_title(self.guide)
        return f"{sampler_name(self.sampler)} {self.steps}{options}, seed {self.seed}" + (f", {guide}" if guide else "")

    @property
    def bounded_guide(self) -> Guide | None:
        """The guide to sample with, bounded if `bound_guidance` is set."""
        return Bounded(self.guide) if self.guide is not None and self.bound_guidance else self.guide

    def record(self, device: torch.device) -> dict[str, Any]:
        """Return everything that determines the images, in JSON types."""
        return {
            "guide": identify_or_mark(self.guide),
            **({} if self.guide is None else {"bound_guidance": self.bound_guidance}),
            "sampler": identify_sampler(self.sampler),
            "options": identify_or_mark(set_options(self.sampler)) or None,
            "steps": str(self.steps),
            "seed": self.seed,
            "unconditional": self.unconditional,
            "precision": resolve(self.precision, device),
            **({"augment_level": self.augment_level} if self.augment_level else {}),
        }


@dataclass(frozen=True)
class Inputs:
    """Inputs of sampling besides the seed.

    x_T: noise (N, C, H, W) instead of the seed's
    low_res: (N, C, h, w) in [-1, 1], the images that an upsampling model enlarges
    noise_sampler: (x, index) -> noise of a step, instead of the seed's
    start: slice of images -> function that returns x where their sampling begins
    """

    x_T: Images | None = None
    low_res: Images | None = None
    noise_sampler: NoiseSampler | None = None
    start: Callable[[slice], Start] | None = None


@dataclass(frozen=True)
class BatchSampler:
    """Draws batches of images. The model must already be at the steps of the recipe.

    labelled: whether any image has a label; the samplers then get labels for every batch
    total: number of all images, if batches of some of them are drawn
    """

    model: Model
    recipe: Recipe
    labelled: bool = False
    total: int = 0

    @contextmanager
    def ready(self, labels: Sequence[int | None]) -> Iterator[BatchSampler]:
        """Yield the same sampler with accelerated networks, in evaluation mode: once per call or job, not per batch.

        labels: of all images
        Raises ValueError if the guide, these labels or the level of noise do not belong to the model.
        """
        recipe = self.recipe
        check_level(self.model, recipe.augment_level)
        check_guide(self.model, recipe.guide)
        note_empty_intervals(self.model, recipe.guide)
        check_null_label(self.model, labels, recipe.unconditional)
        with evaluation_mode(self.model, recipe.guide, recipe.sampler):
            parts = self.model, recipe.guide
            model, guide = accelerate_parts(parts, precision=recipe.precision, compile=recipe.compile)
            labelled = any(label is not None for label in labels)
            yield BatchSampler(model, dataclasses.replace(recipe, guide=guide), labelled, len(labels))

    def in_batches(
        self,
        labels: Sequence[int | None],
        inputs: Inputs,
        *,
        first: int = 0,
        halve: bool = True,
        on_progress: Callable[[int], Any] = lambda done: None,
    ) -> Iterator[Images]:
        """Yield the images batch by batch.

        first: index of the first image
        halve: whether to halve the batch size when memory runs out
        on_progress: called after each step with the total number of image steps done
        """
        if inputs.start is None and inputs.x_T is None:
            note_missing_noise(self.model)
        shape = None if inputs.x_T is None else inputs.x_T.shape[1:]
        steps = len(self.model.diffusion)

        def make(batch: slice) -> Images:
            done, images = itertools.count(1), batch.stop - batch.start
            return self.draw(labels, inputs, batch, first=first,
                             on_step=lambda _: on_progress(batch.start * steps + images * next(done)))  # fmt: skip

        yield from self.map_batches(make, len(labels), shape, halve=halve)

    def map_batches(
        self, make: Callable[[slice], Images], count: int, shape: Sequence[int] | None = None, *, halve: bool = True
    ) -> Iterator[Images]:
        """Yield make(batch) for batches of `count` images, of the size that was set or that fits in memory.

        shape: (C, H, W) of an image, by default that of the model
        halve: whether to halve the batch size when memory runs out
        """
        size = self.recipe.batch_size or batch_that_fits(self.model, self.recipe.guide, shape)
        if halve:
            yield from in_batches(make, count, size)
        else:
            yield from (make(slice(i, min(i + size, count))) for i in range(0, count, size))

    def draw(
        self,
        labels: Sequence[int | None],
        inputs: Inputs,
        batch: slice,
        *,
        first: int = 0,
        max_steps: int | None = None,
        on_step: Callable[[Step], Any] = lambda step: None,
    ) -> Images:
        """Return the images (n, C, H, W) of one batch, on the CPU.

        labels: of all images, like the inputs
        max_steps: stop after this many steps, or later once the guide has been evaluated; None: run all steps
        on_step: called with each step of the sampler
        Raises ValueError if the sampler never evaluates the guide, or if the model upsamples and there is no `low_res`,
        and FloatingPointError if an image is not finite.
        """
        recipe = self.recipe
        if inputs.low_res is None:
            check_has_small_images(self.model)
        y = as_tensor(labels[batch])
        images = range(first + batch.start, first + batch.start + len(y))
        noise = SeededNoise(recipe.seed, images)
        x = self._initial(inputs, batch, noise)
        model = self.model if inputs.low_res is None else self._with_low_res(inputs.low_res[batch], images)
        bounded = recipe.bounded_guide
        guide = None if bounded is None else Recorded(bounded)
        used = uses_labels(model, recipe.guide, recipe.unconditional)  # an upsampler may only keep those of its images
        adapt_threads()
        start, total = batch.start, len(labels)
        if self.total not in (0, total):  # these are only the images from `first` on
            start, total = images.start, self.total
        if len(y) < total:  # arguments with a row per image
            model = with_fields(model, given=rows_of(model.given, slice(start, start + len(y)), total))
        drawn_from = None  # whether a sampler of one's own ignores the seed shows in the first step of the first batch
        if batch.start == 0 and max_steps is None and is_users(recipe.sampler):
            drawn_from = global_random_states(model.device)
        with batch_context(start, start + len(y), total), without_autocast(model.device):
            steps = find_sampler(recipe.sampler)(
                model,
                x,
                y=y.to(model.device) if used and (self.labelled or bool((y >= 0).any())) else None,
                guide=guide,
                noise_sampler=noise if inputs.noise_sampler is None else checked_noise(inputs.noise_sampler),
                unconditional=recipe.unconditional,
            )
            for done, step in enumerate(checked_steps(steps, sampler_name(recipe.sampler)), 1):
                adapt_threads()
                if done == 1 and drawn_from is not None and drawn_from != global_random_states(model.device):
                    note_global_noise(sampler_name(recipe.sampler))
                x = step.x
                on_step(step)
                if max_steps is not None and done >= max_steps and (guide is None or guide.evaluated):
                    break
        if guide is not None and not guide.evaluated:
            raise ValueError(
                f"the sampler {sampler_name(recipe.sampler)!r} never evaluated the guide, and its images would be "
                "unguided: evaluate it as samplers.guided_model does, or sample without a guide"
            )
        if guide is not None and not guide.with_gradient and batch.start == 0:
            note_no_gradient(recipe.guide)
        check_finite(x, images.start)
        return x.to("cpu", dtype_of(model))

    def _initial(self, inputs: Inputs, batch: slice, noise: SeededNoise) -> Images:
        """Return x of a batch where sampling begins."""
        drawn = noise.draw(self.model.shape)  # always, so that the noise of the first step is never that of x_T
        x = drawn if inputs.x_T is None else inputs.x_T[batch].detach().clone()
        x = x.to(self.model.device, dtype_of(self.model))
        return x if inputs.start is None else inputs.start(batch)(self.model, x, self.recipe.unconditional)

    def _with_low_res(self, low_res: Images, images: range) -> Model:
        """Return the upsampler with its small images, noisy if the recipe says so. images: their indices"""
        given = augmented(low_res, self.recipe.augment_level, self.recipe.seed, images)
        given = {name: value.to(self.model.device, dtype_of(self.model)) for name, value in given.items()}
        return with_fields(self.model, given={**self.model.given, **given})


def checked_noise(noise_sampler: NoiseSampler) -> NoiseSampler:
    """Return a noise sampler that raises ValueError for noise of another shape, which could be broadcast silently."""

    def draw(x: Images, index: int) -> Images:
        noise = noise_sampler(x, index)
        if noise.shape != x.shape:
            raise ValueError(f"noise_sampler must return noise of shape {tuple(x.shape)}, got {tuple(noise.shape)}")
        return noise

    return draw


def global_random_states(device: torch.device) -> list[bytes]:
    """Return the states of torch's global random number generators, of the CPU and of a GPU."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    return [state.numpy().tobytes() for state in states]


def note_global_noise(sampler: str) -> None:
    """Warn of a sampler whose images do not follow from the seed."""
    warn(
        f"the sampler {sampler!r}, or its guide, draws from torch's global random number generator (torch.randn): the "
        "images do not follow from the seed; draw the noise of a step by noise_sampler(x, i)"
    )


def note_no_gradient(guide: Guide | None) -> None:
    """Warn of a function as guide that returned None at every step, as one without `return` does."""
    if isinstance(guide, FunctionType):
        warn(
            f"the guide {guide.__name__!r} returned None at every step, so the images are unguided: `return` a gradient"
        )


def checked_steps(steps: Any, sampler: str) -> Iterator[Step]:
    """Yield the steps of a sampler. Raises ValueError for anything else that a user's sampler returns or yields."""
    for step in steps if isinstance(steps, Iterable) else (steps,):
        if not isinstance(step, Step):
            raise ValueError(
                f"the sampler {sampler!r} must yield a samplers.Step for each step, got {type(step).__name__}: write "
                "`yield guided.step(x, x0, i)`, with guided = samplers.guided_model(...)"
            )
        yield step


def check_has_small_images(model: Model) -> None:
    """Raise ValueError if the model upsamples and has no small images yet."""
    if model.upsamples and "low_res" not in model.given:
        raise ValueError("this model upsamples: it needs low_res, the small images to enlarge")


def note_missing_noise(model: Model) -> None:
    """Warn if the first step expects images with less noise than x_T, where sampling begins.

    This happens with a single step in guided-diffusion's spacing, which keeps timestep 0, and with steps that leave out
    the last one, pure noise, of a model that was trained up to it.
    """
    schedule = model.diffusion.schedule
    if (alpha_bar := schedule.alpha_bar[-1].item()) > MAX_INITIAL_ALPHA_BAR:
        warn(
            f"sampling begins with pure noise at timestep {schedule.timesteps[-1].item():g}, where {alpha_bar:.0%} of "
            "the variance is the image: samples will be noise; steps such as trailing1 begin at the noisiest timestep"
        )
    if schedule.origin is not None and schedule.origin.is_pure_noise(-1) and not schedule.is_pure_noise(-1):
        warn(
            "this model has zero terminal SNR, but these steps leave out its last one, pure noise: images will be "
            "worse than with steps such as 25 or trailing25"
        )


def check_finite(x: Images, first: int) -> None:
    """Raise FloatingPointError if a pixel is infinite or NaN. first: index of the first image"""
    finite = x.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = [first + i for i in (~finite).nonzero()[:, 0].tolist()]
        which = f"pixels of image {bad[0]}" if len(bad) == 1 else f"{len(bad)} of images {bad[0]} to {bad[-1]}"
        raise FloatingPointError(
            f"{which} are not finite numbers: the weights may be damaged, the guidance scale too large, or the "
            "precision too low"
        )


def dtype_of(model: Model) -> torch.dtype:
    """Return the number format of samples: float32, or float64 for a network in float64."""
    parameters = model.network.parameters() if isinstance(model.network, torch.nn.Module) else ()
    return torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
