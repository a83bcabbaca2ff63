"""Editing: a real garment is noised to some level and sampled from there with another label (SDEdit). Columns: the
strength, which is the fraction of the steps that are made. Small values keep the garment, 1 keeps nothing but the
label.

    python examples/editing.py --out out
    admg edit --image shirt.png --label dress --strength 0.6        # the same on the command line
"""

from __future__ import annotations

from collections.abc import Sequence

from common import garments, options

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8

EDITS = (("shirt", "dress"), ("t-shirt/top", "coat"), ("ankle boot", "sneaker"), ("sneaker", "bag"))
STRENGTHS = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="50", num=len(EDITS), help="number of rows, at most 4")
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    edits = EDITS[: args.num]
    images, labels = garments(model, [a for a, _ in edits]), [b for _, b in edits]

    guide = admg.guidance.ClassifierGuidance(classifier, scale=4.0)
    columns = [
        admg.edit(model, images, labels, strength=strength, guide=guide, steps=args.steps) for strength in STRENGTHS
    ]

    rows = [[to_uint8(images)[i], *(column.images[i] for column in columns)] for i in range(len(edits))]
    titles = ["image", *(f"{strength:g}" for strength in STRENGTHS)]
    picture = sheet(rows, row_titles=[f"{a} to {b}" for a, b in edits], column_titles=titles, cell=96)
    save_png(picture, args.out / "editing.png")


if __name__ == "__main__":
    main()
