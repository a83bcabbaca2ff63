"""Super-resolution and deblurring: images that agree with a measurement y = A(x) + noise of known deviation. Left 8x8
pixels to 32x32, right a Gaussian blur undone; the model is told no label.

    python examples/super_resolution.py --out out
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import garments, options
from torch.nn.functional import interpolate

import admg
from admg.guidance import Blur, Downsample, Interval, LinearInverse
from admg.pictures import save_png, sheet
from admg.sampling import to_uint8

LABELS = ("pullover", "sneaker", "dress", "bag", "t-shirt/top", "ankle boot")
NOISE = 0.05  # deviation of the measurement's noise; pixels are in [-1, 1]
HIGH = 3.0  # nearer to pure noise, the prediction of x_0 is too rough to be compared with anything


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="50", num=5, help="rows, at most 6")
    model, labels = admg.load("fashion-mnist"), LABELS[: args.num]
    images = garments(model, labels, first=3)

    columns, titles = [to_uint8(images)], ["image"]
    for name, operator, prior_std in (("8x8", Downsample(4), 0.5), ("blurred", Blur.gaussian(1.5), 0.0)):
        measured = operator(images)
        measured = measured + NOISE * torch.randn(measured.shape, generator=torch.Generator().manual_seed(0))
        noise_std = NOISE if prior_std else 4 * NOISE  # DPS, without the prior's part, is too sure: it needs more
        guide = Interval(LinearInverse(operator, measured, noise_std, prior_std), high=HIGH)
        restored = [admg.sample(model, labels, y=None, guide=guide, steps=args.steps, seed=seed) for seed in (0, 1)]
        columns += [to_uint8(interpolate(measured, model.shape[1:])), *(samples.images for samples in restored)]
        titles += [name, "restored", "again"]

    picture = sheet(list(zip(*columns)), row_titles=labels, column_titles=titles, cell=96)
    save_png(picture, args.out / "super_resolution.png")


if __name__ == "__main__":
    main()
