"""A judge of emoji that no model was trained against: multinomial logistic regression on EfficientNet-Lite0.

    python tools/models/emoji_judge.py --data data/emoji        # fits it, and prints its accuracy on the test images
    admg sweep --model emoji ... --label-classifier tools/models/emoji_judge.py:judge --network efficientnet-lite0

It sees images of 32x32 pixels. Its weights are in emoji_judge.npz beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import admg
from admg.evaluation import features
from admg.generation.images import to_uint8

WEIGHTS = Path(__file__).with_suffix(".npz")
SIZE = 32


class Judge:
    """Assigns images to labels of the model `emoji`."""

    def __init__(self) -> None:
        self.network = features.load("efficientnet-lite0")

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the features (N, 1280) of uint8 images (N, 32, 32, 3)."""
        return np.concatenate([self.network(part).features for part in np.array_split(images, -(-len(images) // 50))])

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the label numbers (N,) of uint8 images (N, 32, 32, 3)."""
        with np.load(WEIGHTS) as stored:
            return (self.features(images) @ stored["weight"].T + stored["bias"]).argmax(1)


judge = Judge()


def main() -> None:
    from sklearn.linear_model import LogisticRegression

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="folder that emoji.py made")
    args = parser.parse_args()
    images, labels = {}, {}
    for split in ("train", "test"):
        dataset = admg.data.open(str(args.data / split), SIZE)
        images[split] = judge.features(to_uint8(dataset.batch(range(len(dataset)))[0]))
        labels[split] = dataset.labels
    fitted = LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced").fit(images["train"], labels["train"])
    np.savez(WEIGHTS, weight=fitted.coef_.astype(np.float32), bias=fitted.intercept_.astype(np.float32))
    for split in images:
        print(f"accuracy on {len(labels[split])} {split} images: {fitted.score(images[split], labels[split]):.3f}")


if __name__ == "__main__":
    main()
