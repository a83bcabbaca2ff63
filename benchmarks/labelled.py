"""Shared parts of the Fashion-MNIST benchmarks: models, the label classifier of the tests, and real images."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measures import balanced_kid, precision_recall, wilson
from store import Store, fingerprint
from torch import Tensor

import admg
from admg.checkpoints.model import Classifier, Model
from admg.cli.main import one_line
from admg.cli.options import Parser
from admg.data import FASHION_MNIST_LABELS
from admg.data import open as open_dataset
from admg.engine.precision import resolve
from admg.files import atomic
from admg.generation.sampler_specs import find_sampler
from admg.guidance import Guide

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "label_classifier"))
from label_classifier import LabelClassifier

CLASSES = len(FASHION_MNIST_LABELS)
DATA = ("data/fashion-mnist", "/usr/share/datasets/fashion-mnist")  # the second is where Debian's package installs it


def command(run: Callable[[argparse.Namespace], None], args: argparse.Namespace, name: str) -> int:
    """Run a benchmark and return its exit code: 0, 2 for bad input (with a one-line error), 130 if interrupted."""
    try:
        run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted: run the same command again to continue ({args.out})", file=sys.stderr)
        return 130
    return 0


def load_both(args: argparse.Namespace) -> tuple[Model, Classifier]:
    """Return the models of --model and --classifier on --device.

    Raises ValueError if their labels or image shape are not those of Fashion-MNIST.
    """
    model, classifier = admg.load(args.model).to(args.device), admg.load_classifier(args.classifier).to(args.device)
    for kind, labels in (("model", model.labels), ("classifier", classifier.labels)):
        allowed = {CLASSES, 0} if kind == "model" else {CLASSES}
        if labels.count not in allowed or labels.names not in ((), FASHION_MNIST_LABELS):
            raise ValueError(f"the labels of --{kind} are not those of Fashion-MNIST, which the label classifier needs")
    if model.shape not in ((1, 28, 28), (1, 32, 32)):
        shape = "x".join(map(str, model.shape))
        raise ValueError(f"model {args.model} makes images of {shape}: the label classifier needs 1x28x28 or 1x32x32")
    return model, classifier


def real_images(data: str | None, size: int, reference: int, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `reference` test images, `num` other test images, and the labels of the latter.

    Images are uint8 (N, H, W, 1). Both sets are balanced over the labels.
    Raises ValueError if the folder has no labels or too few images.
    """
    folder = data or next((path for path in DATA if Path(path).is_dir()), DATA[0])
    dataset = open_dataset(folder, size, channels=1, fit="pad", split="test", label_names=FASHION_MNIST_LABELS)
    if dataset.labels is None:
        raise ValueError(f"{folder} has no labels")
    # Classes alternate in `order`, so its first n * CLASSES entries contain n images of each class.
    per_class = [np.flatnonzero(dataset.labels == k) for k in range(CLASSES)]
    order = np.stack([indices[: min(map(len, per_class))] for indices in per_class], axis=1).ravel()
    if reference + num > len(order):
        raise ValueError(f"--reference {reference} and --num {num} together exceed the {len(order)} test images")
    chosen = order[: reference + num]
    images = dataset.batch(chosen)[0].add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return images[:reference], images[reference:], dataset.labels[chosen[reference:]]


def open_store(args: argparse.Namespace, model: Model, classifier: Classifier) -> Store:
    """Open the store of samples in --out. Raises ValueError if it was made with other models or options."""
    return Store(args.out, settings_of(args, model, classifier))


def settings_of(args: argparse.Namespace, model: Model, classifier: Classifier) -> dict[str, Any]:
    """Return the models and options that all samples of a benchmark depend on."""
    return {
        "model": fingerprint(model.network),
        "classifier": fingerprint(classifier.network),
        "seed": args.seed,
        "precision": resolve(args.precision, model.device),
    }


def sampling(
    model: Model,
    args: argparse.Namespace,
    *,
    guide: Guide | None,
    sampler: str,
    steps: int | str,
    conditional: bool = True,
) -> Callable[[range], Tensor]:
    """Return a function for Store.fill that maps image numbers to samples x (N, C, H, W), whose labels alternate.

    conditional: whether the network is conditioned on the labels; the guide uses them in either case
    """

    def make(images: range) -> Tensor:
        labels = [i % CLASSES for i in images]
        options = {"sampler": sampler, "steps": steps, "seed": args.seed, "precision": args.precision}
        options = {"unconditional": not conditional, "first": images.start, "batch_size": len(images), **options}
        return admg.sample(model, labels, guide=guide, **options).x

    return make


