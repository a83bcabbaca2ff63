"""What `admg train` and `admg train-classifier` share: data options, the progress bar, and how a run is told."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from tqdm.auto import tqdm

from admg.checkpoints import native, presets
from admg.data import Dataset
from admg.data import open as open_dataset
from admg.files import check_output_folder
from admg.training import TrainConfig, train

from .measure import device_of, note_missing_kernels


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images.

    data: a folder with a sub-folder per class, or of files label_name.png, or of IDX files; or an .npz
    image_size: pixels of the side of the training images
    fit: resize (shorter side to the image size) or pad (smaller images with black)
    crop: center or random
    flip: mirror a random half of the images
    split: train or test, where the data has both
    strict: stop at the first file that is not an image, instead of skipping it
    """

    data: str
    image_size: int = 64
    fit: Literal["resize", "pad"] = "resize"
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    split: Literal["train", "test"] = "train"
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Where the weights come from.

    init: start from the weights of this model of the same architecture, a name or a folder; none: from random ones
    """

    init: str = ""


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="folder of the run; one that holds a run is resumed")
    parser.add_argument("--config", metavar="FILE", help="TOML file of options; the command line wins over it")


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, by name; what is missing has its default in a dataclass."""
    values = {name: value for name, value in vars(args).items() if value is not None}
    for name in ("data", "out"):
        if not values.get(name):
            raise ValueError(f"--{name} is required")
    return values


def open_data(config: DataConfig) -> Dataset:
    dataset = open_dataset(
        config.data,
        config.image_size,
        fit=config.fit,
        crop=config.crop,
        flip=config.flip,
        split=config.split,
        strict=config.strict,
    )
    if dataset.skipped:
        for path, reason in dataset.skipped[:10]:
            print(f"skipped {path}: {reason}", file=sys.stderr)
        print(f"skipped {len(dataset.skipped)} files that are not images; {len(dataset)} are", file=sys.stderr)
    return dataset


def start_from(network: nn.Module, init: str, part: str) -> dict[str, Any]:
    """Fill the network with the weights of a model, if one is named, and tell how that one was trained.

    part: "diffusion" or "classifier". ValueError: the weights do not fit.
    """
    if not init:
        return {}
    folder = presets.find(init, part)
    training = native.read_config(folder, part).get("training", {})
    native.load_weights(folder, network)
    return {"init": {"model": init, **training}}


def seed_torch(seed: int) -> None:
    torch.manual_seed(seed)


def learn(task: Any, dataset: Dataset, config: TrainConfig, values: dict[str, Any], start: dict[str, Any]) -> None:
    """Train with a progress bar, and say where things are. start: what start_from() told, for the provenance"""
    out = check_output_folder(values["out"])
    parameters = sum(p.numel() for p in task.network.parameters())
    print(
        f"{len(dataset)} images, {len(dataset.label_names)} labels; {parameters / 1e6:.2f} M parameters; run in {out}"
    )
    if find_spec("tensorboard") is None:
        print(
            "no TensorBoard scalars: `pip install 'admg[train]'` brings them; log.csv and curves.png are written anyway"
        )
    note_missing_kernels(device_of(config.device))
    command = shlex.join(["admg", *sys.argv[1:]])
    provenance = {"data": Path(values["data"]).name, "command": command, "date": time.strftime("%Y-%m-%d"), **start}
    bar = None
    for figures in train(task, dataset, out, config, provenance):
        if bar is None:
            first = figures["step"] - 1
            if first:
                print(f"resumed at step {first}")
            bar = tqdm(total=config.steps, initial=first, unit="step", smoothing=0.05, mininterval=1)
        bar.set_postfix(loss=f"{figures['loss']:.4f}", refresh=False)
        bar.update()
    if bar is None:
        print(f"nothing to do: {out} has been trained for {config.steps} steps already; raise --steps to go on")
    else:
        bar.close()
        print(f"model: {out / 'model'}   curves: {out / 'curves.png'}   samples: {out / 'samples'}")
