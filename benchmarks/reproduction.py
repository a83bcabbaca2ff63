"""Check the paper's claims about networks, classifiers, guidance, DDIM and upsampling at a small size.

    OMP_NUM_THREADS=1 python benchmarks/reproduction.py --out runs/reproduction

Fashion-MNIST at 16 pixels, so that each network trains within minutes on one core; every number is a mean over several
training seeds. An independent label classifier (tests/label_classifier), which no sample is guided by, judges the
samples enlarged to 28 pixels: label accuracy, the Fréchet distance of its features to those of the test images, its
Inception Score, precision and recall. Results are stored as they come, so an interrupted command continues. Writes
results.json and a table in Markdown for each claim.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from labelled import CLASSES, LabelClassifier, command
from measures import precision_recall
from store import Store
from torch import Tensor, nn

import admg
from admg import guidance
from admg.cli.options import Parser
from admg.data import ImageDataset
from admg.evaluation.metrics.fid import frechet_distance
from admg.evaluation.metrics.statistics import Gaussian
from admg.files import atomic
from admg.training import ObjectiveConfig

SIZE = 16
BASE = {"channels": 32, "channel_mult": (1, 2, 2), "num_res_blocks": 1, "head_channels": 16}
ADM = {**BASE, "attention_resolutions": (8, 4)}
NETWORKS = {
    "ADM": {},
    "embedding added, not AdaGN": {"scale_shift_norm": False},
    "one attention head": {"head_channels": 0, "num_heads": 1},
    "attention at 4 pixels only": {"attention_resolutions": (4,)},
    "plain up- and downsampling": {"resblock_updown": False},
    "none of the four": {
        "scale_shift_norm": False, "head_channels": 0, "num_heads": 1, "attention_resolutions": (4,),
        "resblock_updown": False,
    },
}  # fmt: skip
"""Changes to ADM, each of which undoes an improvement of the paper (tables 1 to 3)."""
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "attention pool": {},
    "adaptive pool": {"pool": "adaptive"},
    "spatial pool": {"pool": "spatial"},
    "spatial pool v2": {"pool": "spatial_v2"},
    "no random crops": {"crop": "center"},
    "clean images only": {"noised": False},
}
"""Changes to the paper's classifier: its pool, its random crops, and its training on noised images (section 4)."""
SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
STEPS = (5, 10, 25, 50, 100, 250)

Metrics = dict[str, float]
Seeds = Sequence[int]


@dataclass(frozen=True)
class Sizes:
    """How much is trained and sampled.

    images: images that each network of a comparison is trained on
    long: images that the model is trained on with which guidance, samplers and upsampling are compared
    classifier: images that each classifier is trained on
    samples: samples per cell and seed
    """

    images: int = 16_000
    long: int = 40_000
    classifier: int = 16_000
    samples: int = 1_000


