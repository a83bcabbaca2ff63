"""A sampler of your own: the Euler method with ancestral noise, in the variables x/sqrt(ᾱ) and σ = sqrt((1 - ᾱ)/ᾱ).
Rows: samples of ddim and of this sampler from the same noise, with classifier guidance.

    python examples/custom_sampler.py --out out
    admg sample --label bag --sampler examples/custom_sampler.py:euler_ancestral --out bags    # on the command line
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

from common import options
from torch import Tensor

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png
from admg.guidance import DiffusionModel, Guide
from admg.samplers import NoiseSampler, Step, gaussian_noise, guided_model, level

LABELS = ("bag", "coat", "dress", "shirt", "sandal")


def euler_ancestral(
    model: DiffusionModel,
    x_T: Tensor,
    *,
    y: Tensor | None = None,
    guide: Guide | None = None,
    noise_sampler: NoiseSampler = gaussian_noise,
    clip: bool = True,
    unconditional: bool = False,
) -> Iterator[Step]:
    """Go from σ down to σ_down by an Euler step, and back up to σ_next with fresh noise of variance σ_up²."""
    x, guided = x_T, guided_model(model, x_T, y, guide, clip, unconditional)
    for i in guided.indices():
        p = guided.predict_guided(x, i)  # evaluates the model and the guide
        now, then = level(model.diffusion, i), level(model.diffusion, i - 1)
        sigma, sigma_next = now.sigma / now.alpha, then.sigma / then.alpha
        sigma_up = sigma_next * sqrt(1 - (sigma_next / sigma) ** 2)
        sigma_down = sqrt(sigma_next**2 - sigma_up**2)
        noise = noise_sampler(x, i) if i > 0 else 0.0
        x = then.alpha * (p.x0 + sigma_down * p.eps + sigma_up * noise)
        yield guided.step(x, p.x0, i)


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="25", num=8, help="number of columns")
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    labels = [LABELS[i % len(LABELS)] for i in range(args.num)]
    guide = admg.guidance.ClassifierGuidance(classifier, scale=4.0)

    samplers = {"ddim": "ddim", "euler_ancestral": euler_ancestral}
    rows = [admg.sample(model, labels, guide=guide, sampler=s, steps=args.steps).images for s in samplers.values()]
    picture = sheet(rows, row_titles=list(samplers), column_titles=labels, cell=96)
    save_png(picture, args.out / "custom_sampler.png")


if __name__ == "__main__":
    main()
