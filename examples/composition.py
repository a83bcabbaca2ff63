"""Guides add up: the same noise under each of two guides, and under their sum. Two labels at once by one classifier; a
classifier and a loss of one's own; classifier-free guidance and a classifier in an interval of noise levels.

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
    """An energy: low where the left half is bright and the right half dark."""
    left, right = x0.chunk(2, dim=-1)
    return 600 * (right - left).mean((1, 2, 3))


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="50", num=8, help="noises")
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    boot, sneaker, coat = (model.labels.number(name) for name in ("ankle boot", "sneaker", "coat"))
    free, late = ClassifierFreeGuidance(2.0), Interval(ClassifierGuidance(classifier, 8.0), 0.3, 2.0)
    left = Interval(
        LossGuidance(bright_left), high=3.0
    )  # from pure noise on, so strong a loss leaves no garment, but its half
    rows: dict[str, tuple[int | None, Guide]] = {  # what the model is told, and the guide
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
    made = [admg.sample(model, [told] * args.num, guide=guide, steps=args.steps) for told, guide in rows.values()]
    picture = sheet([samples.images for samples in made], row_titles=list(rows), cell=64)
    save_png(picture, args.out / "composition.png")


if __name__ == "__main__":
    main()
