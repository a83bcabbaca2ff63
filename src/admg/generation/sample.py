"""sample(): labels in, images out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from admg.checkpoints.loading import as_model
from admg.checkpoints.model import Model
from admg.diffusion.gaussian import Images
from admg.diffusion.signed import check_noise, check_signed
from admg.engine.compiling import Compile
from admg.engine.precision import Precision
from admg.guidance import Guide
from admg.samplers import NoiseSampler, Sampler

from .labels import LabelsArgument, as_tensor, check_labels_used, label_names, label_table, resolve_labels
from .recipe import BatchSampler, Inputs, Recipe, check_has_small_images
from .samples import Samples


def sample(
    model: Model | str | Path,
    labels: LabelsArgument = None,
    *,
    num: int | None = None,
    guide: Guide | None = None,
    sampler: str | Sampler = "ddim",
    steps: int | str = 25,
    seed: int = 0,
    unconditional: bool = False,
    bound_guidance: bool = True,
    batch_size: int | None = None,
    x_T: Images | None = None,
    noise_sampler: NoiseSampler | None = None,
    low_res: Images | None = None,
    augment_level: float = 0.0,
    first: int = 0,
    precision: Precision = "fp32",
    compile: Compile = "auto",
    progress: bool = True,
) -> Samples:
    """Generate images of these labels.

    model: a Model, or anything that admg.load accepts
    labels: one label or one per image: names (str), numbers (int), None or -1 for no label, or a tensor of numbers. A
        conditional network and the guide both receive them
    num: number of images, in equal shares of the labels; None: one image per label
    guide: for example guidance.ClassifierGuidance(classifier, scale=4.0), or a function of a guidance.State
    sampler: the name of a sampler in admg.samplers (ddpm, ddim, heun, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc),
        "path/to/file.py:name", or a function with the same signature, such as functools.partial(samplers.ddim, eta=1.0)
    steps: respacing of the schedule: 25, "ddim25", "10,15,20", "karras25", see NoiseSchedule.respace
    seed: image i of a seed is the same, up to rounding, whatever the batch size and the number of processes
    unconditional: if True, the network is not conditioned on the labels; the guide still uses them
    bound_guidance: whether gradients of the guide are limited to what images in [-1, 1] make possible, see
        guidance.Bounded; False for the paper's algorithm and guided-diffusion's results
    batch_size: images per batch; None: as many as fit in memory, at most 64, halved whenever memory runs out
    x_T: noise of unit variance to start from (N, C, H, W), instead of the seed's; its height and width may differ from
        the model's
    noise_sampler: (x, index) -> noise of a step, of the shape of x, instead of the seed's
    low_res: (N, C, h, w) in [-1, 1], the small images for an upsampling model
    augment_level: level of noise to add to them, see upsample()
    first: index of the first image, for a process that generates images first .. first + N - 1 of a larger set
    precision: number format of matrix products: fp32, auto (bf16 where it is native), bf16, or fp16 (on GPUs)
    compile: whether torch.compile builds the networks first: auto (no), on or off
    progress: whether to show a progress bar
    Raises ValueError for an unknown label, sampler or respacing, for noise of another shape or scale, and for low_res
    or a level that do not fit the model; FloatingPointError if an image is not finite, as after an overflow.

    >>> import admg
    >>> samples = admg.sample("fashion-mnist", "coat", num=2, steps=2, progress=False)
    >>> samples
    Samples(2 images of 32x32, 1 channel; labels: Coat)
    """
    model = as_model(model)
    numbers = resolve_labels(model, guide, labels, num)
    if not model.upsamples:  # images of an upsampler may keep the labels of the small ones
        check_labels_used(model, guide, unconditional, numbers)
    recipe = Recipe(
        guide=guide, sampler=sampler, steps=steps, seed=seed, unconditional=unconditional,
        bound_guidance=bound_guidance, batch_size=batch_size, precision=precision, compile=compile,
        augment_level=augment_level,
    )  # fmt: skip
    if x_T is not None:
        check_noise(x_T)
        if len(x_T) != len(numbers):
            raise ValueError(f"x_T has {len(x_T)} images for {len(numbers)} labels")
        if x_T.shape[1] != model.shape[0]:
            raise ValueError(f"x_T must have the channels of the model's images, {model.shape[0]}, got {x_T.shape[1]}")
    check_low_res(model, low_res, len(numbers))
    inputs = Inputs(x_T=x_T, low_res=low_res, noise_sampler=noise_sampler)
    return draw_samples(BatchSampler(model.respace(steps), recipe), numbers, inputs, first=first, progress=progress)


def draw_samples(
    sampler: BatchSampler, numbers: list[int | None], inputs: Inputs, *, first: int = 0, progress: bool = True
) -> Samples:
    """Draw images of these label numbers in batches, with accelerated networks and a progress bar."""
    names = label_names(label_table(sampler.model, sampler.recipe.guide), numbers)
    total = len(numbers) * len(sampler.model.diffusion)
    halve = sampler.recipe.batch_size is None  # a batch size that was given is kept
    with sampler.ready(numbers) as fast, progress_bar(total, progress) as bar:

        def on_progress(done: int) -> None:
            bar.update(done - bar.n)

        x = torch.cat([*fast.in_batches(numbers, inputs, first=first, halve=halve, on_progress=on_progress)])
    y = as_tensor(numbers)
    return Samples(x, y, tuple(names))


def check_low_res(model: Model, low_res: Images | None, count: int) -> None:
    """Raise ValueError unless low_res fits the model: None, or `count` images of its small size, in about [-1, 1]."""
    if low_res is None:
        check_has_small_images(model)
        return
    if not model.upsamples:
        raise ValueError("low_res requires an upsampling model; this one makes images from noise")
    small = getattr(model.network.config, "small_size", 0)
    side = f"{small}x{small}" if small else "smaller than the model's own"
    fits = low_res.shape[2:] == (small, small) if small else max(low_res.shape[2:]) < max(model.shape[1:])
    if low_res.ndim != 4 or low_res.shape[:2] != (count, model.shape[0]) or not fits:
        raise ValueError(
            f"low_res must be {count} images of {model.shape[0]} channels, {side}, got shape {tuple(low_res.shape)}"
        )
    check_signed(low_res, "low_res")


def progress_bar(total: int, show: bool, activity: str = "sampling") -> Any:
    """Return a progress bar of image steps."""
    from tqdm.auto import tqdm

    return tqdm(total=total, unit=" image steps", disable=not show, desc=activity)
