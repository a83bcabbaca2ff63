"""The same noise at increasing scales of classifier guidance and of classifier-free guidance: the garments become
clearer and less diverse. Rows: noise with a label; columns: guidance scales.

    python examples/scale_sheet.py --out out
"""

from __future__ import annotations

from collections.abc import Sequence

from common import options

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png
from admg.guidance import ClassifierFreeGuidance, ClassifierGuidance

LABELS = ("sneaker", "bag", "dress", "coat", "sandal", "trouser")
CLASSIFIER, FREE = (0, 1, 4, 16), (1, 2, 4, 8)


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="25", num=6, help="number of rows")
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    labels = [LABELS[i % len(LABELS)] for i in range(args.num)]

    columns = []
    for scale in CLASSIFIER:  # the model is unconditional, so only the classifier steers
        guide = ClassifierGuidance(classifier, scale=scale)
        columns.append(admg.sample(model, labels, guide=guide, steps=args.steps, unconditional=True))
    for scale in FREE:  # scale 1 is the conditional model
        columns.append(admg.sample(model, labels, guide=ClassifierFreeGuidance(scale), steps=args.steps))

    rows = [[column.images[i] for column in columns] for i in range(args.num)]
    titles = ["unguided", *(f"classifier {scale}" for scale in CLASSIFIER[1:])]
    titles += ["conditional", *(f"cfg {scale}" for scale in FREE[1:])]
    picture = sheet(rows, row_titles=columns[0].label_names, column_titles=titles, cell=96)
    save_png(picture, args.out / "scale_sheet.png")


if __name__ == "__main__":
    main()
