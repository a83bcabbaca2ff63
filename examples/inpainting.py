"""Inpainting: known pixels of a garment stay, and the others are sampled. Compares the gradient of the measurement's
likelihood (LinearInverse) with RePaint. Both condition the model on the label.

    python examples/inpainting.py --out out
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import garments, options

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8
from admg.guidance import LinearInverse, Mask

LABELS = ("coat", "ankle boot", "dress", "bag", "shirt", "sandal")


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="50", num=5, help="number of rows, at most 6")
    model, labels = admg.load("fashion-mnist"), LABELS[: args.num]
    images = garments(model, labels)
    known = torch.ones(model.shape[1:], dtype=torch.bool)
    known[8:24, 14:30] = False

    mask, length = Mask(known), min(5, len(model.respace(args.steps).diffusion) - 1)
    inverse = LinearInverse(mask, mask(images), noise_std=0.05, prior_std=0.5)
    guided = [admg.sample(model, labels, guide=inverse, steps=args.steps, seed=seed) for seed in (0, 1)]
    repaint = admg.samplers.repaint(images, known, jump_length=length, resamplings=4)
    painted = [admg.sample(model, labels, sampler=repaint, steps=args.steps, seed=seed) for seed in (0, 1)]

    columns = [to_uint8(images), to_uint8(torch.where(known, images, torch.tensor(0.0)))]
    columns += [samples.images for samples in guided + painted]
    titles = ["image", "known", "likelihood", "again", "RePaint", "again"]
    save_png(sheet(list(zip(*columns)), row_titles=labels, column_titles=titles, cell=96), args.out / "inpainting.png")


if __name__ == "__main__":
    main()
