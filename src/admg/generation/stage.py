"""A stage of a job: one model's pass over all images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.samplers import Step

from .contact_sheet import Layout, contact_sheet
from .edit import lowest_steps
from .identity import network_record
from .images import to_float, to_uint8
from .labels import label_names
from .recipe import BatchSampler, Inputs, Recipe
from .shards import NpzImages, Shards
from .starts import Starts
from .upsample import UPSAMPLER_SEED

SHARDS, SHARD_IMAGES, SHARD_BYTES = 500, 256, 64 << 20


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One model's pass over all images: from labels, and small images if the model upsamples, to one .npz.

    out: folder of the .npz
    model: model with all its steps
    recipe: how images are drawn
    labels: label number of each image, or None
    table: names of the labels
    name: name of the model, for titles
    chosen: how the labels were chosen, for the record
    base: .npz of the small images, which an earlier stage may write
    origin: where the small images come from, for the record
    starts: where sampling begins, unless at the seed's noise
    layout: layout of sheet.png
    """

    out: Path
    model: Model
    recipe: Recipe
    labels: Sequence[int | None]
    table: Labels
    name: str = ""
    chosen: Any = None
    base: Path | None = None
    origin: Any = None
    starts: Starts | None = None
    layout: Layout = contact_sheet

    @cached_property
    def record(self) -> dict[str, Any]:
        """Everything that determines the images, in JSON types."""
        return {
            "model": network_record(self.model, self.name),
            **self.recipe.record(self.model.device),
            "steps": str(self.model.explicit(self.recipe.steps)),
            "labels": self.chosen,
            "base": self.origin,
            "start": self.starts and self.starts.record,
        }

    @property
    def title(self) -> str:
        return f"{self.name}, {self.recipe.title}" if self.name else self.recipe.title

    @property
    def label_names(self) -> list[str]:
        """Name of each image's label, "" for no label."""
        return label_names(self.table, self.labels)

    @property
    def batch(self) -> int:
        """The unit of shard sizes, in images: by default, as many as have the pixels of 64 images of 64x64."""
        return self.recipe.batch_size or max(1, min(64, 64**3 // (self.model.shape[1] * self.model.shape[2])))

    @property
    def steps(self) -> int:
        """Number of steps of an image."""
        return len(self._respaced.diffusion)

    def shards(self, size: int | None = None, processes: int = 1) -> Shards:
        """Return the shards: multiples of the batch size, small enough that an interruption costs little.

        size: images per shard; None: at most 256 images and 64 MB, and at least one shard for each process
        processes: number of processes that share the images
        """
        channels, height, width = self.model.shape
        most = min(SHARD_IMAGES, SHARD_BYTES // (channels * height * width), -(-len(self.labels) // SHARDS))
        labelled = any(label is not None for label in self.labels)
        whole = max(1, most // self.batch) * self.batch
        size = size or (whole if processes == 1 else min(whole, -(-len(self.labels) // processes)))
        return Shards(self.out, len(self.labels), size, (height, width, channels), labelled)

    def try_out(self) -> None:
        """Run one step of one image. Raises ValueError if the model, the sampler and the guide do not fit together."""
        labelled = next((i for i, label in enumerate(self.labels) if label is not None), 0)
        images = range(labelled, labelled + 1)
        base = None if self.base is None else NpzImages(self.base)
        recipe = dataclasses.replace(self._recipe, compile="off")
        inputs = self.inputs_of(images, base)
        with BatchSampler(self._respaced, recipe).ready(self.labels) as sampler:
            sampler.draw(self.labels_of(images), inputs, slice(0, 1), first=labelled, max_steps=1)

    def draw_steps(self, images: range, on_step: Callable[[Step], Any]) -> None:
        """Draw the first images, whose indices begin at 0, and call `on_step` with each step of the sampler."""
        with BatchSampler(self._respaced, self._recipe).ready(self.labels) as sampler:
            sampler.draw(self.labels_of(images), self.inputs_of(images, None), slice(0, len(images)), on_step=on_step)

    @contextmanager
    def maker(self) -> Iterator[Maker]:
        """Context manager that returns a Maker, whose networks are accelerated once for all shards."""
        with BatchSampler(self._respaced, self._recipe).ready(self.labels) as sampler:
            yield Maker(self, sampler, None if self.base is None else NpzImages(self.base).verify())

    @cached_property
    def _respaced(self) -> Model:
        model = self.model.respace(self.recipe.steps)
        return model if self.starts is None else lowest_steps(model, self.starts.strength)

    @cached_property
    def _recipe(self) -> Recipe:
        if not self.model.upsamples:
            return self.recipe
        return dataclasses.replace(self.recipe, seed=self.recipe.seed + UPSAMPLER_SEED)

    def labels_of(self, images: range) -> Sequence[int | None]:
        return self.labels[images.start : images.stop]

    def inputs_of(self, images: range, base: NpzImages | None) -> Inputs:
        starts = self.starts
        return Inputs(
            low_res=None if base is None else to_float(base[images.start : images.stop]),
            start=None if starts is None else lambda batch: starts.start(images[batch]),
        )


@dataclass(frozen=True)
class Maker:
    """Makes the images of a stage with accelerated networks."""

    stage: Stage
    sampler: BatchSampler
    base: NpzImages | None

    def make(self, images: range, on_progress: Callable[[float], Any]) -> UInt8[np.ndarray, "n h w c"]:
        """Return the images at these indices. Raises FloatingPointError if one is not finite.

        on_progress: called with the number of images done, a fraction after each step
        """
        stage, steps = self.stage, self.stage.steps
        parts: list[np.ndarray] = []
        batches = self.sampler.in_batches(
            stage.labels_of(images),
            stage.inputs_of(images, self.base),
            first=images.start,
            on_progress=lambda done: on_progress(done / steps),
        )
        for x in batches:
            parts.append(to_uint8(x))
        return np.concatenate(parts)
