"""Draw the pictures of docs/guides/: the same noise with every kind of guidance, over its scale.

python tools/guidance_pictures.py --out docs/guides
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

import admg
from admg import guidance
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png

LABELS = ["Dress", "Sneaker", "Bag", "Shirt"]


def kinds(classifier: admg.Classifier, bad: admg.Model) -> dict[str, tuple[bool, Callable, list[float]]]:
    """Return for each picture whether the network is unconditional, the guide of a scale, and the scales."""
    extended = guidance.ExtendedClassifierGuidance

    def clean(x0: torch.Tensor) -> torch.Tensor:
        return classifier(x0, torch.zeros(1))

    return {
        "classifier": (True, lambda s: guidance.ClassifierGuidance(classifier, s), [0, 1, 4, 16]),
        "classifier-x0": (True, lambda s: extended(clean, s, at="x0"), [0, 0.5, 1, 2]),
        "entropy": (True, lambda s: extended(classifier, s, entropy=1.0), [0, 1, 4, 16]),
        "classifier-free": (False, lambda w: guidance.ClassifierFreeGuidance(w), [0, 1, 2, 5]),
        "cfg-plus-plus": (False, lambda w: guidance.CFGPlusPlus(w), [0, 0.25, 0.5, 1]),
        "apg": (False, lambda w: guidance.APG(w), [1, 2, 4, 8]),
        "cfg-zero-star": (False, lambda w: guidance.CFGZeroStar(w), [1, 2, 3, 5]),
        "rescaled": (False, lambda w: guidance.Rescaled(guidance.ClassifierFreeGuidance(w)), [1, 2, 5, 10]),
        "perturbed-attention": (False, lambda w: guidance.PerturbedAttentionGuidance(w), [1, 2, 4, 8]),
        "gradient-free": (False, lambda w: guidance.GradientFreeGuidance(classifier, w), [1, 2, 4, 16]),
        "autoguidance": (False, lambda w: guidance.AutoGuidance(bad, w), [1, 1.5, 2, 3]),
        "interval": (
            False, lambda s: guidance.Interval(guidance.ClassifierGuidance(classifier, s), 0.3, 2.0), [0, 1, 4, 16]
        ),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/guides"), help="folder of the pictures")
    parser.add_argument("--steps", default="15", help="steps of DDIM")
    parser.add_argument("--only", nargs="*", help="names of pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    bad = admg.load("fashion-mnist-small")
    for name, (unconditional, guide, scales) in kinds(classifier, bad).items():
        if args.only and name not in args.only:
            continue
        columns = [
            admg.sample(model, LABELS, guide=guide(scale), steps=args.steps, seed=3, unconditional=unconditional).images
            for scale in scales
        ]
        rows = [[column[i] for column in columns] for i in range(len(LABELS))]
        titles = [f"{scale:g}" for scale in scales]
        save_png(sheet(rows, row_titles=LABELS, column_titles=titles, cell=64), args.out / f"{name}.png")


if __name__ == "__main__":
    main()
