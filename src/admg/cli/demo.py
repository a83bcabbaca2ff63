"""`admg demo`: guided samples of every label, a sheet of guidance scales, and enlarged samples in colour."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import admg
from admg.checkpoints import loading
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

    If the package admg-models is installed, colour emoji are sampled and enlarged, too.

    out: folder of the pictures
    seed: seed of the noise
    """

    out: Path = setting(Path("demo"), metavar="DIR")
    seed: int = setting(0, min=0)

    def __post_init__(self) -> None:
        check(self)


def run(options: Options) -> None:
    start, out = time.perf_counter(), check_output_folder(options.out)
    colour = not loading.missing()
    parts = 3 if colour else 2
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    guide = admg.guidance.ClassifierGuidance(classifier, 8.0)
    print(f"1/{parts}  every label: an unconditional model, guided by the classifier alone (scale 8, DDIM, 25 steps)")
    labels = [label for label in range(model.labels.count) for _ in range(8)]
    samples = admg.sample(model, labels, guide=guide, seed=options.seed, unconditional=True)
    samples.save(out, "classifier guidance, scale 8, DDIM 25")

    print(f"2/{parts}  the same noise over guidance scales")
    path: Path = generate_scale_sheet(
        model, LABELS, GuideSet(classifier), SCALES, out=out, recipe=Recipe(seed=options.seed + 1, unconditional=True),
        title="the same noise, from unguided to strongly guided",
    )  # fmt: skip
    sheets = [out / "sheet.png", path]

    if colour:
        print(f"3/{parts}  colour emoji of every label (classifier-free guidance), enlarged from 32x32 to 64x64 pixels")
        emoji(options.seed).save(out / "emoji", "emoji, classifier-free guidance, enlarged to 64 pixels")
        sheets.append(out / "emoji" / "sheet.png")
    seconds = time.perf_counter() - start
    print(f"Saved the samples to {out}/ in {seconds:.0f} s (contact sheets: {', '.join(map(str, sheets))})")


def emoji(seed: int) -> admg.Samples:
    """Return enlarged samples of every label of emoji: the paper's pipeline from a label to a larger image."""
    model, guide = admg.load("emoji"), admg.guidance.ClassifierFreeGuidance(3.0)
    labels = [label for label in range(model.labels.count) for _ in range(6)]
    small = admg.sample(model, labels, guide=guide, sampler="dpmpp_2m", steps="karras15", seed=seed)
    return admg.upsample("emoji-x2", small, augment_level=0.1, sampler="dpmpp_2m", steps="karras10", seed=seed)
