"""The task of an upsampler: super-resolution of images, given small copies of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from admg.checkpoints.model import Model
from admg.checkpoints.networks import our_networks
from admg.config import with_fields
from admg.data import ImageDataset, evaluation_batches
from admg.diffusion.augmentation import blurred, with_noise
from admg.diffusion.losses import Objective
from admg.diffusion.weighting import Weighting
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8
from admg.generation.sample import sample
from admg.models import SuperResUNet

from . import tasks
from .augmentation import AugmentConfig, draw_augmentation
from .tasks import DiffusionTask
from .timesteps import Timesteps


@dataclass
class UpsamplerTask:
    """A super-resolution model, which learns as a DiffusionTask does, given a small copy of each image.

    The small copy is made as in guided-diffusion's super_res_train.py, by averaging areas of pixels.

    small_size: side of the small copies in pixels
    objective, label_dropout, vlb_weight, weighting, timesteps: see DiffusionTask
    augment_blur: see AugmentConfig; `augment_noise` is a field of the network
    examples: images that previews enlarge (optional)
    """

    model: Model
    small_size: int
    objective: Objective = "hybrid"
    label_dropout: float = 0.1
    augment_blur: float = 0.0
    examples: ImageDataset | None = None
    vlb_weight: float | None = None
    weighting: Weighting = Weighting()
    timesteps: Timesteps = Timesteps()

    def __post_init__(self) -> None:
        self.diffusion_task = DiffusionTask(
            self.model, self.objective, self.label_dropout, self.vlb_weight, self.weighting, self.timesteps
        )
        AugmentConfig(augment_blur=self.augment_blur)  # checks it
        networks = our_networks(self.network, SuperResUNet)
        self.augment_noise = float(networks[0].config.augment_noise) if networks else 0.0
        if not 0 < self.small_size < self.model.shape[1]:
            raise ValueError(f"small_size must be from 1 to {self.model.shape[1] - 1}, got {self.small_size}")
        own = networks[0].config.small_size if networks else 0
        if own and own != self.small_size:
            raise ValueError(f"small_size must be that of the network, {own}, got {self.small_size}")

    @property
    def network(self) -> nn.Module:
        return self.model.network

    def draw(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the random numbers of a DiffusionTask, and those of draw_augmentation() if there is augmentation."""
        drawn = self.diffusion_task.draw(shape, generator)
        small = torch.Size([*shape[:2], self.small_size, self.small_size])
        return (*drawn, *draw_augmentation(small, self.augment_noise, self.augment_blur, generator))

    def loss(self, x: Tensor, y: Tensor, *drawn: Tensor) -> dict[str, Tensor]:
        conditioning = {"low_res": self.shrink(x)}
        if self.augment_noise or self.augment_blur:
            *drawn, level, noise, sigma = drawn  # type: ignore[assignment]
            conditioning["low_res"] = with_noise(blurred(conditioning["low_res"], sigma), level, noise)
            if self.augment_noise:
                conditioning["level"] = level
        return self.diffusion_task.loss(x, y, *drawn, **conditioning)

    def shrink(self, x: Tensor) -> Tensor:
        """Return the small copies (N, C, s, s) of images (N, C, S, S)."""
        return F.interpolate(x, self.small_size, mode="area")

    def preview(self, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Draw up to eight images: the small copy, the copy enlarged with a few steps of DDIM, and the original."""
        if self.examples is None:
            return {}
        model = with_fields(self.model, network=network)
        x, y = next(evaluation_batches(self.examples, 8))
        labels = [int(label) if model.conditional and label >= 0 else None for label in y]
        small = self.shrink(x)
        steps = min(tasks.PREVIEW_STEPS, len(model.diffusion))
        large = sample(model, labels, low_res=small, steps=steps, progress=False).images
        rows = [to_uint8(F.interpolate(small, x.shape[2:])), large, to_uint8(x)]
        titles = [f"{self.small_size} pixels", "enlarged", "original"]
        save_png(sheet(rows, row_titles=titles, title=f"step {step}"), folder / f"step_{step:07d}.png")
        return {}

    def as_model(self, network: nn.Module, training: dict[str, Any]) -> Model:
        return self.diffusion_task.as_model(network, training)
