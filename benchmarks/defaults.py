"""Compare training settings on three small data sets, for the defaults of `admg train`.

    OMP_NUM_THREADS=1 python benchmarks/defaults.py --emoji data/emoji/train --out runs/defaults

Digits of scikit-learn at 8 pixels, Fashion-MNIST at 16 and colour emoji at 32, each with a tiny network. Every setting
sees the same number of images of a data set. FD is the Fréchet distance between 20-step DDIM samples with the labels of
real images and the data, in the first 64 principal components of the real images: of their pixels if they are grey, of
their EfficientNet-Lite0 features if they are in colour. Results are stored in results.json, so that an interrupted
command continues; table.md holds them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

import admg
from admg.data import ImageDataset
from admg.diffusion.config import DiffusionConfig
from admg.evaluation import features
from admg.evaluation.metrics.fid import frechet_distance
from admg.evaluation.metrics.statistics import Gaussian
from admg.files import atomic
from admg.training import ObjectiveConfig

DIMENSIONS = 64


@dataclass(frozen=True)
class Setting:
    """A way to train."""

    predict: str = "v"
    schedule: str = "cosine"
    batch: int = 16
    lr: float = 1e-3
    warmup: int = 50
    channels: int = 32
    mult: tuple[float, ...] = ()
    blocks: int = 1
    objective: str = "hybrid"
    variance: str = "learned_range"
    dropout: float = 0.0
    ema: str = "10%"

    @property
    def name(self) -> str:
        """The values that differ from the usual ones."""
        changed = [f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(f"{f.name} {getattr(self, f.name)}" for f in changed) or "base"


@dataclass(frozen=True)
class Case:
    """A data set, and how long to train on it."""

    name: str
    open: Callable[[], ImageDataset]
    images: int
    samples: int
    mult: tuple[float, ...]
    settings: tuple[Setting, ...] = field(default_factory=tuple)


def digits() -> ImageDataset:
    data = load_digits()
    return admg.data.from_arrays((data.images * 255 / 16).astype(np.uint8), data.target.tolist())


BASE = Setting()
PAPER = Setting(predict="eps", schedule="linear", batch=64, lr=3e-4, warmup=500, ema="0.9999")
PREDICTION = (Setting(predict="eps", schedule="linear"), Setting(predict="eps"), Setting(schedule="linear"))
RATE = (Setting(batch=64), Setting(batch=64, lr=2e-3), Setting(lr=5e-4), Setting(lr=2e-3), Setting(batch=64, lr=4e-3))
MORE = (
    Setting(predict="x0"),
    Setting(channels=64),
    Setting(batch=32),
    Setting(warmup=0),
    Setting(warmup=200),
    Setting(objective="simple", variance="fixed_large"),
    Setting(batch=8),
    Setting(channels=64, lr=5e-4),
    Setting(dropout=0.1),
)


def cases(emoji: str, fashion: str) -> list[Case]:
    return [
        Case("digits 8", digits, 6_400, 400, (1, 2), (BASE, PAPER, *PREDICTION, *RATE, *MORE)),
        Case(
            "fashion 16",
            lambda: admg.data.open(fashion, 16),
            *(4_800, 300, (1, 2, 2)),
            (BASE, PAPER, *PREDICTION, Setting(batch=64), Setting(batch=64, lr=2e-3), Setting(lr=5e-4)),
        ),
        Case(
            "emoji 32",
            lambda: admg.data.open(emoji, 32),
            4_800,
            128,
            (1, 2, 2, 2),
            (BASE, PAPER, *PREDICTION, Setting(batch=64, lr=2e-3)),
        ),
    ]


class Judge:
    """FD between samples and the images of a data set."""

    def __init__(self, dataset: ImageDataset, limit: int = 1500):
        self.network = features.load("efficientnet-lite0") if dataset.channels == 3 else None
        limit = 400 if self.network else limit  # the network takes 30 ms per image
        chosen = np.linspace(0, len(dataset) - 1, min(limit, len(dataset))).astype(int)
        x, y = dataset.batch(chosen.tolist())
        self.labels = [int(label) for label in y]
        real = self._features(x)
        self.mean = real.mean(0)
        self.basis = np.linalg.svd(real - self.mean, full_matrices=False)[2][:DIMENSIONS].T
        self.real = Gaussian.of((real - self.mean) @ self.basis)

    def _features(self, x: torch.Tensor) -> np.ndarray:
        if self.network is None:
            return x.clamp(-1, 1).flatten(1).double().numpy()
        pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        return np.concatenate([self.network(part.numpy()).features for part in pixels.split(50)]).astype(np.float64)

    def distance(self, x: torch.Tensor) -> float:
        return float(frechet_distance(Gaussian.of((self._features(x) - self.mean) @ self.basis), self.real))


def train(case: Case, setting: Setting, dataset: ImageDataset, folder: Path) -> admg.Model:
    steps = case.images // setting.batch
    config = admg.TrainConfig(
        steps=steps, batch_size=setting.batch, lr=setting.lr, warmup=setting.warmup, ema=setting.ema,
        checkpoint_every=10**9, preview_every=10**9, log_every=10**9, seed=0, device="cpu",
    )  # fmt: skip
    network = {
        "channels": setting.channels, "channel_mult": setting.mult or case.mult, "head_channels": 32,
        "num_res_blocks": setting.blocks, "dropout": setting.dropout,
    }  # fmt: skip
    process = DiffusionConfig(
        predict=setting.predict,
        noise_schedule=setting.schedule,
        variance=setting.variance,  # type: ignore[arg-type]
    )
    objective = ObjectiveConfig(objective=setting.objective)  # type: ignore[arg-type]
    run = admg.train_diffusion(dataset, folder, config, network=network, diffusion=process, objective=objective)
    for _ in run:
        pass
    run.close()
    return run.model


def pictures(x: torch.Tensor, path: Path, columns: int = 16) -> None:
    """Write samples side by side as a PNG file."""
    x = x[: len(x) // columns * columns].clamp(-1, 1)
    rows = torch.cat([torch.cat(list(row), dim=2) for row in x.split(columns)], dim=1).expand(3, -1, -1)
    Image.fromarray(((rows + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(path)


def measure(case: Case, setting: Setting, dataset: ImageDataset, judge: Judge, out: Path) -> dict[str, Any]:
    folder = out / "run"
    shutil.rmtree(folder, ignore_errors=True)
    started = time.process_time()
    try:
        model = train(case, setting, dataset, folder)
    except FloatingPointError as error:
        return {"fd": None, "failed": str(error)}
    seconds = time.process_time() - started
    chosen = np.linspace(0, len(judge.labels) - 1, case.samples).astype(int)
    labels = [judge.labels[i] for i in chosen]
    x = admg.sample(model, labels, steps=20, seed=1, batch_size=50, progress=False).x
    pictures(x[:: max(1, case.samples // 64)][:64], out / f"{case.name}-{setting.name}.png".replace(" ", "-"))
    parameters = sum(p.numel() for p in model.network.parameters())
    return {"fd": round(judge.distance(x), 3), "cpu_seconds": round(seconds), "parameters": parameters}


def turns(all_cases: list[Case]) -> Iterator[tuple[Case, Setting]]:
    """Yield the settings of all data sets in turn, the first ones of each first."""
    for i in range(max(len(case.settings) for case in all_cases)):
        yield from ((case, case.settings[i]) for case in all_cases if i < len(case.settings))


def table(all_cases: list[Case], results: dict[str, dict[str, Any]]) -> str:
    names = list(dict.fromkeys(s.name for case in all_cases for s in case.settings))
    lines = [
        "| setting | " + " | ".join(case.name for case in all_cases) + " |",
        "| --- |" + " ---: |" * len(all_cases),
    ]
    for name in names:
        row = [results.get(f"{case.name}: {name}", {}) for case in all_cases]
        texts = ["diverged" if "failed" in cell else f"{cell['fd']:.2f}" if cell else "" for cell in row]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", required=True, metavar="FOLDER", help="data set of tools/models/emoji.py")
    parser.add_argument("--fashion", default="data/fashion-mnist", metavar="FOLDER")
    parser.add_argument("--only", default="", metavar="NAME", help="data sets whose name contains it (default: all)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.json"
    results: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    all_cases = cases(options.emoji, options.fashion)
    judges: dict[str, tuple[ImageDataset, Judge]] = {}
    for case, setting in turns([case for case in all_cases if options.only in case.name]):
        key = f"{case.name}: {setting.name}"
        if key in results:
            continue
        if case.name not in judges:
            dataset = case.open()
            judges[case.name] = dataset, Judge(dataset)
        results[key] = measure(case, setting, *judges[case.name], options.out)
        print(key, results[key], flush=True)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(results, indent=1))
        (options.out / "table.md").write_text(table(all_cases, results), encoding="utf-8")
    print(table(all_cases, results))


if __name__ == "__main__":
    main()
