"""sample(): labels in, images out. What most people call."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from admg import samplers
from admg.checkpoints.model import Labels, Model
from admg.diffusion.gaussian import Images
from admg.engine.compiling import Compile, fast
from admg.engine.memory import batch_size as images_that_fit
from admg.engine.memory import in_batches
from admg.engine.precision import Precision
from admg.guidance import Guide
from admg.samplers import NoiseSampler, Sampler

from .samples import Samples

SAMPLERS: dict[str, Sampler] = {
    name: function for name, function in vars(samplers).items() if inspect.isgeneratorfunction(function)
}


def sample(
    model: Model,
    labels: Sequence[int | str | None] | Tensor,
    *,
    guide: Guide | None = None,
    sampler: str | Sampler = "ddim",
    steps: int | str = 25,
    seed: int = 0,
    batch_size: int | None = None,
    x_T: Images | None = None,
    low_res: Images | None = None,
    noise_sampler: NoiseSampler | None = None,
    unconditional: bool = False,
    first: int = 0,
    precision: Precision = "fp32",
    compile: Compile = "auto",
    progress: bool = True,
) -> Samples:
    """One image for each label.

    labels: names or numbers, None for no label. A conditional model is told them; the guide wants them.
    guide: such as guidance.ClassifierGuidance(classifier, scale=4.0), or any function of a guidance.State
    sampler: the name of one of admg.samplers: ddpm, ddim, heun, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m or unipc, or a
        function called as they are, e.g. functools.partial(samplers.ddim, eta=1.0)
    steps: any respacing: 25, "ddim25", "10,15,20", "karras25", see NoiseSchedule.respace
    seed: image i of a seed is the same, up to rounding, whatever the batch size, and however many processes share the
        work
    first: the number of the first image, for a process that makes images first .. first + N - 1 of a larger set
    batch_size: images at a time; None: as many as fit in memory, up to 64, and half as many from where it runs out
    x_T: the noise to start from (N, C, H, W), instead of the seed's; its size may differ from the model's
    low_res: (N, C, h, w) in [-1, 1], what an upsampling model makes larger
    noise_sampler: (x, index) -> noise of a step, instead of the seed's
    unconditional: if True, the network is not conditioned on the labels; the guide still uses them
    precision: of matrix products: fp32, auto (bf16 where the processor or GPU has it), bf16, or fp16 (on a GPU)
    compile: auto, on or off, see compiling
    ValueError: an unknown label, sampler or respacing; low_res of a wrong size, missing or not wanted.
    """
    numbers = resolve_labels(model, guide, labels)
    sampler = find_sampler(sampler)
    model = model.respace(steps)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if x_T is not None and len(x_T) != len(numbers):
        raise ValueError(f"x_T has {len(x_T)} images for {len(numbers)} labels")
    check_low_res(model, low_res, len(numbers))

    wanted = torch.tensor([-1 if n is None else n for n in numbers], dtype=torch.int64)
    with (
        _progress(len(numbers) * len(model.diffusion), progress) as bar,
        fast(networks_of(model, guide), model.device, precision=precision, compile=compile),
    ):

        def make(batch: slice) -> Images:
            bar.update(batch.start * len(model.diffusion) - bar.n)
            count = len(wanted[batch])
            noise = SeededNoise(seed, range(first + batch.start, first + batch.stop))
            x = noise.draw(model.shape) if x_T is None else x_T[batch]
            labelled = bool((wanted[batch] >= 0).any())
            given = {} if low_res is None else {"low_res": low_res[batch].to(model.device)}
            for step in sampler(
                dataclasses.replace(model, given={**model.given, **given}),
                x.to(model.device),
                y=wanted[batch].to(model.device) if labelled else None,
                guide=guide,
                noise_sampler=noise_sampler or noise,
                unconditional=unconditional,
            ):
                x = step.x
                bar.update(count)
            return x.float().cpu()

        if batch_size is None:
            done = list(
                in_batches(make, len(wanted), batch_that_fits(model, guide, None if x_T is None else x_T.shape[1:]))
            )
        else:
            done = [make(slice(i, min(i + batch_size, len(wanted)))) for i in range(0, len(wanted), batch_size)]
    names = label_table(model, guide)
    return Samples(torch.cat(done), wanted, tuple("" if n is None else names.name(n) for n in numbers))


def networks_of(model: Model, guide: Guide | None) -> list[nn.Module]:
    """The modules that run at each step: the model's, and those that the guide and its parts hold."""
    found, seen, waiting = [], set[int](), [model.network, guide]
    for part in waiting:
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, nn.Module):
            found.append(part)
        elif isinstance(part, list | tuple):
            waiting.extend(part)
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            waiting.extend(getattr(part, field.name, None) for field in dataclasses.fields(part))
    return found