class Judge:
    """Metrics of samples by the label classifier, compared with the test images at the same size."""

    def __init__(self, data: str, size: int = SIZE):
        self.network = LabelClassifier()
        dataset = admg.data.open(data, size, split="test")
        self.features = self._features(dataset.batch(range(len(dataset)))[0])
        self.real = Gaussian.of(self.features)

    @staticmethod
    def _enlarged(x: Tensor) -> Tensor:
        """Images as the label classifier takes them: 28 pixels, and what 8 bits hold."""
        x = ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        return nn.functional.interpolate(x, 28, mode="bicubic", antialias=True).clamp(-1, 1)

    def _features(self, x: Tensor) -> np.ndarray:
        return self.network.features(self._enlarged(x)).astype(np.float64)

    def __call__(self, x: Tensor, labels: Iterable[int]) -> Metrics:
        """Return the metrics of samples x (N, 1, H, W) with target labels."""
        features = self._features(x)
        logits = self.network.network.head(torch.from_numpy(features).float()).numpy()
        manifold = precision_recall(features, self.features[:: len(self.features) // len(features)])
        return {
            "accuracy": float((logits.argmax(1) == np.fromiter(labels, int)).mean()),
            "fd": float(frechet_distance(Gaussian.of(features), self.real)),
            "is": admg.evaluation.metrics.inception_score(logits, logits=True).value,
            "precision": manifold.precision,
            "recall": manifold.recall,
        }


@dataclass(eq=False)
class Bench:
    """What the comparisons share: the data, the judge, the trained networks and the stored results."""

    data: str
    out: Path
    seeds: Seeds
    sizes: Sizes

    def __post_init__(self) -> None:
        self.path = self.out / "results.json"
        self.results: dict[str, dict[str, Metrics]] = json.loads(self.path.read_text()) if self.path.exists() else {}

    @cache  # noqa: B019
    def judge(self, size: int = SIZE) -> Judge:
        return Judge(self.data, size)

    def dataset(self, size: int = SIZE, **options: Any) -> ImageDataset:
        return admg.data.open(self.data, size, **options)

    def config(self, images: int, seed: int, **options: Any) -> admg.TrainConfig:
        """16 images a step at the default learning rate, and nothing written on the way."""
        never = {name: 10**9 for name in ("checkpoint_every", "preview_every", "log_every")}
        return admg.TrainConfig(steps=images // 16, batch_size=16, seed=seed, device="cpu", **never, **options)

    def trained(self, name: str, train: Callable[[Path], Any], load: Callable[[Path], Any]) -> Any:
        """Return the network of this name, which is trained if it is not there."""
        folder = self.out / "networks" / name.replace(" ", "-").replace(",", "")
        if not folder.exists():
            run = train(self.out / "run")
            for _ in run:
                pass
            run.close()
            run.model.save(folder)
            shutil.rmtree(self.out / "run", ignore_errors=True)
        return load(folder)

    def network(self, name: str, seed: int, images: int, change: Mapping[str, Any], **objective: Any) -> admg.Model:
        def train(folder: Path) -> Any:
            return admg.train_diffusion(
                self.dataset(), folder, self.config(images, seed), network={**ADM, **change},
                objective=ObjectiveConfig(**objective), overwrite=True,
            )  # fmt: skip

        return self.trained(f"{name} {seed}", train, admg.load)

    def main_model(self, seed: int) -> admg.Model:
        """Conditional and unconditional at once: 40 % of its labels were dropped."""
        return self.network("main", seed, self.sizes.long, {}, label_dropout=0.4)

    def classifier(self, name: str, seed: int) -> admg.Classifier:
        change = dict(CLASSIFIERS[name])
        options = {"crop": change.pop("crop", "random")}
        noised = change.pop("noised", True)

        def train(folder: Path) -> Any:
            return admg.train_classifier(
                self.dataset(**options), folder, self.config(self.sizes.classifier, seed, weight_decay=0.05),
                network={**BASE, "attention_resolutions": (8,), **change}, noised=noised, overwrite=True,
            )  # fmt: skip

        return self.trained(f"classifier {name} {seed}", train, admg.load_classifier)

    def upsampler(self, seed: int, name: str = "upsampler", process: Mapping[str, str] | None = None) -> admg.Model:
        def train(folder: Path) -> Any:
            return admg.train_upsampler(
                self.dataset(2 * SIZE), folder, self.config(self.sizes.images, seed), small_size=SIZE,
                network={**BASE, "channel_mult": (1, 1, 2, 2), "attention_resolutions": (8, 4)},
                diffusion=process, overwrite=True,
            )  # fmt: skip

        return self.trained(f"{name} {seed}", train, admg.load)

    def samples(self, model: admg.Model, seed: int, **options: Any) -> Metrics:
        labels = [i % CLASSES for i in range(self.sizes.samples)]
        options = {"sampler": "ddim", "steps": 25, "seed": seed, "batch_size": 100, "progress": False, **options}
        used = not options.get("unconditional") or options.get("guide") is not None
        return self.judge(model.shape[1])(
            admg.sample(model, labels if used else [None] * len(labels), **options).x, labels
        )

    def cell(self, claim: str, row: str, measure: Callable[[int], Metrics]) -> None:
        """Measure a row of a table with each seed, unless it is there."""
        for seed in self.seeds:
            key = f"{row} #{seed}"
            if key not in (stored := self.results.setdefault(claim, {})):
                started = time.process_time()
                stored[key] = measure(seed) | {"cpu_seconds": round(time.process_time() - started)}
                with atomic(self.path) as temporary:
                    temporary.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
                print(f"{claim}: {key}", {k: round(v, 4) for k, v in stored[key].items()}, flush=True)


def networks(bench: Bench) -> None:
    """Tables 1 to 3 of the paper: each improvement of the network undone, and all of them."""
    for name, change in NETWORKS.items():

        def measure(seed: int, name: str = name, change: Mapping[str, Any] = change) -> Metrics:
            model = bench.network(name, seed, bench.sizes.images, change)
            metrics = bench.samples(model, seed)
            return metrics | {"loss": loss(model, bench.dataset(split="test"))}

        bench.cell("networks", name, measure)


def classifiers(bench: Bench) -> None:
    """Section 4: the pool of the classifier, random crops, and training on noised images."""
    for name in CLASSIFIERS:

        def measure(seed: int, name: str = name) -> Metrics:
            classifier = bench.classifier(name, seed)
            guide = guidance.ClassifierGuidance(classifier, 4.0)
            metrics = bench.samples(bench.main_model(seed), seed, guide=guide, unconditional=True)
            return metrics | {"noisy_accuracy": noisy_accuracy(classifier, bench.dataset(split="test"))}

        bench.cell("classifiers", name, measure)


def scales(bench: Bench) -> None:
    """Table 4 and figures 3 and 4: scales of guidance, of the unconditional and the conditional model."""
    for conditional in (False, True):
        for scale in SCALES:

            def measure(seed: int, scale: float = scale, conditional: bool = conditional) -> Metrics:
                guide = guidance.ClassifierGuidance(bench.classifier("attention pool", seed), scale) if scale else None
                return bench.samples(bench.main_model(seed), seed, guide=guide, unconditional=not conditional)

            bench.cell("scales", f"{'conditional' if conditional else 'unconditional'}, {scale:g}", measure)


def steps(bench: Bench) -> None:
    """Section 2: DDIM against DDPM with few steps."""
    for number in STEPS:
        for sampler in ("ddim", "ddpm"):

            def measure(seed: int, sampler: str = sampler, number: int = number) -> Metrics:
                return bench.samples(bench.main_model(seed), seed, sampler=sampler, steps=number)

            bench.cell("steps", f"{sampler}, {number}", measure)


@dataclass(frozen=True)
class Noised:
    """Test images at evenly spaced timesteps, with the same noise for all networks.

    x_t, noise: (N, 1, H, W)
    x, y, t: the clean images, their labels and timesteps
    signal: √ᾱ_t of each image, (N, 1, 1, 1)
    """

    x: Tensor
    y: Tensor
    t: Tensor
    signal: Tensor
    noise: Tensor

    @classmethod
    def of(cls, dataset: ImageDataset, alpha_bar: Tensor, images: int = 2000) -> Noised:
        generator = torch.Generator().manual_seed(0)
        x, y = dataset.batch(range(images))
        t = (torch.arange(images) * len(alpha_bar) // images)[torch.randperm(images, generator=generator)]
        noise = torch.randn(x.shape, generator=generator)
        return cls(x, torch.as_tensor(y), t, alpha_bar[t].sqrt().view(-1, 1, 1, 1).float(), noise)

    @property
    def sigma(self) -> Tensor:
        """√(1 − ᾱ_t)."""
        return (1 - self.signal.square()).sqrt()

    def outputs(self, network: nn.Module, *, labelled: bool) -> Tensor:
        x_t = self.signal * self.x + self.sigma * self.noise
        inputs = (x_t, self.t, self.y) if labelled else (x_t, self.t)
        with torch.inference_mode():
            return torch.cat([network(*part) for part in zip(*(tensor.split(100) for tensor in inputs))])


def loss(model: admg.Model, dataset: ImageDataset, images: int = 2000) -> float:
    """Return the mean squared error of v = √ᾱ ε − √(1−ᾱ) x on test images."""
    noised = Noised.of(dataset, model.diffusion.schedule.alpha_bar, images)
    found = noised.outputs(model.network, labelled=True)[:, :1]
    return float((found - (noised.signal * noised.noise - noised.sigma * noised.x)).square().mean())


def noisy_accuracy(classifier: admg.Classifier, dataset: ImageDataset, images: int = 2000) -> float:
    """Return the accuracy on noised test images."""
    noised = Noised.of(dataset, classifier.diffusion.schedule.alpha_bar, images)
    return float((noised.outputs(classifier.network, labelled=False).argmax(1) == noised.y).float().mean())


def upsampling(bench: Bench) -> None:
    """Section 5.3: guidance of the small images, and an upsampler."""
    for enlarge in ("interpolated", "upsampled"):
        for scale in (0.0, 1.0, 2.0, 4.0):

            def measure(seed: int, scale: float = scale, enlarge: str = enlarge) -> Metrics:
                labels = [i % CLASSES for i in range(bench.sizes.samples)]
                guide = guidance.ClassifierGuidance(bench.classifier("attention pool", seed), scale) if scale else None
                options = {"steps": 25, "seed": seed, "batch_size": 100, "progress": False}
                small = admg.sample(bench.main_model(seed), labels, guide=guide, sampler="ddim", **options).x
                if enlarge == "interpolated":
                    large = nn.functional.interpolate(small, scale_factor=2, mode="bicubic")
                else:
                    large = admg.sample(bench.upsampler(seed), labels, low_res=small, sampler="ddim", **options).x
                return bench.judge(2 * SIZE)(large, labels)

            bench.cell("upsampling", f"{enlarge}, scale {scale:g}", measure)


COMPARISONS = {
    "networks": networks,
    "classifiers": classifiers,
    "scales": scales,
    "steps": steps,
    "upsampling": upsampling,
}


def tables(results: Mapping[str, Mapping[str, Metrics]]) -> Iterable[tuple[str, str]]:
    """Yield the name of each comparison with its table: means over the seeds, with their standard errors."""
    for claim, rows in results.items():
        grouped: dict[str, list[Metrics]] = {}
        for key, metrics in rows.items():
            grouped.setdefault(key.rsplit(" #", 1)[0], []).append(metrics)
        columns = [name for name in COLUMNS if name in next(iter(grouped.values()))[0]]
        lines = ["| | " + " | ".join(COLUMNS[name][0] for name in columns) + " |", "| --- |" + " ---: |" * len(columns)]
        for row, found in grouped.items():
            cells = (shown([metrics[name] for metrics in found], COLUMNS[name][1]) for name in columns)
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        yield claim, "\n".join(lines) + "\n"


COLUMNS = {
    "loss": ("validation loss", ".4f"),
    "noisy_accuracy": ("accuracy on noised images", ".1%"),
    "fd": ("FD", ".2f"),
    "is": ("IS", ".2f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "accuracy": ("label accuracy", ".1%"),
}
"""Title and format of each metric."""


def shown(values: Sequence[float], form: str) -> str:
    """Return the mean, with its standard error if there are several values."""
    text = format(statistics.mean(values), form).replace("%", " %")
    if len(values) == 1:
        return text
    error = format(statistics.stdev(values) / math.sqrt(len(values)), form).removesuffix("%")
    return f"{text} ± {error}"


def run(args: argparse.Namespace) -> None:
    if args.seeds < 1 or not 0.01 <= args.size <= 10:
        raise ValueError(f"--seeds must be at least 1 and --size from 0.01 to 10, got {args.seeds} and {args.size:g}")
    torch.set_num_threads(1)
    sizes = Sizes(*(max(20 * CLASSES, int(value * args.size)) for value in vars(Sizes()).values()))
    if Path(args.out, "results.json").exists() and not Path(args.out, "settings.json").exists():
        raise ValueError(f"{args.out} has results.json but not the settings.json that belongs to it: copy both")
    store = Store(args.out, {"data": args.data, **vars(sizes)})  # which refuses a folder of other sizes
    bench = Bench(args.data, store.folder, range(args.seeds), sizes)
    for name in args.only or COMPARISONS:
        COMPARISONS[name](bench)
    for claim, text in tables(bench.results):
        with atomic(bench.out / f"{claim}.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"\n{claim}\n\n{text}")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="reproduction", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="data/fashion-mnist", metavar="DIR", help="folder of the IDX files of Fashion-MNIST")
    add("--only", action="append", choices=tuple(COMPARISONS), help="a comparison; repeatable (default: all)")
    add("--seeds", type=int, default=3, metavar="N", help="number of training seeds")
    add("--size", type=float, default=1.0, metavar="X", help="factor of the numbers of images and samples")
    add("--out", required=True, metavar="DIR", help="folder of networks and results; an existing one is continued")
    return command(run, parser.parse_args(argv), "reproduction")


if __name__ == "__main__":
    sys.exit(main())
