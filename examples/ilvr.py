"""ILVR: samples share the means of a reference image over blocks of 4x4, 8x8 or 16x16 pixels. Larger blocks keep less
of the garment. At low noise levels the model continues alone, which avoids seams. The model is conditioned on the
label, in the last rows on another one than the garment's.

    python examples/ilvr.py --out out
"""

from __future__ import annotations

from collections.abc import Sequence

from common import garments, options

import admg
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8
from admg.guidance import ILVR, Interval

PAIRS = (("bag", "bag"), ("sneaker", "sneaker"), ("coat", "coat"), ("pullover", "dress"), ("ankle boot", "sandal"))
FACTORS = (4, 8, 16)
LOW = 0.5  # noise level below which the reference is not used


def main(argv: Sequence[str] | None = None) -> None:
    args = options(__doc__, argv, steps="25", num=len(PAIRS), help="number of rows, at most 5")
    model, pairs = admg.load("fashion-mnist"), PAIRS[: args.num]
    images, labels = garments(model, [a for a, _ in pairs], first=1), [b for _, b in pairs]

    columns, titles = [to_uint8(images)], ["reference"]
    for factor in FACTORS:
        reference = ILVR(images, factor)
        guide = Interval(reference, low=LOW)
        columns.append(to_uint8(reference.low(images)))
        columns += [admg.sample(model, labels, guide=guide, steps=args.steps, seed=seed).images for seed in (0, 1)]
        titles += [f"{factor}x{factor}", "sample", "again"]

    rows = [a if a == b else f"{a} as {b}" for a, b in pairs]
    picture = sheet(list(zip(*columns)), row_titles=rows, column_titles=titles, cell=96)
    save_png(picture, args.out / "ilvr.png")


if __name__ == "__main__":
    main()
