"""Guidance by an embedding network, as in CLIP guidance: samples whose embedding resembles that of a target image. The
network is the classifier without its last layers, and the model is unconditional. Top: targets. Below: samples
without guidance, and samples from the same noise guided towards the target above them.

    python examples/embedding.py --out out
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import garments, options
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8
from admg.guidance import EmbeddingDistance, LossGuidance

TARGETS = ("sneaker", "bag", "trouser", "t-shirt/top", "sandal", "dress")
SCALE = 800.0


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="25", num=len(TARGETS), help="number of columns, at most 6")
    model, network = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist").network
    targets = TARGETS[: args.num]

    def embed(images: Tensor) -> Tensor:
        """Return features (N, 512), averaged over quarters of the image. Use CLIP's encode_image here."""
        return adaptive_avg_pool2d(network.encode(images, network.embed(torch.zeros(1)))[-1], 2).flatten(1)

    pictures = garments(model, targets, first=3)
    with torch.no_grad():
        target = embed(pictures)  # or CLIP's encode_text
    guide = LossGuidance(EmbeddingDistance(embed, target), SCALE)

    rows, titles = [to_uint8(pictures)], ["target"]
    for seed in (0, 1):
        for title, g in (("unguided", None), ("guided", guide)):
            rows.append(admg.sample(model, [None] * len(targets), guide=g, steps=args.steps, seed=seed).images)
            titles.append(title)
    picture = sheet(rows, row_titles=titles, column_titles=targets, cell=96)
    save_png(picture, args.out / "embedding.png")


if __name__ == "__main__":
    main()
