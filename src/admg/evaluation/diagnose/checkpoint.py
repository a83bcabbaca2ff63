"""Diagnosis of a checkpoint from a folder of images: loading, the size and labels of the images, and the report."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from admg.checkpoints import loading, openai
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.openai.shapes import resolutions
from admg.checkpoints.published import PUBLISHED
from admg.config import check_integer
from admg.data import open as open_dataset
from admg.data.arrays import Split
from admg.data.value_range import ValueRange
from admg.engine.device import choose_device
from admg.evaluation.progress import Show, track
from admg.evaluation.real_images import RealImages, header, open_real_images
from admg.evaluation.sources import Fit
from admg.generation.starts import TrainedReading
from admg.models import UNetConfig

from . import text
from .search import Board, Diagnosis, conclude, search

SAMPLED = 100


@dataclass(frozen=True, repr=False)
class CheckpointDiagnosis:
    """The settings of a checkpoint, inferred from images; `print` shows a table, the verdict and advice.

    diagnosis: the result of the search
    checkpoint: name of the checkpoint
    file: whether it is a file of weights, which has no settings of its own
    flags: whether flags were given
    sized: whether the image size was given
    upsamples: whether it is an upsampling model
    image_size: side of the images in pixels
    images: number of images
    labels: how the labels of the images were used
    """

    diagnosis: Diagnosis
    checkpoint: str
    file: bool
    flags: bool
    sized: bool
    upsamples: bool
    image_size: int
    images: int
    labels: str

    def __repr__(self) -> str:
        size = f"{self.image_size}x{self.image_size}"
        given = "flags" if self.flags else "" if self.file else "checkpoint"
        lines = [f"{self.checkpoint}, {self.images} images of {size} pixels, {self.labels}"]
        lines += [text.table(self.diagnosis), "", text.verdict(self.diagnosis, self.images, given)]
        if self.diagnosis.verdict == "none":
            return "\n".join(lines)
        lines += text.remarks(self.diagnosis)
        if self.file and not self.flags and not self.sized:
            lines.append(f"The image size {self.image_size} follows from the shapes and was not tried (--image-size).")
        return "\n".join([*lines, *text.how_to_import(self.diagnosis, self.upsamples, self.path)])

    @property
    def path(self) -> str | None:
        """The file of weights, or None."""
        return self.checkpoint if self.file else None


def diagnose_checkpoint(
    checkpoint: Path | str,
    images: Path | str,
    *,
    flags: openai.GivenFlags | None = None,
    image_size: int | None = None,
    num: int = 16,
    fit: Fit | None = None,
    split: Split = "test",
    value_range: ValueRange | None = None,
    unconditional: bool = False,
    exhaustive: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: Show = True,
) -> CheckpointDiagnosis:
    """Infer the settings of a checkpoint that its weights do not determine, from real images.

    >>> found = diagnose_checkpoint("fashion-mnist", folder, num=2, fit="pad", progress=False)
    >>> found.diagnosis.process.noise_schedule
    'cosine'

    checkpoint: a file of weights, a checkpoint folder, or a name
    images: a folder of images or IDX files, or an .npz, similar to the training data
    flags: flags of guided-diffusion's scripts, to check
    image_size: side of the images in pixels; by default that of the flags, of the images, or of the weights
    num: number of images, spread over all
    fit: fitting of images smaller than the model's: "resize" enlarges them, "pad" adds a border
    split: "train" or "test", of data that have both
    value_range: values of black and white; by default as in training, if that is known, or as `admg.data.open` finds
        them
    unconditional: if True, the network is not conditioned on the labels of the images
    exhaustive: whether to try all combinations first, which is several times slower
    seed: seed of the noise
    device: "auto", "cpu", "cuda" or a device
    progress: True for a bar, False for none, or a function that is called with a `Progress`
    Raises ValueError if the checkpoint is a classifier, or if images, flags and checkpoint do not fit together.
    """
    check_integer("seed", seed, 0)
    checkpoint = str(checkpoint)
    file = loading.weights_file(checkpoint) is not None
    model = load(checkpoint, flags)
    size = image_size
    if size is None and flags is None and file:
        size = size_of_images(images, fit, model, value_range)
    model = resized(model, size, flags).to(choose_device(device))
    real_images, note = open_images(images, model, num, fit, split, unconditional, value_range)
    x0, y = real_images.batch(slice(None))
    board: Board | None = None
    with track("diagnosing", 0, "pass", progress) as update:
        for board in search(model, x0, y, seed=seed, exhaustive=exhaustive):
            best = f"best so far: {text.joined(board.best)}" if board.best else ""
            update(board.done, max(board.planned, board.done), best)
    assert board is not None
    return CheckpointDiagnosis(
        diagnosis=conclude(board),
        checkpoint=checkpoint,
        file=file,
        flags=flags is not None,
        sized=size is not None,
        upsamples=model.upsamples,
        image_size=x0.shape[-1],
        images=len(x0),
        labels=note,
    )


def load(checkpoint: str, flags: openai.GivenFlags | None) -> Model:
    """Return the model with its own settings, with those of the flags, or with inferred ones for a file of weights."""
    path = Path(checkpoint).expanduser()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assumed")  # inferred settings, which are tried here
        loaded: Model | Classifier
        if flags is not None or loading.weights_file(checkpoint):
            loaded = openai.load(path, flags)
        elif (published := PUBLISHED.get(checkpoint)) and published.kind == "upsampler":
            loaded = loading.load_upsampler(checkpoint)
        else:
            loaded = loading.load(checkpoint)
    if isinstance(loaded, Classifier):
        raise ValueError(f"{checkpoint} is a classifier: only diffusion models and upsamplers can be diagnosed")
    return loaded


def size_of_images(
    path: Path | str, fit: str | None, model: Model, value_range: ValueRange | None = None
) -> int | None:
    """Return the side of the images if all are square and smaller than the weights suggest, else None.

    With a border (fit: pad) it is the next size that the levels of the network divide.
    """
    config = cast(UNetConfig, model.network.config)
    options = TrainedReading.from_model(model).options(value_range)
    dataset = open_dataset(path, 1, labels="none", **options)
    sides = {side for image in dataset.images[:SAMPLED] for side in header(image)}
    if len(sides) != 1 or (side := sides.pop()) >= config.image_size:
        return None
    padded = -(-side // config.downsampling) * config.downsampling
    return padded if padded == side or fit == "pad" else None


def resized(model: Model, size: int | None, flags: openai.GivenFlags | None) -> Model:
    """Return the model for images of this size, with the attention at the same levels."""
    config = cast(UNetConfig, model.network.config)
    if size is None or size == config.image_size:
        return model
    if flags is not None:
        raise ValueError(f"image_size contradicts the flags: got {size} and {config.image_size}")
    changed = dataclasses.replace(config, image_size=size, attention_resolutions=resolutions(config, size))
    model.network.config = changed  # type: ignore[assignment]
    return dataclasses.replace(model, shape=(config.image_channels, size, size))


def open_images(
    path: Path | str,
    model: Model,
    num: int,
    fit: Fit | None,
    split: Split,
    unconditional: bool,
    value_range: ValueRange | None = None,
) -> tuple[RealImages, str]:
    """Return the images, with labels if the network has them, and a remark on the labels.

    Raises ValueError if the labels are left out and the network was never trained without them.
    """

    def opened(labels: bool) -> RealImages:
        found = open_real_images(
            path, model.shape, model.labels if labels else None, num=num, fit=fit, split=split,
            value_range=value_range, trained=TrainedReading.from_model(model),
        )  # fmt: skip
        if found.labels is None:
            model.check_unconditional()
        return found

    if not model.conditional or unconditional:
        return opened(labels=False), "no labels"
    try:
        images = opened(labels=True)
    except ValueError as error:
        reason = str(error).removesuffix("; --unconditional leaves labels out")
        return opened(labels=False), f"not conditioned on labels: {reason}"
    if images.labels is None:
        return images, "not conditioned on labels, as the images have none"
    return images, "conditioned on their labels"
