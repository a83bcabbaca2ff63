"""What the benchmarks on Fashion-MNIST share: the models, the judge (tests/judge), and real images to compare with."""

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
from admg.cli.main import Parser, one_line
from admg.data import FASHION_MNIST_LABELS
from admg.data import open as open_dataset
from admg.engine.precision import resolve
from admg.files import atomic
from admg.guidance import Guide

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "judge"))
from judge import Judge

CLASSES = len(FASHION_MNIST_LABELS)
DATA = ("data/fashion-mnist", "/usr/share/datasets/fashion-mnist")  # the latter is Debian's dataset-fashion-mnist


def command(run: Callable[[argparse.Namespace], None], args: argparse.Namespace, name: str) -> int:
    """Run a benchmark and return its exit code: 2 for bad input, in one line; 130 when interrupted."""
    try:
        run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{name}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; the same command continues ({args.out})", file=sys.stderr)
        return 130
    return 0


def load_both(args: argparse.Namespace) -> tuple[Model, Classifier]:
    """--model and --classifier, on --device. ValueError: they are not of Fashion-MNIST."""
    model, classifier = admg.load(args.model).to(args.device), admg.load_classifier(args.classifier).to(args.device)
    for what, labels in (("model", model.labels), ("classifier", classifier.labels)):
        allowed = {CLASSES, 0} if what == "model" else {CLASSES}
        if labels.count not in allowed or labels.names not in ((), FASHION_MNIST_LABELS):
            raise ValueError(f"the {what}'s labels are not Fashion-MNIST's, the only ones that the judge knows")
    if model.shape not in ((1, 28, 28), (1, 32, 32)):
        shape = "x".join(map(str, model.shape))
        raise ValueError(f"model {args.model} makes images of {shape}: the judge knows 1x28x28 and 1x32x32")
    return model, classifier


def real_images(data: str | None, size: int, reference: int, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test images, uint8 (N, H, W, 1), balanced over the labels: the reference; `num` others, and their labels."""
    folder = data or next((path for path in DATA if Path(path).is_dir()), DATA[0])
    dataset = open_dataset(folder, size, channels=1, fit="pad", split="test", label_names=FASHION_MNIST_LABELS)
    if dataset.labels is None:
        raise ValueError(f"{folder} has no labels")
    # Columns of `order` are the classes, so that its first n * CLASSES entries, read row by row, hold n of each.
    per_class = [np.flatnonzero(dataset.labels == k) for k in range(CLASSES)]
    order = np.stack([of[: min(map(len, per_class))] for of in per_class], axis=1).ravel()
    if reference + num > len(order):
        raise ValueError(f"--reference {reference} and --num {num} together exceed the {len(order)} test images")
    chosen = order[: reference + num]
    images = dataset.batch(chosen)[0].add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return images[:reference], images[reference:], dataset.labels[chosen[reference:]]


def open_store(args: argparse.Namespace, model: Model, classifier: Classifier) -> Store:
    """The samples in --out. ValueError: they are of other models or options."""
    return Store(args.out, settings_of(args, model, classifier))


def settings_of(args: argparse.Namespace, model: Model, classifier: Classifier) -> dict[str, Any]:
    """What samples of any setting depend on."""
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
    told: bool = True,
) -> Callable[[range], Tensor]:
    """Numbers of images -> x (N, C, H, W), of all labels in turn; told: the network is told them. For Store.fill."""

    def make(images: range) -> Tensor:
        labels = [i % CLASSES for i in images]
        options = {"sampler": sampler, "steps": steps, "seed": args.seed, "precision": args.precision}
        options = {"unconditional": not told, "first": images.start, "batch_size": len(images), **options}
        return admg.sample(model, labels, guide=guide, **options).x

    return make


@dataclass(frozen=True)
class Figures:
    """Of `num` samples. low, high: 95 % interval of the accuracy; distance: KID x 1000 in the judge's features, and its
    standard error; precision, recall: k = 3, in those features."""

    num: int
    accuracy: float
    low: float
    high: float
    distance: float
    error: float
    precision: float
    recall: float


class Bench:
    """The judge's figures of samples against real images (reference, others, the others' labels).

    ValueError: the judge does not agree with the labels of the real ones.
    """

    def __init__(self, real: tuple[np.ndarray, np.ndarray, np.ndarray]):
        reference, others, labels = real
        self.judge = Judge()
        self.reference = self.judge.features(reference)
        self.real = self(others, labels)
        check_agreed(self.real.accuracy)

    def __call__(self, images: np.ndarray, wanted: np.ndarray | None = None) -> Figures:
        """wanted: labels (N,); None: all of them in turn."""
        wanted = np.arange(len(images)) % CLASSES if wanted is None else wanted
        n, features = len(images), self.judge.features(images)
        right = int((self.judge.predict(images) == wanted).sum())
        distance = balanced_kid(features, self.reference, CLASSES)
        manifold = precision_recall(features, self.reference)
        return Figures(n, right / n, *wilson(right, n), 1000 * distance.value, 1000 * distance.error, *manifold)


def check_agreed(accuracy: float) -> None:
    """ValueError: the judge knows too few of the real images, on Fashion-MNIST 0.93 of them."""
    if accuracy < 0.6:
        raise ValueError(f"the judge agrees with only {accuracy:.0%} of the labels of --data: not Fashion-MNIST")


def write_report(store: Store, text: str) -> None:
    """table.md, and where plot.png lies beside it."""
    table = store.folder / "table.md"
    with atomic(table) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}\n{table}   {store.folder / 'plot.png'}")


def add_common(parser: Parser) -> None:
    """The options of every benchmark here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add = parser.add_argument
    add("--model", default="fashion-mnist", help="name or folder of a diffusion model")
    add("--classifier", default="fashion-mnist", help="name or folder of a noisy classifier")
    add("--reference", type=int, default=2000, metavar="N", help="test images to compare with")
    add("--data", metavar="DIR", help=f"Fashion-MNIST's IDX files; looked for in {' and '.join(DATA)}")
    add("--seed", type=int, default=0, metavar="N", help="of the samples; the same noise in each row")
    add("--batch-size", type=int, default=50, metavar="N", help="samples at a time")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of matrix products")
    add("--device", default=device, help="such as cpu or cuda")


def checked(args: argparse.Namespace) -> None:
    """ValueError for what would otherwise fail only after minutes of sampling."""
    for name, least in (("num", 2 * CLASSES), ("reference", 2 * CLASSES), ("batch_size", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}: at least {least} is needed")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device}: {str(error).splitlines()[0]}") from None


def numbers(text: str) -> list[float]:
    """A list like 0,1,4, as an option takes it."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 0,1,4")
    return values
