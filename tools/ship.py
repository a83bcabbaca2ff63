"""Put the averaged weights of two training runs into the package, as float16, with their log figures.

python tools/ship.py runs/fashion-mnist runs/fashion-mnist-classifier
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path

import torch

import admg
from admg.files import atomic

ROWS = 100  # of each log: enough for its curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("diffusion", type=Path, help="run folder of `admg train`")
    parser.add_argument("classifier", type=Path, help="run folder of `admg train-classifier`")
    parser.add_argument("--name", default="fashion-mnist")
    args = parser.parse_args()
    models = Path(__file__).parents[1] / "src" / "admg" / "models" / args.name
    model, classifier = admg.load(args.diffusion), admg.load_classifier(args.classifier)
    if model.label_names != classifier.label_names:
        sys.exit("the two were trained on different labels")
    for part, run, kind in ((model, args.diffusion, "diffusion"), (classifier, args.classifier, "classifier")):
        part.save(models / kind, dtype=torch.float16)
        thin(run / "log.csv", models / f"{kind}-log.csv")
        shutil.copyfile(run / "curves.png", models / f"{kind}-curves.png")
    with atomic(models / "README.md") as path:
        path.write_text(describe(args.name, model, classifier), encoding="utf-8")
    size = sum(f.stat().st_size for f in models.rglob("*") if f.is_file())
    print(f"{models}: {size / 1e6:.1f} MB")


def thin(log: Path, to: Path) -> None:
    """About ROWS rows of the log, evenly spread, the last one included."""
    with log.open(newline="") as file:
        rows = list(csv.reader(file))
    body, step = rows[1:], max(1, len(rows[1:]) // ROWS)
    with atomic(to) as path, path.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *reversed(body[::-1][::step])])


def describe(name: str, model: admg.Model, classifier: admg.Classifier) -> str:
    d, c = model.training, classifier.training
    return f"""# {name}

A diffusion model and a noisy classifier, trained from nothing by these commands on the 60,000 training images of
Fashion-MNIST (MIT licence), where `data/fashion-mnist` is a folder or link with its four IDX files. The weights are the
exponential moving average, stored as float16. `*-log.csv` are the log figures, `*-curves.png` the curves.

    {d["command"]}

{d["steps"]:,} steps, {d["images"]:,} images, seed {d["train"]["seed"]}, {d["date"]}; at the end mse {d["mse"]:.4f},
vb {d["vb"]:.5f} bits per dimension.

    {c["command"]}

{c["steps"]:,} steps, {c["images"]:,} images, seed {c["train"]["seed"]}, {c["date"]}; validation accuracy over all noise
levels {c["val_accuracy"]:.3f}, without noise {c["val_accuracy_t0"]:.3f}.
"""


if __name__ == "__main__":
    main()
