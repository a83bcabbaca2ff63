"""Tasks: diffusion and classification of noised images; super-resolution is in upsampler.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.networks import our_networks
from admg.config import with_fields
from admg.data import DataError, ImageDataset
from admg.data.stream import spread_batches
from admg.diffusion import Diffusion
from admg.diffusion.losses import VLB_WEIGHT, Objective, loss_terms
from admg.diffusion.weighting import StepWeights, Weighting
from admg.generation.contact_sheet import sheet
from admg.generation.fonts import label_title
from admg.generation.images import save_png
from admg.generation.sample import sample

from .config import ObjectiveConfig
from .curves import plot_accuracy
from .timesteps import Timesteps, evenly_spaced_timesteps

PREVIEW_STEPS = 25
"""Number of steps of the samples in previews."""
M = TypeVar("M", bound=Model | Classifier)
M_co = TypeVar("M_co", bound=Model | Classifier, covariant=True)


class Task(Protocol[M_co]):
    """A network, the loss that it minimises, and its previews during training."""

    @property
    def network(self) -> nn.Module: ...

    def draw(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return all random numbers of the loss of images of this shape (N, C, S, S): tensors (N, ...) on the CPU."""
        ...

    @property
    def loss(self) -> Callable[..., dict[str, Tensor]]:
        """Method that returns the terms (N,) of each image, "loss" among them, given x_0, labels and rows of `draw`.

        On a GPU it is captured in a CUDA graph and replayed for other batches: it must depend only on the tensors.
        """
        ...

    def preview(self, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Draw or measure the results of the averaged network, and return metrics for the log."""
        ...

    def as_model(self, network: nn.Module, training: dict[str, Any]) -> M_co:
        """Return the averaged network as a model or classifier; `training` is its provenance."""
        ...


@dataclass
class DiffusionTask:
    """A diffusion model, learned by L_simple, L_hybrid or L_vlb at a random timestep of each image.

    objective, label_dropout, vlb_weight: see ObjectiveConfig, whose `task_options` are all of these arguments
    weighting: weight of the mean squared error by noise level
    timesteps: distribution of the timesteps

    Raises ValueError if an option does not fit the diffusion process of the model.
    """

    model: Model
    objective: Objective = "hybrid"
    label_dropout: float = 0.1
    vlb_weight: float | None = None
    weighting: Weighting = Weighting()
    timesteps: Timesteps = Timesteps()

    def __post_init__(self) -> None:
        ObjectiveConfig(
            objective=self.objective,
            label_dropout=self.label_dropout,
            vlb_weight=self.vlb_weight,
            weighting=self.weighting.kind,
        )  # checks them
        diffusion = self.model.diffusion
        check_whole(diffusion)
        self.timesteps.check_schedule(diffusion.schedule)
        if self.vlb_weight is not None and not diffusion.learns_variance:
            raise ValueError(f"vlb_weight needs a learned variance, got {diffusion.variance}")
        self._weights = None if self.weighting.kind == "uniform" else StepWeights(self.weighting, diffusion)

    @property
    def network(self) -> nn.Module:
        return self.model.network

    def draw(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return t (or the numbers that determine it, see Timesteps.draw), noise, and whether each label is dropped."""
        t = self.timesteps.draw(self.model.diffusion.schedule, shape[0], generator)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        return t, noise, torch.rand(shape[0], generator=generator, dtype=torch.float32) < self.label_dropout

    def loss(
        self, x: Tensor, y: Tensor, t: Tensor, noise: Tensor, dropped: Tensor, **conditioning: Any
    ) -> dict[str, Tensor]:
        if self.model.conditional:
            conditioning["y"] = torch.where(dropped, -1, y)
        return loss_terms(
            self.model.diffusion,
            self.model.output,
            x,
            t,
            noise,
            objective=self.objective,
            vlb_weight=VLB_WEIGHT if self.vlb_weight is None else self.vlb_weight,
            weights=self._weights,
            **conditioning,
        )

    def preview(self, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Draw four images of each of at most ten labels with a few steps of DDIM, always from the same noise."""
        model = with_fields(self.model, network=network)
        shown = list(range(min(10, model.labels.count))) if model.conditional else [None] * 4
        steps = min(PREVIEW_STEPS, len(model.diffusion))
        samples = sample(model, [label for label in shown for _ in range(4)], steps=steps, progress=False)
        rows = [samples.images[4 * i : 4 * i + 4] for i in range(len(shown))]
        titles = [label_title(model.labels.name(label), label) for label in shown if label is not None]
        save_png(sheet(rows, row_titles=titles, title=f"step {step}"), folder / f"step_{step:07d}.png")
        return {}

    def as_model(self, network: nn.Module, training: dict[str, Any]) -> Model:
        return with_fields(self.model, network=network, training=training)


@dataclass
class ClassifierTask:
    """A noisy classifier, learned by cross-entropy on images noised to a uniformly random timestep.

    validation: validation images (optional)
    val_images: number of those images, spread over all
    training: training images (optional), of which as many are also measured: a higher accuracy there is overfitting
    noised: False for a classifier of clean images, at timestep 0 alone

    Raises ValueError if the process of the classifier is respaced, or for fewer validation images than one.
    """

    classifier: Classifier
    validation: ImageDataset | None = None
    val_images: int = 1000
    noised: bool = True
    training: ImageDataset | None = None

    def __post_init__(self) -> None:
        check_whole(self.classifier.diffusion)
        check_val_images(self.val_images)

    @property
    def network(self) -> nn.Module:
        return self.classifier.network

    def check_labels(self, y: Tensor) -> None:
        """Raise DataError if an image of a batch has no label: a classifier learns nothing from it."""
        if bool((y < 0).any()):
            raise DataError("every image needs a label for training a classifier, but some have none")

    def draw(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return t and noise."""
        t = torch.randint(len(self.classifier.diffusion), shape[:1], generator=generator)
        return t, torch.randn(shape, generator=generator, dtype=torch.float32)

    def loss(self, x: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        diffusion = self.classifier.diffusion
        t = t if self.noised else torch.zeros_like(t)
        x_t = diffusion.q_sample(x, t, noise) if self.noised else x
        logits = self.network(x_t, diffusion.timestep(t, x.device)).to(x.dtype)
        return {"loss": F.cross_entropy(logits, y, reduction="none"), "accuracy": (logits.argmax(1) == y).float()}

    def preview(self, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Measure the accuracy on validation and training images at ten noise levels, from clean ones to pure noise."""
        if self.validation is None:
            return {}
        accuracy = {"val": self._accuracy(network, self.validation, self.val_images)}
        if self.training is not None:
            accuracy["train"] = self._accuracy(network, self.training, min(self.val_images, len(self.validation)))
        plot_accuracy(accuracy, self.classifier.labels.count, f"step {step}", folder / f"accuracy_{step:07d}.png")
        means = {f"{name}_accuracy": sum(values.values()) / len(values) for name, values in accuracy.items()}
        return means | {f"{name}_accuracy_t{t}": a for name, values in accuracy.items() for t, a in values.items()}

    @torch.no_grad()
    def _accuracy(self, network: nn.Module, images: ImageDataset, num: int) -> dict[int, float]:
        """Return the accuracy on some images at each noise level. Their noise is the same at each call."""
        diffusion = self.classifier.diffusion
        device = next(network.parameters()).device
        right, count = dict.fromkeys(evenly_spaced_timesteps(len(diffusion)), 0), 0
        generator = torch.Generator().manual_seed(0)
        for x, y in spread_batches(images, num, 250):
            self.check_labels(y)
            for t in right:
                noise = torch.randn(x.shape, generator=generator, dtype=torch.float32)
                x_t = diffusion.q_sample(x, t, noise).to(device)
                logits = network(x_t, diffusion.timestep(t, device))
                right[t] += int((logits.argmax(1).cpu() == y).sum())
            count += len(x)
        return {t: r / count for t, r in right.items()}

    def as_model(self, network: nn.Module, training: dict[str, Any]) -> Classifier:
        c = self.classifier
        return Classifier(network, c.diffusion, c.labels, c.config, training)


def part_of(task: Any) -> Any:
    """Return the model or classifier that a task trains, or None if a user's task has neither."""
    return getattr(task, "model", None) or getattr(task, "classifier", None)


def check_whole(diffusion: Diffusion) -> None:
    """Raise ValueError for a respaced process: it would be trained at some timesteps, and saved with all of them."""
    origin = diffusion.schedule.origin
    if origin is not None:
        raise ValueError(
            f"the diffusion process is respaced to {len(diffusion)} of {len(origin)} steps: train it with all of them, "
            "and respace the trained model"
        )


def check_val_images(num: int) -> None:
    """Raise ValueError for fewer validation images than one."""
    if num < 1:
        raise ValueError(f"val_images must be at least 1, got {num}")


def check_one_call(task: Any, labels: Tensor | None = None) -> None:
    """Raise ValueError if a process may call the network without labels alone, which leaves its embedding unused.

    labels: labels of a batch, -1 for none; None to check the task before training
    """
    model = getattr(task, "model", None)
    if not isinstance(model, Model) or our_networks(model.network) or not model.conditional:
        return
    dropped = getattr(task, "label_dropout", 0) > 0 if labels is None else bool((labels < 0).any())
    if dropped and model.null_label is None:
        what = "label dropout" if labels is None else "images without a label"
        raise ValueError(
            f"training {type(model.network).__name__} with {what} in several processes requires "
            "Model(..., null_label=...), the label that the network takes for an image without a label"
        )
