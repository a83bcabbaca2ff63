"""Guidance of one's own: two guides, each some lines of a file, examples/my_guide.py, added to the classifier's.
One is a score written down, one a loss. Rows: the same noises, without them and with each.

    python examples/own_guide.py --out out
    admg sample --label bag --guide examples/my_guide.py:symmetric --out bags        # the same on the command line
"""

from __future__ import annotations

from collections.abc import Sequence

from common import options
from my_guide import darker, symmetric

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png

LABELS = ("bag", "coat", "dress", "shirt", "sandal")


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="25", num=8, help="columns")
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    labels = [LABELS[i % len(LABELS)] for i in range(args.num)]
    guide = admg.guidance.ClassifierGuidance(classifier, scale=4.0)

    rows = [
        admg.sample(model, labels, guide=g, steps=args.steps).images for g in (guide, guide + darker, guide + symmetric)
    ]
    titles = ["classifier", "+ darker", "+ symmetric"]
    save_png(sheet(rows, row_titles=titles, column_titles=labels, cell=96), args.out / "own_guide.png")


if __name__ == "__main__":
    main()