def batch_that_fits(model: Model, guide: Guide | None, shape: Sequence[int] | None = None) -> int:
    """Images (C, H, W), by default as the model makes them, at a time, from its device's free memory; at most 64."""
    channels, height, width = model.shape if shape is None else shape
    return images_that_fit(networks_of(model, guide), (channels, height, width), model.device)


class SeededNoise:
    """Standard normal noise in which image i of a seed has a random stream of its own, drawn on the CPU."""

    def __init__(self, seed: int, images: Sequence[int]):
        self.generators = [
            torch.Generator().manual_seed(int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] >> 1))
            for i in images
        ]

    def draw(self, shape: Sequence[int]) -> Images:
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in self.generators])

    def __call__(self, x: Images, index: int) -> Images:
        noise = self.draw(x.shape[1:])
        return noise.pin_memory().to(x.device, non_blocking=True) if x.is_cuda else noise.to(x.device)


def check_low_res(model: Model, low_res: Images | None, count: int) -> None:
    """ValueError unless low_res is what this model needs for `count` images: nothing, or images of its small size."""
    if low_res is None:
        if model.upsamples and "low_res" not in model.given:
            raise ValueError("this model upsamples: it needs low_res, the small images to make larger")
        return
    if not model.upsamples:
        raise ValueError("low_res is for an upsampling model; this one makes images from noise")
    small = getattr(model.network.config, "small_size", 0)
    side = f"{small}x{small}" if small else "smaller than the model's own"
    fits = low_res.shape[2:] == (small, small) if small else max(low_res.shape[2:]) < max(model.shape[1:])
    if low_res.ndim != 4 or low_res.shape[:2] != (count, model.shape[0]) or not fits:
        raise ValueError(
            f"low_res has shape {tuple(low_res.shape)}: needed are {count} images of {model.shape[0]} channels, {side}"
        )


def find_sampler(sampler: str | Sampler) -> Sampler:
    """The sampler of this name, or the function itself."""
    if callable(sampler):
        return sampler
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}: {', '.join(sorted(SAMPLERS))}")
    return SAMPLERS[sampler]


def label_table(model: Model, guide: Guide | None) -> Labels:
    """The labels that may be asked for: the model's own, else those of the guide's classifier."""
    of_guide = getattr(getattr(guide, "classifier", None), "labels", None)
    return model.labels if model.labels.count or of_guide is None else of_guide


def resolve_labels(model: Model, guide: Guide | None, labels: Sequence[int | str | None] | Tensor) -> list[int | None]:
    table = label_table(model, guide)
    items: Any = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if not items:
        raise ValueError("no labels: ask for at least one image")
    if table.count == 0:  # nothing to check against: numbers go to the guide as they are
        return [None if item is None else int(item) for item in items]
    return [None if item is None else table.number(item) for item in items]


def _progress(total: int, show: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, unit=" image steps", disable=not show, desc="sampling")


def cycle_labels(labels: Sequence[int | str], count: int) -> list[int | str]:
    """`count` labels in equal shares, in order: for 2 labels and 5 images a, b, a, b, a."""
    return list(itertools.islice(itertools.cycle(labels), count))
