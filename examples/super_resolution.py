"""Super-resolution and deblurring: samples that agree with a measurement y = A(x) + noise with a known standard
deviation. Left: from 8x8 to 32x32 pixels by the gradient of the measurement's likelihood. Right: a blur removed by
DPS. The model is unconditional.

    python examples/super_resolution.py --out out
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import garments, options
from torch import Tensor
from torch.nn.functional import interpolate

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8
from admg.guidance import DPS, Blur, Downsample, Guide, LinearInverse

LABELS = ("pullover", "sneaker", "dress", "bag", "t-shirt/top", "ankle boot")
NOISE = 0.05  # standard deviation of the measurement's noise; pixels are in [-1, 1]


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="100", num=5, help="number of rows, at most 6")
    model, labels = admg.load("fashion-mnist"), LABELS[: args.num]
    images = garments(model, labels, first=3)
    random = torch.Generator().manual_seed(0)

    def measured(operator: Downsample | Blur) -> Tensor:
        y = operator(images)
        return y + NOISE * torch.randn(y.shape, generator=random)

    def restored(guide: Guide, sampler: str) -> list:
        return [admg.sample(model, num=len(labels), unconditional=True, guide=guide, sampler=sampler, steps=args.steps,
        seed=seed).images for seed in (0, 1)]  # fmt: skip

    small, blurred = measured(Downsample(4)), measured(Blur.gaussian(1.5))
    columns = [to_uint8(images), to_uint8(interpolate(small, model.shape[1:]))]
    columns += restored(LinearInverse(Downsample(4), small, NOISE, prior_std=0.5), "ddim")
    columns += [to_uint8(blurred), *restored(DPS(Blur.gaussian(1.5), blurred, scale=3.0), "ddpm")]
    titles = ["image", "8x8", "restored", "again", "blurred", "restored", "again"]
    picture = sheet(list(zip(*columns)), row_titles=labels, column_titles=titles, cell=96)
    save_png(picture, args.out / "super_resolution.png")


if __name__ == "__main__":
    main()
