"""A judge of emoji that no model was trained against: multinomial logistic regression on EfficientNet-Lite0.

    python tools/models/emoji_judge.py --data data/emoji        # fits it, and prints its accuracy on the test images
    admg sweep --model emoji ... --label-classifier tools/models/emoji_judge.py:judge --network efficientnet-lite0

It sees images of 32x32 pixels. Its weights are in emoji_judge.npz beside this file.
"""

from __future__ import annotations

import argparse
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import admg
from admg.evaluation import features
from admg.evaluation.features.base import Head
from admg.evaluation.features.extraction import extract
from admg.evaluation.opening import as_source

WEIGHTS = Path(__file__).with_suffix(".npz")
SIZE = 32


class Judge:
    """Assigns images to labels of the model `emoji`."""

    def __init__(self) -> None:
        self.network = features.load("efficientnet-lite0")

    @cached_property
    def head(self) -> Head:
        with np.load(WEIGHTS) as stored:
            return Head(torch.from_numpy(stored["weight"]), torch.from_numpy(stored["bias"]))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the label numbers (N,) of uint8 images (N, 32, 32, 3)."""
        return self.head(self.network(images).features).argmax(1)


judge = Judge()


def main() -> None:
    from sklearn.linear_model import LogisticRegression

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="folder that emoji.py made")
    args = parser.parse_args()
    images, labels = {}, {}
    for split in ("train", "test"):
        dataset = admg.data.open(str(args.data / split), SIZE)
        images[split] = extract(as_source(dataset, split), judge.network).features
        labels[split] = dataset.labels
    fitted = LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced").fit(images["train"], labels["train"])
    np.savez(WEIGHTS, weight=fitted.coef_.astype(np.float32), bias=fitted.intercept_.astype(np.float32))
    for split in images:
        print(f"accuracy on {len(labels[split])} {split} images: {fitted.score(images[split], labels[split]):.3f}")


if __name__ == "__main__":
    main()
