"""Put the averaged weights of training runs into the package, as float16, with their log figures.

python tools/ship.py --diffusion runs/fashion-mnist --classifier runs/fashion-mnist-classifier

What is not given stays as it is. A run that started from the shipped weights (--init) is kept as a further stage.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

import admg
from admg.files import atomic

ROWS = 100  # of each log: enough for its curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusion", type=Path, metavar="RUN", help="run folder of `admg train`")
    parser.add_argument("--classifier", type=Path, metavar="RUN", help="run folder of `admg train-classifier`")
    parser.add_argument("--name", default="fashion-mnist")
    args = parser.parse_args()
    models = Path(__file__).parents[1] / "src" / "admg" / "weights" / args.name
    model = admg.load(args.diffusion or models / "diffusion")
    classifier = admg.load_classifier(args.classifier or models / "classifier")
    if model.label_names != classifier.label_names:
        sys.exit("the two were trained on different labels")
    for part, run, kind in ((model, args.diffusion, "diffusion"), (classifier, args.classifier, "classifier")):
        if run:
            stage = "" if (count := len(stages(part.training))) == 1 else f"-{count}"
            part.save(models / kind, dtype=torch.float16)
            thin(run / "log.csv", models / f"{kind}-log{stage}.csv")
            shutil.copyfile(run / "curves.png", models / f"{kind}-curves{stage}.png")
    with atomic(models / "README.md") as path:
        path.write_text(describe(args.name, model, classifier), encoding="utf-8")
    size = sum(f.stat().st_size for f in models.rglob("*") if f.is_file())
    print(f"{models}: {size / 1e6:.1f} MB")


def stages(training: dict[str, Any]) -> list[dict[str, Any]]:
    """The training runs behind a model, the first one first."""
    return [*stages(training["init"]), training] if "init" in training else [training]


def thin(log: Path, to: Path) -> None:
    """About ROWS rows of the log, evenly spread, the last one included."""
    with log.open(newline="") as file:
        rows = list(csv.reader(file))
    body, step = rows[1:], max(1, len(rows[1:]) // ROWS)
    with atomic(to) as path, path.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *reversed(body[::-1][::step])])


def describe(name: str, model: admg.Model, classifier: admg.Classifier) -> str:
    told = [
        stage_text(stage, "at the end mse {mse:.4f}, vb {vb:.5f} bits per dimension")
        for stage in stages(model.training)
    ]
    figures = "validation accuracy over all noise levels {val_accuracy:.3f}, without noise {val_accuracy_t0:.3f}"
    told += [stage_text(stage, figures) for stage in stages(classifier.training)]
    return f"""# {name}

A diffusion model and a noisy classifier, trained by these commands on the 60,000 training images of Fashion-MNIST (MIT
licence), where `data/fashion-mnist` is a folder or link with its four IDX files. A command with `--init {name}` went on
from the weights of the one before it, which the package held then. The weights are the exponential moving average,
stored as float16. `*-log.csv` are the log figures, `*-curves.png` the curves; `-2` are those of a second command.

{"".join(told)}"""


def stage_text(training: dict[str, Any], figures: str) -> str:
    t = training
    seen = f"{t['steps']:,} steps, {t['images']:,} images, seed {t['train']['seed']}, {t['date']}"
    return f"    {t['command']}\n\n{seen}; {figures.format(**t)}.\n\n"


if __name__ == "__main__":
    main()
