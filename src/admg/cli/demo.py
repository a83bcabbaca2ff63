"""`admg demo`: guided samples of every label, and a sheet of guidance scales."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import admg
from admg.config import check, setting
from admg.files import check_output_folder
from admg.generation import GuideSet, Recipe, generate_scale_sheet

EXAMPLES = """  admg demo
  admg demo --out pictures --seed 7"""
SCALES = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
LABELS = ["Dress", "Sandal", "Sneaker", "Bag", "Ankle boot", "Shirt"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sample every label of Fashion-MNIST with classifier guidance, and draw a sheet of guidance scales.

    out: folder of the pictures
    seed: seed of the noise
    """

    out: str = setting("demo", metavar="DIR")
    seed: int = setting(0, min=0)

    def __post_init__(self) -> None:
        check(self)


def run(options: Options) -> None:
    start, out = time.perf_counter(), check_output_folder(options.out)
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    print("1/2  every label: an unconditional model, guided by the classifier alone (guidance scale 8, DDIM, 25 steps)")
    guide = admg.guidance.ClassifierGuidance(classifier, 8.0)
    labels = [label for label in range(model.labels.count) for _ in range(8)]
    samples = admg.sample(model, labels, guide=guide, seed=options.seed, unconditional=True)
    samples.save(out, "classifier guidance, scale 8, DDIM 25")

    print("2/2  the same noise over guidance scales")
    path: Path = generate_scale_sheet(
        model, LABELS, GuideSet(classifier), SCALES, out=out, recipe=Recipe(seed=options.seed + 1, unconditional=True),
        title="the same noise, from unguided to strongly guided",
    )  # fmt: skip
    seconds = time.perf_counter() - start
    print(f"Saved {len(samples)} images to {out}/ in {seconds:.0f} s (contact sheets: {out / 'sheet.png'} and {path})")
