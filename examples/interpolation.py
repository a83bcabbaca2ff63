"""Interpolation between images: two real garments are encoded to noise by DDIM inversion, and noise between them is
decoded. The first and the last frame are the garments again. The last row goes from one seed to another, with a
label and guidance.

    python examples/interpolation.py --out out
    admg interpolate --image a.png --image b.png --frames 8         # the same on the command line
"""

from __future__ import annotations

from collections.abc import Sequence

from common import garments, options

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8

PAIRS = (("dress", "dress"), ("sneaker", "ankle boot"), ("pullover", "coat"))


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="100", num=8, help="number of frames")
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")

    rows, titles = [], []
    for a, b in PAIRS:
        ends = garments(model, [a, b])
        label = a if a == b else None  # with two different labels, the model is unconditional
        frames = admg.interpolate(model, ends, label, frames=args.num, steps=args.steps)
        first, last = to_uint8(ends)
        rows.append([first, *frames.images, last])
        titles.append(f"{a} to {b}")

    guide = admg.guidance.ClassifierGuidance(classifier, scale=4.0)
    frames = admg.interpolate(model, (0, 1), "bag", frames=args.num + 2, guide=guide, steps=args.steps)
    rows.append([*frames.images])
    titles.append("bag, seed 0 to 1")

    columns = ["image", *(str(i + 1) for i in range(args.num)), "image"]
    save_png(sheet(rows, row_titles=titles, column_titles=columns, cell=96), args.out / "interpolation.png")


if __name__ == "__main__":
    main()
