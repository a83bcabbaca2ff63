"""The loss by noise level on held-out images and on training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from admg.checkpoints.model import Model
from admg.data import ImageDataset
from admg.data.spread import spread_indices
from admg.diffusion.losses import loss_terms
from admg.diffusion.noise import SeededNoise
from admg.engine import memory
from admg.engine.acceleration import accelerate_parts
from admg.generation.modes import evaluation_mode
from admg.generation.recipe import dtype_of

from .curves import plot_levels
from .tasks import check_val_images
from .timesteps import evenly_spaced_timesteps


class Measure(Protocol):
    """A periodic measurement of the averaged weights during training."""

    @property
    def every(self) -> int: ...

    def __call__(self, task: Any, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Return metrics for the log. Pictures may be written to the folder, with the step in their names."""
        ...


@dataclass(frozen=True)
class ValidationLoss:
    """Measures the loss at ten noise levels on held-out images, and on as many training images.

    The loss is the mean squared error of the network's prediction (L_simple). Images are as in training, but without
    augmentation and label dropout. Each image always has the same noise, which makes the curves smooth. The
    gap between the two losses is overfitting.

    every: number of steps between measurements
    held_out: images that the network is not trained on
    training: training images
    num: number of images of each kind, spread over all
    """

    every: int
    held_out: ImageDataset
    training: ImageDataset
    num: int

    def __post_init__(self) -> None:
        check_val_images(self.num)

    def __call__(self, task: Any, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Return the mean of each loss, and the losses at each level; draw them as loss_<step>.png.

        task: a DiffusionTask or an UpsamplerTask
        """
        model: Model = task.as_model(network, {})
        shrink = task.shrink if model.upsamples else None
        count = min(self.num, len(self.held_out), len(self.training))
        sets = {"train": self.training, "val": self.held_out}
        losses = {name: losses_by_level(model, images, count, shrink) for name, images in sets.items()}
        plot_levels(losses, f"step {step}", "mean squared error", folder / f"loss_{step:07d}.png")
        means = {f"{name}_loss": sum(values.values()) / len(values) for name, values in losses.items()}
        return means | {f"{name}_loss_t{t}": value for name, values in losses.items() for t, value in values.items()}


@torch.no_grad()
def losses_by_level(model: Model, images: ImageDataset, num: int, shrink: Any = None) -> dict[int, float]:
    """Return the mean loss of some images at each noise level.

    num: number of images, spread over all
    shrink: function that makes the low-resolution images of an upsampler

    Raises FloatingPointError if a loss is not finite.
    """
    device = model.device
    chosen = spread_indices(len(images), num)
    sums = dict.fromkeys(evenly_spaced_timesteps(len(model.diffusion)), 0.0)
    size = memory.batch_size([model.network], model.shape, device)
    with evaluation_mode(model.network):
        fast = accelerate_parts(model, precision="fp32")
        at = range(len(chosen))
        for batch in memory.in_batches(lambda part: _losses(fast, images, chosen, at[part], sums, shrink), num, size):
            for t, value in zip(sums, batch.tolist()):
                sums[t] += value
    if not all(torch.isfinite(torch.tensor(list(sums.values())))):
        raise FloatingPointError("the validation loss is not finite")
    return {t: total / len(chosen) for t, total in sums.items()}


def _losses(
    model: Model, images: ImageDataset, chosen: Sequence[int], at: Sequence[int], levels: Any, shrink: Any
) -> Tensor:
    """Return the sum of the losses of a batch at each level.

    at: positions of the images among the chosen ones, which determine their noise
    """
    x, y = images.batch([chosen[i] for i in at])
    x, y = x.to(model.device, dtype_of(model)), y.to(model.device)
    given: dict[str, Any] = {"y": y} if model.conditional else {}
    if shrink is not None:
        given["low_res"] = shrink(x)
    noise = SeededNoise(0, at)
    found = []
    for t in levels:
        ts = torch.full((len(x),), t, device=model.device)
        terms = loss_terms(model.diffusion, model.output, x, ts, noise(x, t), objective="simple", **given)
        found.append(terms["mse"].double().sum())
    return torch.stack(found)
