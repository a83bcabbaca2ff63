"""Labels to avoid. Top: garments of the unconditional model. Below: samples from the same noise, for which the label
that the classifier predicts has a negative weight, so that each becomes something else.

    python examples/negative_labels.py --out out
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import options

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png
from admg.guidance import ExtendedClassifierGuidance


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="50", num=10, help="number of columns")
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    shared = {"steps": args.steps, "unconditional": True, "batch_size": args.num}
    plain = admg.sample(model, [None] * args.num, **shared)
    seen = classifier(plain.x, torch.zeros(1)).argmax(1)

    rows, titles = [plain.images], ["unguided"]
    for weight in (-1.0, -4.0, -16.0):
        labels = torch.zeros(args.num, model.labels.count)
        labels[torch.arange(args.num), seen] = weight  # of log p(label | x), which is decreased
        guide = ExtendedClassifierGuidance(classifier, labels=labels)
        rows.append(admg.sample(model, [None] * args.num, guide=guide, **shared).images)
        titles.append(f"weight {weight:g}")

    names = [f"no {model.labels.name(int(label))}" for label in seen]
    save_png(sheet(rows, row_titles=titles, column_titles=names, cell=128), args.out / "negative_labels.png")


if __name__ == "__main__":
    main()
