"""Counterfactuals: the small changes of a garment after which a classifier sees another one. The garment is encoded by
DDIM inversion and sampled again towards the other label, guided by the classifier of clean images that is explained.
Columns: the garment, the counterfactual for each guidance scale, and the change at the largest one. What the classifier
sees in each is printed, with its probability.

    python examples/counterfactual.py --out out
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from common import garments, options
from torch import Tensor

import admg
from admg import guidance
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8

CHANGES = (("shirt", "coat"), ("pullover", "shirt"), ("sneaker", "ankle boot"), ("t-shirt/top", "dress"))
SCALES = (1.0, 4.0, 16.0)


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="50", num=len(CHANGES), help="number of rows, at most 4")
    model, noisy = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    changes = CHANGES[: args.num]
    before, after = [a for a, _ in changes], [b for _, b in changes]
    images = garments(model, before)

    def classifier(x: Tensor) -> Tensor:  # in place of yours: images in [-1, 1] to logits
        return noisy(x, torch.zeros(len(x)))

    columns = [images]
    for scale in SCALES:
        guide = guidance.ExtendedClassifierGuidance(classifier, scale, at="x0")
        changed = admg.edit(
            model, images, after, strength=0.6, invert=True, from_labels=before, guide=guide, steps=args.steps
        )
        columns.append(changed.x)
    columns.append((columns[-1] - images) / 2)

    titles = ["image", *(f"scale {scale:g}" for scale in SCALES), "change"]
    rows = [[to_uint8(column)[i] for column in columns] for i in range(len(changes))]
    for i, change in enumerate(changes):
        seen = [sight(classifier, column[i : i + 1], model.label_names) for column in columns[:-1]]
        print(" to ".join(change), *seen, sep="   ")
    save_png(
        sheet(rows, row_titles=[f"{a} to {b}" for a, b in changes], column_titles=titles, cell=96),
        args.out / "counterfactual.png",
    )


@torch.no_grad()
def sight(classifier: Callable[[Tensor], Tensor], image: Tensor, names: Sequence[str]) -> str:
    """Return what the classifier sees in an image (1, C, H, W), with its probability."""
    probability, label = classifier(image.clamp(-1, 1)).softmax(1)[0].max(0)
    return f"{names[label]} {probability:.2f}"


if __name__ == "__main__":
    main()
