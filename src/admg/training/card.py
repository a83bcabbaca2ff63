"""The model card: README.md beside the weights, which says what the model is and how it was made.

It is Markdown with a block of YAML in front, as the Hugging Face Hub reads it.
"""

from __future__ import annotations

import html
import json
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from admg.checkpoints.card import CARD, CURVES, MARK, SAMPLES, is_users
from admg.checkpoints.model import Classifier, Model
from admg.data import ImageDataset
from admg.data.classes import describe_classes
from admg.evaluation.kept import installed_version
from admg.files import atomic

TASKS = {"diffusion model": "unconditional-image-generation", "upsampler": "image-to-image"}
"""Task of each kind of model on the Hub; that of a classifier is image-classification."""
SHOWN = ("loss", "mse", "vb", "accuracy", "train_loss", "val_loss", "val_accuracy", "fd", "fid")
"""Measurements that are shown, if there are any."""
TEXTS = {
    "loss": "training loss, mean over the last steps",
    "mse": "mean squared error of the prediction, mean over the last steps",
    "vb": "term of the variational bound in bits per dimension, mean over the last steps",
    "accuracy": "accuracy on noised training images, mean over the last steps",
    "train_loss": "mean squared error at ten noise levels, training images",
    "val_loss": "mean squared error at ten noise levels, held-out images",
    "val_accuracy": "accuracy at ten noise levels, held-out images",
    "fd": "Fréchet distance to the training images in the features of {network}, {num} samples",
    "fid": "FID to the training images, {num} samples",
}


@dataclass(frozen=True)
class RunDetails:
    """What a card says of a run besides the provenance of the model.

    out: run directory
    dataset: training images
    device: device that the network was trained on
    processes: number of processes
    """

    out: Path
    dataset: ImageDataset
    device: torch.device
    processes: int


def write_card(folder: Path, model: Model | Classifier, run: RunDetails) -> None:
    """Write the card of a model into its folder, with pictures of samples and curves; a README.md of the user stays."""
    if is_users(folder):
        return
    samples = latest_picture(run.out / "samples", int(model.training["steps"]))
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
        "The owner of the model has not stated a licence. State it here, and as `license:` in the first lines.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def front_matter(model: Model | Classifier) -> str:
    """Return the block of YAML that the Hub reads."""
    task = TASKS.get(model.kind_name, "image-classification")
    lines = ["library_name: admg", f"pipeline_tag: {task}", "tags:", "- diffusion", "- guided-diffusion", "- pytorch"]
    return "\n".join(["---", *lines, "# license: to be chosen by the owner of the model", "---"])


def summary(model: Model | Classifier) -> str:
    """Return what the model is in a sentence, and how long it was trained."""
    training, config = model.training, getattr(model.network, "config", None)
    kind = model.kind_name
    if isinstance(model, Model) and model.conditional:
        kind = f"class-conditional {kind}"
    if config is not None:
        channels = {1: "grey", 3: "colour"}.get(config.image_channels, f"{config.image_channels}-channel")
        kind += f" for {channels} images of {config.image_size} x {config.image_size} pixels"
    labels = f" with {model.labels.count} labels" if model.labels.count else ""
    parameters = sum(p.numel() for p in model.network.parameters()) / 1e6
    steps = "1 step" if training["steps"] == 1 else f"{training['steps']:,} steps"
    average = f" (ema {plain(training['average'])})" if training.get("average") else ""
    return (
        f"A {kind}{labels}. The network has {parameters:.2f} M parameters and was trained for {steps} "
        f"({training['images']:,} images); its weights are an average over the training{average}."
    )


def usage(model: Model | Classifier) -> list[str]:
    """Return how the model is used in Python and on the command line."""
    name = next(iter(model.label_names), None)
    if isinstance(model, Classifier):
        lines = ['classifier = admg.load_classifier("this-folder")']
        lines += ["guide = admg.guidance.ClassifierGuidance(classifier, scale=2.0)"]
        shell = "admg sample --model MODEL --classifier this-folder --scale 2 --num 8 --out out"
    elif model.upsamples:
        lines = ['model = admg.load_upsampler("this-folder")', "samples = admg.upsample(model, images)"]
        shell = "admg upsample --model this-folder --base samples.npz --out large"
    else:
        label = "None" if name is None else json.dumps(name, ensure_ascii=False)
        lines = ['model = admg.load("this-folder")', f"samples = admg.sample(model, {label}, num=8)"]
        option = "" if name is None else f" --label {shlex.quote(name)}"
        shell = f"admg sample --model this-folder{option} --num 8 --out out"
    python = "\n".join(f"    {line}" for line in ["import admg", *lines])
    return [python, f"    {one_line(shell)}"]


def images_text(training: Mapping[str, Any], dataset: ImageDataset) -> str:
    """Return what is known of the training images."""
    found = [f"{len(dataset):,} images of `{code(training.get('data', 'unknown'))}`."]
    if dataset.label_names:
        found.append(f"Classes: {plain(describe_classes(dataset))}.")
    reading = {name: training.get(name) or getattr(dataset, name, None) for name in ("fit", "crop", "flip")}
    options = [f"{name} `{code(value)}`" for name, value in reading.items() if value]
    found += [f"Fitted to the size with {', '.join(options)}."] if options else []
    validation = training.get("validation", {})
    if "fraction" in validation:
        share = f"{validation['images']:,} further images ({validation['fraction']:.3g} of all)"
        found.append(f"{share} were held out for validation.")
    elif validation:
        found.append(f"Validation: {validation['images']:,} images of `{code(validation['data'])}`.")
    if training.get("label_dropout"):
        found.append(f"{training['label_dropout']:.3g} of the images were trained on without their label.")
    return " ".join(found)


def training_text(model: Model | Classifier) -> list[str]:
    """Return the command, the recipe, the initial weights, and a table of all options."""
    training = model.training
    found = [f"    {one_line(training['command'])}"] if training.get("command") else []
    if training.get("recipe"):
        found.append(f"Recipe: `{code(training['recipe'])}`.")
    if isinstance(training.get("init"), Mapping):
        found.append(f"Training began with the weights of `{code(training['init'].get('model', 'another model'))}`.")
    options: dict[str, Any] = {**training.get("objective", {}), **training["train"]}
    for part in (model.config, getattr(model.network, "config", None)):
        options |= dict(vars(part)) if part is not None else {}
    typed = {name: ",".join(map(str, v)) if isinstance(v, list | tuple) else v for name, v in options.items()}
    rows = [(name, f"`{code(value)}`") for name, value in typed.items() if value not in (None, "", {})]
    return [*found, table(("option", "value"), rows)]


def results(training: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the latest measurements with their meaning."""
    evaluation = training.get("evaluation", {})
    names = {"network": evaluation.get("evaluate_network", "a network"), "num": evaluation.get("evaluate_num", "some")}
    shown = [name for name in SHOWN if isinstance(training.get(name), int | float)]
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


# -- Markdown ---------------------------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: Any) -> str:
    """Return a table, or "" if it has no rows."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines) if len(lines) > 2 else ""


def plain(text: object) -> str:
    """Return a text that Markdown shows as it is, in one line."""
    escaped = html.escape(one_line(text), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in escaped)


def code(text: object) -> str:
    """Return a text for the inside of backticks in a table."""
    return one_line(text).replace("`", "'").replace("|", "\\|")


def one_line(text: object) -> str:
    """Return a text with letters that cannot be printed replaced, so that it is one line."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
