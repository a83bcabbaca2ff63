"""What the bound on gradients does: saturated pixels and accuracy of guided images, with it and without.

    python benchmarks/guidance_bound.py --num 40 --out runs/guidance-bound

The shipped model and classifier are sampled along three noise schedules: their own (linear), a cosine schedule, and a
linear one that ends in pure noise (ᾱ_T = 0). For the latter two the networks are given the timestep of their own
process with the nearest noise level. A pixel is saturated if it is 0 or 255, and white if it is 255. Accuracy: fraction
of the images that the guiding classifier, given clean images, assigns to the target label. Each cell has the values
without and with the bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import admg
from admg import guidance
from admg.checkpoints.model import Model
from admg.diffusion import Diffusion, NoiseSchedule
from admg.generation.sampler_specs import SAMPLERS

SCALES = (0.1, 1.0, 4.0)


class PredictsX0(nn.Module):
    """A network that predicts eps along one process, as one that predicts x0: defined at pure noise too.

    network: network given (x, timesteps, y), with 2C output channels
    schedule: the process that it was trained on
    """

    alpha_bar: Tensor

    def __init__(self, network: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.network, self.config = network, network.config
        self.register_buffer("alpha_bar", schedule.alpha_bar.float())

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        eps = self.network(x, timesteps, y=y)[:, : x.shape[1]]
        alpha_bar = self.alpha_bar[timesteps.round().long()].view(-1, 1, 1, 1)
        x0: Tensor = (x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        return x0


def with_timesteps_of(own: NoiseSchedule, schedule: NoiseSchedule) -> NoiseSchedule:
    """Return a schedule whose timesteps are those of the nearest noise levels of another one."""
    log_snr = [(s.alpha_bar.clamp(1e-12) / (1 - s.alpha_bar)).log().numpy() for s in (own, schedule)]
    timesteps = np.interp(log_snr[1], log_snr[0][::-1], own.timesteps.double().numpy()[::-1]).round()
    return replace(schedule, timesteps=torch.from_numpy(timesteps).long())


def models(model: Model) -> Iterator[tuple[str, Model]]:
    """Yield the shipped model along each noise schedule."""
    own = model.diffusion.schedule
    yield "linear", model
    yield (
        "cosine",
        replace(model, diffusion=model.diffusion.with_schedule(with_timesteps_of(own, NoiseSchedule.cosine()))),
    )
    pure = NoiseSchedule.from_betas([*own.betas[:-1].tolist(), 1.0])
    network = PredictsX0(model.network, own).to(model.device)
    yield (
        "zero terminal SNR",
        replace(model, network=network, diffusion=Diffusion(with_timesteps_of(own, pure), "x0", "fixed_small")),
    )


def share(images: np.ndarray, *values: int) -> float:
    """Return the share of the pixels that have one of these values."""
    return float(np.isin(images, values).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=40)
    parser.add_argument("--steps", default="25")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance-bound"))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    shipped = admg.load("fashion-mnist").to(options.device)
    classifier = admg.load_classifier("fashion-mnist").to(options.device)
    y = torch.arange(options.num) % 10
    rows = [
        "| noise schedule | sampler | scale | saturated | white | accuracy |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    for name, model in models(shipped):
        for sampler in sorted(SAMPLERS, key=lambda sampler: (sampler != "ddim", sampler)):
            for scale in SCALES if sampler == "ddim" else (1.0,):
                saturated, white, accuracy = [], [], []
                for bound in (False, True):
                    guide = guidance.ClassifierGuidance(classifier, scale)
                    found = admg.sample(model, y, guide=guide, sampler=sampler, steps=options.steps,
                                        bound_guidance=bound, progress=False)  # fmt: skip
                    with torch.no_grad():
                        x = found.x.to(options.device)
                        guess = classifier(x, torch.zeros(1, dtype=torch.long, device=x.device)).argmax(1).cpu()
                    saturated.append(share(found.images, 0, 255))
                    white.append(share(found.images, 255))
                    accuracy.append((guess == y).double().mean().item())
                rows.append(
                    f"| {name} | {sampler} | {scale:g} | {saturated[0]:.0%}, {saturated[1]:.0%} | "
                    f"{white[0]:.1%}, {white[1]:.1%} | {accuracy[0]:.0%}, {accuracy[1]:.0%} |"
                )
                print(rows[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
