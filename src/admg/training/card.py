"""The model card: README.md beside the weights, which describes the model and its training.

It is Markdown with a block of YAML in front, as the Hugging Face Hub reads it.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from admg.checkpoints.card import CARD, CURVES, MARK, SAMPLES, is_users
from admg.checkpoints.card_text import LICENCE, code, front_matter, one_line, plain, summary, table, usage
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.provenance import installed_version
from admg.data import ImageDataset
from admg.data.classes import describe_classes
from admg.files import atomic

SHOWN_METRICS = (
    "loss", "mse", "vb", "accuracy", "train_loss", "val_loss", "train_accuracy", "val_accuracy", "fd", "fid"
)  # fmt: skip
"""Measurements that are shown, if there are any."""
TEXTS = {
    "loss": "training loss, mean over the last steps",
    "mse": "mean squared error of the prediction, mean over the last steps",
    "vb": "term of the variational bound in bits per dimension, mean over the last steps",
    "accuracy": "accuracy on noised training images, mean over the last steps",
    "train_loss": "mean squared error at ten noise levels, training images",
    "val_loss": "mean squared error at ten noise levels, held-out images",
    "train_accuracy": "accuracy at ten noise levels, training images",
    "val_accuracy": "accuracy at ten noise levels, held-out images",
    "fd": "Fréchet distance to the training images in the features of {network}, {num} samples",
    "fid": "FID to the training images, {num} samples",
}


@dataclass(frozen=True)
class RunDetails:
    """Facts about a run for its card, besides the provenance of the model.

    out: run directory
    dataset: training images
    device: device that the network was trained on
    processes: number of processes
    samples: whether the pictures of samples were drawn with the weights of the model
    """

    out: Path
    dataset: ImageDataset
    device: torch.device
    processes: int
    samples: bool = True


def write_card(folder: Path, model: Model | Classifier, run: RunDetails) -> None:
    """Write the card of a model into its folder, with pictures of samples and curves; a README.md of the user stays."""
    if is_users(folder):
        return
    samples = latest_picture(run.out / "samples", int(model.training["steps"])) if run.samples else None
    for source, name in ((samples, SAMPLES), (run.out / "curves.png", CURVES)):
        if source is not None and source.is_file():
            with atomic(folder / name) as temporary:
                shutil.copyfile(source, temporary)
    pictures = {name for name in (SAMPLES, CURVES) if (folder / name).is_file()}
    with atomic(folder / CARD) as temporary:
        temporary.write_text(card_text(model, run, pictures), encoding="utf-8")


def latest_picture(folder: Path, step: int) -> Path | None:
    """Return the picture of the last preview up to a step, or None."""
    pictures = [*folder.glob("step_*.png")] or [*folder.glob("accuracy_*.png")]
    known = [path for path in pictures if path.stem.rpartition("_")[2].isdecimal()]
    known = [path for path in known if int(path.stem.rpartition("_")[2]) <= step]
    return max(known, default=None)


def card_text(model: Model | Classifier, run: RunDetails, pictures: set[str]) -> str:
    """Return the text of the card. pictures: names of the pictures beside it"""
    training = model.training
    sections = [
        front_matter(model),
        MARK,
        f"# {plain(run.out.resolve().name)}",
        summary(model),
        f"![Samples]({SAMPLES})" if SAMPLES in pictures else "",
        "## Use",
        *usage(model),
        "## Training images",
        images_text(training, run.dataset),
        "## Training",
        *training_text(model),
        "## Results",
        table(("measurement", "value", ""), results(training)),
        f"![Curves]({CURVES})" if CURVES in pictures else "",
        "## Environment",
        table(("", ""), environment(run, training)),
        "## Licence",
        LICENCE,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def images_text(training: Mapping[str, Any], dataset: ImageDataset) -> str:
    """Return a description of the training images."""
    sentences = [f"{len(dataset):,} images of `{code(training.get('data', 'unknown'))}`."]
    if dataset.label_names:
        sentences.append(f"Classes: {plain(describe_classes(dataset))}.")
    reading = {name: training.get(name) or getattr(dataset, name, None) for name in ("fit", "crop", "flip")}
    options = [f"{name} `{code(value)}`" for name, value in reading.items() if value]
    sentences += [f"Fitted to the size with {', '.join(options)}."] if options else []
    validation = training.get("validation", {})
    if "fraction" in validation:
        share = f"{validation['images']:,} further images ({validation['fraction']:.3g} of all)"
        sentences.append(f"{share} were held out for validation.")
    elif validation:
        sentences.append(f"Validation: {validation['images']:,} images of `{code(validation['data'])}`.")
    if training.get("label_dropout"):
        sentences.append(f"{training['label_dropout']:.3g} of the images were trained on without their label.")
    return " ".join(sentences)


def training_text(model: Model | Classifier) -> list[str]:
    """Return the command, the recipe, the initial weights, and a table of all options."""
    training = model.training
    lines = [f"    {one_line(training['command'])}"] if training.get("command") else []
    if training.get("recipe"):
        lines.append(f"Recipe: `{code(training['recipe'])}`.")
    if isinstance(training.get("init"), Mapping):
        lines.append(f"Training began with the weights of `{code(training['init'].get('model', 'another model'))}`.")
    options: dict[str, Any] = {**training.get("objective", {}), **training["train"]}
    for part in (model.config, getattr(model.network, "config", None)):
        options |= dict(vars(part)) if part is not None else {}
    typed = {name: ",".join(map(str, v)) if isinstance(v, list | tuple) else v for name, v in options.items()}
    rows = [(name, f"`{code(value)}`") for name, value in typed.items() if value not in (None, "", {})]
    return [*lines, table(("option", "value"), rows)]


def results(training: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the latest measurements with their meaning."""
    evaluation = training.get("evaluation", {})
    names = {"network": evaluation.get("evaluate_network", "a network"), "num": evaluation.get("evaluate_num", "some")}
    shown = [name for name in SHOWN_METRICS if isinstance(training.get(name), int | float)]
    return [(f"`{name}`", f"{training[name]:.4g}", plain(TEXTS[name].format(**names))) for name in shown]


def environment(run: RunDetails, training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield versions and hardware."""
    yield "admg", installed_version() or "not installed"
    yield "Python", platform.python_version()
    yield "PyTorch", torch.__version__
    if run.device.type == "cuda":
        yield "CUDA", str(torch.version.cuda)
        yield "device", torch.cuda.get_device_name(run.device)
    else:
        yield "device", f"{run.device.type} ({platform.machine()})"
    yield "processes", str(run.processes)
    yield "system", platform.system()
    yield "seed", str(training["train"]["seed"])
    yield "date", str(training.get("date", ""))