@dataclass(frozen=True)
class Metrics:
    """Metrics of `num` samples, computed with the label classifier and its features.

    accuracy: share of the samples that are classified as their target label
    low, high: 95 % interval of the accuracy
    distance: KID x 1000
    error: standard error of the distance
    precision, recall: with k = 3
    """

    num: int
    accuracy: float
    low: float
    high: float
    distance: float
    error: float
    precision: float
    recall: float


class Bench:
    """Computes metrics of samples against real images.

    real: reference images, other real images, and the labels of the latter, as real_images returns them
    Raises ValueError if the label classifier does not recognise the real images.
    """

    def __init__(self, real: tuple[np.ndarray, np.ndarray, np.ndarray]):
        reference, others, labels = real
        self.label_classifier = LabelClassifier()
        self.reference = self.label_classifier.features(reference)
        self.real = self(others, labels)
        check_recognised(self.real.accuracy)

    def __call__(self, images: np.ndarray, target: np.ndarray | None = None) -> Metrics:
        """Return the metrics of images with target labels (N,), by default 0, 1, ..., 9, 0, 1, ..."""
        target = np.arange(len(images)) % CLASSES if target is None else target
        n, features = len(images), self.label_classifier.features(images)
        correct = int((self.label_classifier.predict(images) == target).sum())
        distance = balanced_kid(features, self.reference, CLASSES)
        manifold = precision_recall(features, self.reference)
        return Metrics(n, correct / n, *wilson(correct, n), 1000 * distance.value, 1000 * distance.error, *manifold)


def check_recognised(accuracy: float) -> None:
    """Raise ValueError if the accuracy on real images is below 0.6. On Fashion-MNIST it is 0.93."""
    if accuracy < 0.6:
        raise ValueError(f"the label classifier recognises only {accuracy:.0%} of --data: it is not Fashion-MNIST")


def write_report(store: Store, text: str) -> None:
    """Write table.md to the folder of the store, and print it with the paths of the table and the plot."""
    table = store.folder / "table.md"
    with atomic(table) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}\n{table}   {store.folder / 'plot.png'}")


def add_common(parser: Parser) -> None:
    """Add the options that all Fashion-MNIST benchmarks share."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add = parser.add_argument
    add("--model", default="fashion-mnist", help="diffusion model, a name or folder")
    add("--classifier", default="fashion-mnist", help="noisy classifier, a name or folder")
    add("--reference", type=int, default=2000, metavar="N", help="number of test images to compare with")
    add("--data", metavar="DIR", help=f"folder of the IDX files of Fashion-MNIST; if not given: {' or '.join(DATA)}")
    add("--seed", type=int, default=0, metavar="N", help="seed of the samples, which share their noise across rows")
    add("--batch-size", type=int, default=50, metavar="N", help="samples per batch")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="precision of matrix products")
    add("--device", default=device, help="device, such as cpu or cuda")


def check_common(args: argparse.Namespace) -> None:
    """Raise ValueError for bad options that would otherwise fail only after minutes of sampling."""
    for name, minimum in (("num", 2 * CLASSES), ("reference", 2 * CLASSES), ("batch_size", 1), ("seed", 0)):
        if getattr(args, name) < minimum:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {minimum}, got {getattr(args, name)}")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device}: {str(error).splitlines()[0]}") from None


def samplers(text: str) -> list[tuple[str, str]]:
    """Parse samplers with their steps, such as ddpm:250,ddim:25."""
    pairs = [tuple(part.strip().split(":")) for part in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not like ddpm:250,ddim:25")
    return pairs


def check_samplers(pairs: list[tuple[str, str]], respace: Callable[[str], Any]) -> None:
    """Raise ValueError if there is no such sampler, or if `respace`, of a model or a schedule, refuses its steps."""
    for sampler, steps in pairs:
        find_sampler(sampler)
        respace(steps)


def numbers(text: str) -> list[float]:
    """Parse a comma-separated list of finite numbers, such as 0,1,4."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 0,1,4")
    return values
