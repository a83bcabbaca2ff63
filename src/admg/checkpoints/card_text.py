"""Text of model cards: Markdown with a block of YAML in front, as the Hugging Face Hub reads it."""

from __future__ import annotations

import html
import json
import shlex
from pathlib import Path
from typing import Any

from admg.files import atomic

from .card import CARD, MARK, is_users
from .model import Classifier, Model

TASKS = {"diffusion model": "unconditional-image-generation", "upsampler": "image-to-image"}
"""Task of each kind of model on the Hub; that of a classifier is image-classification."""
LICENCE = "The owner of the model has not stated a licence. State it here, and as `license:` in the first lines."


def write_short_card(folder: Path, model: Model | Classifier, name: str, where: str) -> None:
    """Write the card of a model that is saved outside of a training run; a README.md of the user stays.

    name: title of the card
    where: name or folder for loading the model
    """
    if is_users(folder):
        return
    with atomic(folder / CARD) as temporary:
        temporary.write_text(short_card(model, name, where), encoding="utf-8")


def short_card(model: Model | Classifier, name: str, where: str) -> str:
    """Return a card that describes the model, its use, and its training according to the checkpoint."""
    training = model.training
    known = ("data", "command", "recipe", "steps", "images", "label_dropout", "average", "date", "url", "hub")
    rows = [(key, f"`{code(training[key])}`") for key in known if training.get(key) not in (None, "", {})]
    sections = [
        front_matter(model),
        MARK,
        f"# {plain(name)}",
        summary(model),
        "## Use",
        *usage(model, where),
        "## Training" if rows else "",
        table(("", ""), rows),
        "## Licence",
        LICENCE if not training.get("license") else f"{plain(training['license'])}.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def front_matter(model: Model | Classifier) -> str:
    """Return the block of YAML that the Hub reads."""
    task = TASKS.get(model.kind_name, "image-classification")
    lines = ["library_name: admg", f"pipeline_tag: {task}", "tags:", "- diffusion", "- guided-diffusion", "- pytorch"]
    return "\n".join(["---", *lines, "# license: to be chosen by the owner of the model", "---"])


def summary(model: Model | Classifier) -> str:
    """Return a sentence that describes the model, and the length of its training if known."""
    training, config = model.training, getattr(model.network, "config", None)
    kind = model.kind_name
    if isinstance(model, Model) and model.conditional:
        kind = f"class-conditional {kind}"
    if config is not None:
        channels = {1: "grey", 3: "colour"}.get(config.image_channels, f"{config.image_channels}-channel")
        kind += f" for {channels} images of {config.image_size} x {config.image_size} pixels"
    labels = f" with {model.labels.count} labels" if model.labels.count else ""
    parameters = sum(p.numel() for p in model.network.parameters()) / 1e6
    text = f"A {kind}{labels}. The network has {parameters:.2f} M parameters"
    if not {"steps", "images"} <= training.keys():  # it was not trained by admg
        return f"{text}."
    steps = "1 step" if training["steps"] == 1 else f"{training['steps']:,} steps"
    average = f" (ema {plain(training['average'])})" if training.get("average") else ""
    return (
        f"{text} and was trained for {steps} ({training['images']:,} images); its weights are an average over the "
        f"training{average}."
    )


def usage(model: Model | Classifier, where: str = "this-folder") -> list[str]:
    """Return instructions for using the model in Python and on the command line.

    where: name or folder that the model is loaded by
    """
    name = next(iter(model.label_names), None)
    if isinstance(model, Classifier):
        lines = [f'classifier = admg.load_classifier("{where}")']
        lines += ["guide = admg.guidance.ClassifierGuidance(classifier, scale=2.0)"]
        shell = f"admg sample --model MODEL --classifier {where} --scale 2 --num 8 --out out"
    elif model.upsamples:
        lines = [f'model = admg.load_upsampler("{where}")', "samples = admg.upsample(model, images)"]
        shell = f"admg upsample --model {where} --base samples.npz --out large"
    else:
        label = "None" if name is None else json.dumps(name, ensure_ascii=False)
        lines = [f'model = admg.load("{where}")', f"samples = admg.sample(model, {label}, num=8)"]
        option = "" if name is None else f" --label {shlex.quote(name)}"
        shell = f"admg sample --model {where}{option} --num 8 --out out"
    python = "\n".join(f"    {line}" for line in ["import admg", *lines])
    return [python, f"    {one_line(shell)}"]


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
