"""`admg demo`: what guidance does, in two pictures."""

from __future__ import annotations

import argparse
import time

from admg import guidance
from admg.checkpoints import presets
from admg.files import check_output_folder
from admg.generation.contact_sheet import scale_sheet
from admg.generation.images import save_png
from admg.generation.sample import sample

SCALES = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder for the pictures (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")


def run(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    out = check_output_folder(args.out)
    model, classifier = presets.load("fashion-mnist"), presets.load_classifier("fashion-mnist")
    labels = list(range(model.labels.count))

    print("1/2  every label: an unconditional model, steered by the classifier alone (scale 8, DDIM, 25 steps)")
    guide = guidance.ClassifierGuidance(classifier, 8.0)
    samples = sample(
        model, [label for label in labels for _ in range(8)], guide=guide, seed=args.seed, unconditional=True
    )
    samples.save(out, "classifier guidance, scale 8, DDIM 25")

    print("2/2  the same noise over guidance scales")
    wanted = [model.labels.number(name) for name in ("Dress", "Sandal", "Sneaker", "Bag", "Ankle boot", "Shirt")]
    columns = [
        sample(
            model, wanted, guide=guidance.ClassifierGuidance(classifier, scale), seed=args.seed + 1, unconditional=True
        )
        for scale in SCALES
    ]
    images, names = [column.images for column in columns], columns[0].label_names
    title = "the same noise, from unguided to strongly guided"
    save_png(scale_sheet(images, SCALES, names, title), out / "scale-sheet.png")
    print(f"done in {time.perf_counter() - start:.0f} s: look at {out / 'sheet.png'} and {out / 'scale-sheet.png'}")
