"""Guides of your own, added to classifier guidance. The guides are defined in examples/custom_guides.py: one is a
gradient in closed form, the other one a loss. Rows: the same noise without them, with each of them, and with both.

    python examples/custom_guidance.py --out out
    admg sample --label bag --guide examples/custom_guides.py:symmetric --out bags    # the same on the command line
"""

from __future__ import annotations

from collections.abc import Sequence

from common import options
from custom_guides import darker, symmetric

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png

LABELS = ("bag", "coat", "dress", "shirt", "sandal")


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="25", num=8, help="number of columns")
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    labels = [LABELS[i % len(LABELS)] for i in range(args.num)]
    guide = admg.guidance.ClassifierGuidance(classifier, scale=4.0)

    guides = {
        "classifier": guide,
        "+ darker": guide + darker,
        "+ symmetric": guide + symmetric,
        "+ 2 darker + symmetric": sum([guide, 2 * darker, symmetric]),
    }
    rows = [admg.sample(model, labels, guide=g, steps=args.steps).images for g in guides.values()]
    picture = sheet(rows, row_titles=list(guides), column_titles=labels, cell=96)
    save_png(picture, args.out / "custom_guidance.png")


if __name__ == "__main__":
    main()
