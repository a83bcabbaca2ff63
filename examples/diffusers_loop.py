"""Classifier guidance in a loop of diffusers: its UNet2DModel and its DDIMScheduler, our classifier as the guide. Rows:
the same noise without guidance, with it, and the images that admg makes with it.

    pip install diffusers
    python examples/diffusers_loop.py --out out
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import torch
from common import options
from diffusers import DDIMScheduler, UNet2DModel

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8

LABELS = ("T-shirt/top", "Trouser", "Coat", "Sneaker", "Bag", "Ankle boot")


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="25", num=6, help="number of columns")
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    with tempfile.TemporaryDirectory() as folder:  # any UNet2DModel of images will do
        admg.export.to_diffusers(model, f"{folder}/unet", "ddim")
        unet = UNet2DModel.from_pretrained(f"{folder}/unet").eval().requires_grad_(False)
        scheduler = DDIMScheduler.from_pretrained(f"{folder}/unet", clip_sample=False)
    scheduler.set_timesteps(int(args.steps))
    labels = [LABELS[i % len(LABELS)] for i in range(args.num)]
    y = torch.tensor([model.labels.number(label) for label in labels])
    x_T = torch.randn(len(y), *model.shape, generator=torch.Generator().manual_seed(0))
    guide = admg.guidance.ClassifierGuidance(classifier, scale=4.0)

    rows = []
    for followed in (admg.guidance.guide(lambda state: None), guide):
        guided, x = admg.guidance.SchedulerGuidance(followed, scheduler, unet, y=y, clip=True), x_T
        for t in scheduler.timesteps:
            x = scheduler.step(guided(x, t), t, x).prev_sample
        rows.append(to_uint8(x))
    ours = admg.sample(model, labels, guide=guide, steps=f"ddim{args.steps}", x_T=x_T, progress=False)
    titles = ["diffusers", "diffusers + guide", "admg + guide"]
    picture = sheet([*rows, ours.images], row_titles=titles, column_titles=labels, cell=96)
    save_png(picture, args.out / "diffusers_loop.png")


if __name__ == "__main__":
    main()
