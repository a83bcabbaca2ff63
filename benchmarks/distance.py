"""Fréchet distances of unguided samples, and of training images, to the 10,000 test images of Fashion-MNIST.

    python benchmarks/distance.py --rows dpmpp_2m:karras10,ddim:25 --num 800 --seed 77

The distance is computed in features of EfficientNet-Lite0 and of the label classifier of the tests, which also reports
the label accuracy. Both distances fall with the number of images: only rows with equally many can be compared.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from labelled import CLASSES, LabelClassifier, add_common, check_common, check_samplers, command, load_both, samplers

import admg
from admg.cli.options import Parser
from admg.evaluation import features
from admg.evaluation.features.extraction import extract
from admg.evaluation.metrics.fid import frechet_distance
from admg.evaluation.metrics.statistics import Gaussian
from admg.evaluation.opening import as_source
from admg.generation.images import to_uint8


class Distances:
    """Both distances to the test images of a folder."""

    def __init__(self, data: str, size: int):
        self.efficientnet, self.label_classifier = features.load("efficientnet-lite0"), LabelClassifier()
        self.data, self.size = data, size
        self.reference = [Gaussian.of(found) for found in self.features(self.images("test", 10_000))]

    def images(self, split: str, num: int) -> np.ndarray:
        """Return so many images of a split, evenly spread over it."""
        dataset = admg.data.open(self.data, self.size, fit="pad", split=split)
        return to_uint8(dataset.batch(range(0, len(dataset), len(dataset) // num)[:num])[0])

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of_efficientnet = extract(as_source(images), self.efficientnet).features
        return of_efficientnet.astype(float), self.label_classifier.features(images).astype(float)

    def __call__(self, images: np.ndarray) -> tuple[float, float]:
        pairs = zip(self.features(images), self.reference)
        first, second = (float(frechet_distance(Gaussian.of(found), reference)) for found, reference in pairs)
        return first, second


def run(args: argparse.Namespace) -> None:
    check_common(args)
    model, _ = load_both(args)
    check_samplers(args.rows, model.respace)
    distances = Distances(args.data or "data/fashion-mnist", model.shape[1])
    print("| sampler | steps | EfficientNet-Lite0 | label classifier | accuracy |\n| --- | --- | ---: | ---: | ---: |")
    labels = np.arange(args.num) % CLASSES
    for sampler, steps in args.rows:
        options = {"seed": args.seed, "precision": args.precision, "batch_size": args.batch_size, "progress": False}
        images = admg.sample(model, labels.tolist(), sampler=sampler, steps=steps, **options).images
        accuracy = (distances.label_classifier.predict(images) == labels).mean()
        first, second = distances(images)
        print(f"| {sampler} | {steps} | {first:.1f} | {second:.3f} | {100 * accuracy:.0f} % |", flush=True)
    first, second = distances(distances.images("train", args.num))
    print(f"| training images | | {first:.1f} | {second:.3f} | |")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="distance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = "dpmpp_2m:karras10,ddim:25"
    parser.add_argument("--rows", type=samplers, default=rows, metavar="SAMPLER:STEPS,...", help=f"(default: {rows})")
    parser.add_argument("--num", type=int, default=800, metavar="N", help="number of samples of each row")
    add_common(parser)
    return command(run, parser.parse_args(argv), "distance")


if __name__ == "__main__":
    sys.exit(main())
