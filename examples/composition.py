"""Guides add up: samples from the same noise with each of two guides, and with their sum. Two labels of one
classifier; a classifier and a loss; classifier-free guidance and a classifier in an interval of noise levels.

    python examples/composition.py --out out
"""

from __future__ import annotations

from collections.abc import Sequence

from common import options
from torch import Tensor

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png
from admg.guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ExtendedClassifierGuidance,
    Guide,
    Interval,
    LossGuidance,
)


def bright_left(x0: Tensor) -> Tensor:
    """Return a loss that is low if the left half is bright and the right half dark."""
    left, right = x0.chunk(2, dim=-1)
    return 600 * (right - left).mean((1, 2, 3))


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="50", num=8, help="number of columns")
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    boot, sneaker, coat = (model.labels.number(name) for name in ("ankle boot", "sneaker", "coat"))
    free, late = ClassifierFreeGuidance(2.0), Interval(ClassifierGuidance(classifier, 8.0), 0.3, 2.0)
    left = Interval(LossGuidance(bright_left), high=3.0)  # from pure noise on, a loss this strong leaves no garment
    rows: dict[str, tuple[int | None, Guide]] = {  # label of the conditional model, and guide
        "sneaker": (None, ExtendedClassifierGuidance(classifier, labels={sneaker: 8.0})),
        "ankle boot": (None, ExtendedClassifierGuidance(classifier, labels={boot: 8.0})),
        "both": (None, ExtendedClassifierGuidance(classifier, labels={sneaker: 4.0, boot: 4.0})),
        "coat": (None, ExtendedClassifierGuidance(classifier, labels={coat: 8.0})),
        "bright left": (None, left),
        "coat + bright left": (None, ExtendedClassifierGuidance(classifier, labels={coat: 8.0}) + left),
        "coat, free": (coat, free),
        "coat, classifier late": (coat, late),
        "coat, free + late": (coat, free + late),
    }
    made = [admg.sample(model, [label] * args.num, guide=guide, steps=args.steps) for label, guide in rows.values()]
    picture = sheet([samples.images for samples in made], row_titles=list(rows), cell=64)
    save_png(picture, args.out / "composition.png")


if __name__ == "__main__":
    main()
