"""Copy the averaged weights of training runs into a package, as float16, with their logs and curves.

python tools/ship.py --diffusion runs/fashion-mnist --classifier runs/fashion-mnist-classifier
python tools/ship.py --diffusion runs/emoji --classifier runs/emoji-classifier --name emoji
python tools/ship.py --diffusion runs/emoji-upsampler --name emoji-x2

The model's README.md begins with tools/models/NAME.md. A part that is not given stays unchanged. The log of a run that
started from the shipped weights (--init) is stored as a further stage.
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
from admg.checkpoints.loading import MORE_MODELS
from admg.files import atomic

ROOT = Path(__file__).parents[1]
ROWS = 100
"""Number of rows that are kept of each log."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--diffusion", type=Path, metavar="RUN", help="run directory of `admg train` or `admg train-upsampler`"
    )
    parser.add_argument("--classifier", type=Path, metavar="RUN", help="run directory of `admg train-classifier`")
    parser.add_argument("--name", default="fashion-mnist", help="name of the shipped model (default: fashion-mnist)")
    args = parser.parse_args()
    package = ROOT / ("models/admg_models" if args.name in MORE_MODELS else "src/admg/weights")
    models = package / args.name
    model = admg.load(args.diffusion or models / "diffusion")
    own = args.classifier or (models / "classifier" if (models / "classifier").is_dir() else None)
    classifier = admg.load_classifier(own) if own else None
    if classifier and model.label_names != classifier.label_names:
        sys.exit("the model and the classifier were trained on different labels")
    text = describe(args.name, model, classifier)
    for part, run, kind in ((model, args.diffusion, "diffusion"), (classifier, args.classifier, "classifier")):
        if run and part:
            stage = "" if (count := len(stages(part.training))) == 1 else f"-{count}"
            part.save(models / kind, dtype=torch.float16)
            thin(run / "log.csv", models / f"{kind}-log{stage}.csv")
            shutil.copyfile(run / "curves.png", models / f"{kind}-curves{stage}.png")
    with atomic(models / "README.md") as path:
        path.write_text(text, encoding="utf-8")
    size = sum(f.stat().st_size for f in models.rglob("*") if f.is_file())
    print(f"{models}: {size / 1e6:.1f} MB")


def stages(training: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the training runs that led to a model, in order."""
    return [*stages(training["init"]), training] if "init" in training else [training]


def thin(log: Path, to: Path) -> None:
    """Copy about ROWS rows of the log, evenly spread, including the last one."""
    with log.open(newline="") as file:
        rows = list(csv.reader(file))
    body, step = rows[1:], max(1, len(rows[1:]) // ROWS)
    with atomic(to) as path, path.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *reversed(body[::-1][::step])])


def describe(name: str, model: admg.Model, classifier: admg.Classifier | None) -> str:
    """Return the text of README.md."""
    metrics = "final loss: mse {mse:.4f}, vb {vb:.5f} bits per dimension"
    texts = [stage_text(stage, metrics) for stage in stages(model.training)]
    metrics = (
        "validation accuracy: {val_accuracy:.3f} on average over all noise levels, {val_accuracy_t0:.3f} without noise"
    )
    texts += [stage_text(stage, metrics) for stage in stages(classifier.training)] if classifier else []
    introduction = (ROOT / "tools" / "models" / f"{name}.md").read_text(encoding="utf-8")
    return "\n".join([introduction, *texts])


def stage_text(training: dict[str, Any], metrics: str) -> str:
    """Return the command of a training run and what came of it. metrics: a format string of entries of the record"""
    t = training
    seen = f"{t['steps']:,} steps, {t['images']:,} images, seed {t['train']['seed']}, {t['date']}"
    return f"    {t['command']}\n\n{seen}; {metrics.format(**t)}.\n"


if __name__ == "__main__":
    main()
