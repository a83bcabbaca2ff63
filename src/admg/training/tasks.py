"""What is learned in `admg train` and `admg train-classifier`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from admg.checkpoints.model import Classifier, Model
from admg.data import evaluation_batches
from admg.diffusion.losses import Objective, loss_terms
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png
from admg.generation.sample import sample

from .curves import plot_accuracy


@dataclass
class LearnDiffusion:
    """A diffusion model, by L_simple, L_hybrid or L_vlb at a uniformly random step of each image.

    label_dropout: probability that an image's label is dropped, so that one network is conditional and unconditional
    """

    model: Model
    objective: Objective = "hybrid"
    label_dropout: float = 0.1

    @property
    def network(self) -> nn.Module:
        return self.model.network

    def draw(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """x_0, the labels that are told (-1: dropped), t and noise."""
        t = torch.randint(len(self.model.diffusion), (len(x),), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        dropped = torch.rand(len(x), generator=generator) < self.label_dropout
        return x, torch.where(dropped, -1, y), t, noise

    def loss(self, x: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        told = y if self.model.conditional else None
        return loss_terms(self.model.diffusion, self.network, x, t, noise, objective=self.objective, y=told)

    def preview(self, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Four images of each of at most ten labels, by 25 steps of DDIM, always from the same noise."""
        model = Model(network, self.model.diffusion, self.model.shape, self.model.labels)
        shown = list(range(min(10, model.labels.count))) if model.conditional else [None] * 4
        steps = min(25, len(model.diffusion))
        samples = sample(model, [label for label in shown for _ in range(4)], steps=steps, progress=False)
        rows = [samples.images[4 * i : 4 * i + 4] for i in range(len(shown))]
        titles = [model.labels.name(label) for label in shown if label is not None]
        save_png(sheet(rows, row_titles=titles, title=f"step {step}"), folder / f"step_{step:07d}.png")
        return {}

    def save(self, network: nn.Module, folder: Path, training: dict[str, Any]) -> None:
        m = self.model
        Model(network, m.diffusion, m.shape, m.labels, m.config, training).save(folder)


@dataclass
class LearnClassifier:
    """A noisy classifier, by cross-entropy on images noised to a uniformly random step of the same forward process.

    validation: images that it is measured on; val_images: how many of them
    """

    classifier: Classifier
    validation: Any = None
    val_images: int = 1000

    @property
    def network(self) -> nn.Module:
        return self.classifier.network

    def draw(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """x_0, labels, t and noise."""
        t = torch.randint(len(self.classifier.diffusion), (len(x),), generator=generator)
        return x, y, t, torch.randn(x.shape, generator=generator)

    def loss(self, x: Tensor, y: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        diffusion = self.classifier.diffusion
        logits = self.network(diffusion.q_sample(x, t, noise), diffusion.timestep(t, x.device)).float()
        return {"loss": F.cross_entropy(logits, y, reduction="none"), "accuracy": (logits.argmax(1) == y).float()}

    @torch.no_grad()
    def preview(self, network: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Accuracy on validation images at ten noise levels from clean to the end of the process."""
        if self.validation is None:
            return {}
        diffusion = self.classifier.diffusion
        device = next(network.parameters()).device
        levels = [round(k * (len(diffusion) - 1) / 9) for k in range(10)]
        right, count = dict.fromkeys(levels, 0), 0
        generator = torch.Generator().manual_seed(0)
        for x, y in evaluation_batches(self.validation, 250):
            for t in levels:
                noise = torch.randn(x.shape, generator=generator)
                x_t = diffusion.q_sample(x, t, noise).to(device)
                logits = network(x_t, diffusion.timestep(t, device))
                right[t] += int((logits.argmax(1).cpu() == y).sum())
            count += len(x)
            if count >= self.val_images:
                break
        accuracy = {t: r / count for t, r in right.items()}
        plot_accuracy(accuracy, self.classifier.labels.count, f"step {step}", folder / f"accuracy_{step:07d}.png")
        means = {f"val_accuracy_t{t}": a for t, a in accuracy.items()}
        return {"val_accuracy": sum(accuracy.values()) / len(accuracy)} | means

    def save(self, network: nn.Module, folder: Path, training: dict[str, Any]) -> None:
        c = self.classifier
        Classifier(network, c.diffusion, c.labels, c.config, training).save(folder)
