"""Purification (Nie et al. 2022): an image that was changed to deceive a classifier is noised to some level and
denoised, which removes the change. Columns: the garment, the attacked one, and the purified one for each strength. The
accuracy of the classifier in each column is printed.

    python examples/purification.py --out out --images 256
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from common import garments, options
from torch import Tensor

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8

SIZE, ROUNDS = 0.15, 10  # largest change of a pixel, of values in [-1, 1], and steps of the attack
STRENGTHS = (0.1, 0.2, 0.3, 0.4)


def main(argv: Sequence[str] | None = None) -> None:
    args = options(
        __doc__, argv, steps="50", num=5, help="number of rows", images=(32, "number of images for the accuracy")
    )
    model, noisy = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    count = max(args.num, args.images)
    labels = torch.arange(count) % len(model.label_names)
    images = garments(model, [model.label_names[k] for k in labels.tolist()])

    def classifier(x: Tensor) -> Tensor:  # in place of yours: images in [-1, 1] to logits
        return noisy(x, torch.zeros(len(x)))

    columns = [images, attacked(classifier, images, labels)]
    for strength in STRENGTHS:  # without labels, which a defence does not know
        columns.append(admg.edit(model, columns[1], None, strength=strength, sampler="ddpm", steps=args.steps).x)

    titles = ["image", "attacked", *(f"strength {strength:g}" for strength in STRENGTHS)]
    for title, column in zip(titles, columns):
        with torch.no_grad():
            correct = classifier(column.clamp(-1, 1)).argmax(1) == labels
        print(f"{title}: accuracy {correct.float().mean():.0%} of {count} images")
    rows = [[to_uint8(column)[i] for column in columns] for i in range(args.num)]
    save_png(sheet(rows, column_titles=titles, cell=96), args.out / "purification.png")


def attacked(classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Return images that deceive the classifier: projected gradient ascent of its loss (Madry et al. 2018)."""
    x = images.clone()
    for _ in range(ROUNDS):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(classifier(x), labels), x)
        x = (x.detach() + 2.5 * SIZE / ROUNDS * gradient.sign()).clamp(images - SIZE, images + SIZE).clamp(-1, 1)
    return x


if __name__ == "__main__":
    main()
