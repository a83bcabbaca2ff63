"""Greys from one bit per pixel. Noise of a known standard deviation is added to a garment, and only the sign of each
pixel is kept. The negative log-likelihood of the bits is the loss, with scale 1.

    python examples/one_bit.py --out out

For a model of colour images, LinearInverse(Grey(), grey, ...) restores colours: see colourisation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import garments, options
from torch import Tensor

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8
from admg.guidance import LossGuidance

LABELS = ("pullover", "sneaker", "dress", "bag", "ankle boot")
NOISE = 0.5  # standard deviation of the noise; pixels are in [-1, 1]
SEEDS = (0, 1, 2, 3)


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="50", num=4, help="number of rows, at most 5")
    model, labels = admg.load("fashion-mnist"), LABELS[: args.num]
    images = garments(model, labels, first=3)
    bits = torch.sign(images + NOISE * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)))

    def surprise(x0: Tensor) -> Tensor:
        """Return -log p(bits | x0), where a bit is +1 with probability Φ(x0 / NOISE)."""
        return -torch.special.log_ndtr(bits * x0 / NOISE).flatten(1).sum(1)

    samples = [
        admg.sample(
            model, num=len(labels), unconditional=True, guide=LossGuidance(surprise), steps=args.steps, seed=seed
        )
        for seed in SEEDS
    ]

    mean = torch.stack([s.x for s in samples]).mean(0)
    columns = [to_uint8(images), to_uint8(bits), *(s.images for s in samples), to_uint8(mean)]
    titles = ["image", "one bit", "restored", *["again"] * (len(SEEDS) - 1), "their mean"]
    picture = sheet(list(zip(*columns)), row_titles=labels, column_titles=titles, cell=96)
    save_png(picture, args.out / "one_bit.png")


if __name__ == "__main__":
    main()
