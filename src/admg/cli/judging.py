"""What the commands that look at samples through a feature network share: the network, the images, their features."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import nn
from tqdm.auto import tqdm

from admg.checkpoints import presets
from admg.checkpoints.download import DownloadError
from admg.checkpoints.model import Classifier
from admg.data.arrays import Split
from admg.evaluation import features as networks
from admg.evaluation.features import Activations, FeatureNetwork, own
from admg.evaluation.features import extraction as features
from admg.evaluation.features.base import fingerprint
from admg.evaluation.sources import Source, open_source
from admg.models import ClassifierConfig

from .measure import device_of, label_numbers
from .stages import from_torchrun

OFFLINE_CHOICE = (
    "--network efficientnet-lite0 works without a download, and its figures are called FD-EfficientNetLite0"
)


@dataclass(frozen=True)
class Processes:
    """As torchrun says: this one's number, and how many there are."""

    rank: int
    count: int
    local_rank: int

    @classmethod
    def of_environment(cls) -> Processes:
        return cls(from_torchrun("RANK", 0), from_torchrun("WORLD_SIZE", 1), from_torchrun("LOCAL_RANK", 0))


def add_network_arguments(parser: argparse.ArgumentParser, split: str, within: bool = False) -> None:
    """within: a command that has --batch-size and --device of its own"""
    group = parser.add_argument_group("features")
    add = group.add_argument
    add(
        "--network",
        default="inception",
        metavar="NAME",
        help="inception (2015, of which alone FID is said; downloaded at first use), efficientnet-lite0 (no download), "
        "dinov2_vitl14 and its like, or file.py:name, a torch.nn.Module (default: inception)",
    )
    add("--weights", metavar="FILE", help="Inception's weight file, weights-inception-2015-12-05-6726825d.pth")
    add("--fit", choices=("resize", "pad"), help="where sizes differ: scale and crop to the samples', or put on black")
    add("--split", choices=("train", "test"), default=split, help=f"where the data has both (default: {split})")
    batch = "--feature-batch-size" if within else "--batch-size"
    add(batch, type=int, default=50, metavar="N", help="images at a time (default: 50)")
    if not within:
        add("--device", default="auto", help="cpu or cuda (default: cuda if there is one)")
    add("--cache", metavar="DIR", help="where features are kept for the next time (default: admg's cache folder)")
    add("--no-cache", action="store_true", help="keep no features")


def load_network(args: argparse.Namespace, processes: Processes) -> FeatureNetwork:
    """ValueError or OSError: it cannot be had; of Inception with the choice that needs no download."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.no_cache and processes.count > 1:
        raise ValueError("--no-cache is for one process: several share their features through the cache")
    device = device_of(args.device, processes.local_rank)
    try:
        return networks.load(args.network, args.weights, offline=args.offline).to(device)
    except DownloadError as error:
        raise DownloadError(f"{error}; {OFFLINE_CHOICE}") from None


def open_images(path: str, num: int | None, split: Split, labels: bool = False) -> Source:
    return open_source(path, labels=labels, split=split).spread(num)


def one_size(source: Source) -> Source:
    """Samples are judged in their own size. ValueError: they have several."""
    if source.images is not None and source.size is None:
        raise ValueError(f"{source.name} has images of different sizes: samples must have one")
    return source


def extract(
    source: Source, network: FeatureNetwork, args: argparse.Namespace, processes: Processes, what: str
) -> Activations | None:
    """This process's share with a progress bar, then all features; None: another process than number 0 is done."""
    cache = None if args.no_cache else Path(args.cache).expanduser() if args.cache else features.cache_folder()
    job = features.Extraction(source, network, cache, args.batch_size, processes.rank, processes.count)
    share = sum(len(source.numbers[job.span(block)]) for block in range(processes.rank, len(job), processes.count))
    with tqdm(total=share, unit="image", desc=f"features of {what}", disable=processes.rank > 0) as bar:
        for count in job.work():
            bar.update(count)
    return job.gather() if processes.rank == 0 else None


# -- label accuracy --------------------------------------------------------------------------------------------------

Predict = Callable[[UInt8[np.ndarray, "n h w c"]], Int64[np.ndarray, " n"]]


@dataclass(frozen=True)
class Judge:
    """A classifier of clean images, and its name.

    numbers: of the samples' labels in it, or None: the same
    identity: of its weights and code: equal ones judge equally
    """

    name: str
    predict: Predict
    numbers: list[int] | None = None
    identity: str = ""

    def right(self, source: Source, batch_size: int) -> tuple[int, int]:
        """How many of the labelled images it takes for their label, and how many are labelled."""
        if source.labels is None:
            raise ValueError(f"{source.name} has no labels: label accuracy needs arr_1, or names of classes")
        right, count = 0, 0
        for start in range(0, len(source), batch_size):
            chosen = slice(start, start + batch_size)
            wanted = source.labels[chosen]
            wanted = wanted if self.numbers is None else np.array([self.numbers[k] if k >= 0 else -1 for k in wanted])
            labelled = wanted >= 0
            right += int((self.predict(source[chosen]) == wanted)[labelled].sum())
            count += int(labelled.sum())
        if not count:
            raise ValueError(f"{source.name} has no labels but -1, which stands for none")
        return right, count


def load_judge(spec: str, source: Source, device: torch.device) -> Judge:
    """A noisy classifier by name, told that there is no noise; or file.py:name, an object with predict(images), or a
    module from x in [-1, 1] to logits. ValueError: neither, or other images or labels than the samples'.
    """
    if ".py:" in spec:
        found, digest = own.from_file(spec)
        if source.label_names:
            raise ValueError(f"{source.name} has labels by name, and those of {spec} are numbers: an .npz has arr_1")
        name, identity = spec.rpartition(":")[2], _identity(found, digest)
        if callable(getattr(found, "predict", None)):
            return Judge(name, lambda images: np.asarray(found.predict(images)), identity=identity)
        if isinstance(found, nn.Module):
            module = found.eval().to(device)
            return Judge(name, lambda images: _labels(module(to_x(images, device))), identity=identity)
        raise ValueError(f"{spec} has no predict(images), and is no torch.nn.Module")
    classifier = presets.load_classifier(spec).to(device)
    _check(spec, classifier, source)
    timestep = classifier.diffusion.timestep(0, device)

    def predict(images: np.ndarray) -> np.ndarray:
        return _labels(classifier(to_x(images, device), timestep.expand(len(images))))

    numbers = label_numbers(classifier.labels, source.label_names) if source.label_names else None
    return Judge(spec, torch.inference_mode()(predict), numbers, fingerprint(classifier.network))


def _identity(found: object, digest: str) -> str:
    """Of the code, and of the modules that the object is or holds."""
    parts = [found, *getattr(found, "__dict__", {}).values()]
    return " ".join([digest, *(fingerprint(part) for part in parts if isinstance(part, nn.Module))])


def to_x(images: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device).float() / 127.5 - 1


def _labels(logits: torch.Tensor) -> np.ndarray:
    return logits.argmax(1).cpu().numpy()


def _check(name: str, classifier: Classifier, source: Source) -> None:
    config = cast(ClassifierConfig, classifier.network.config)
    side, channels = config.image_size, config.image_channels
    if source.size != (side, side) or source.channels != channels:
        have = f"{source.channels}x{source.size[0]}x{source.size[1]}" if source.size else "different sizes"
        raise ValueError(f"classifier {name} knows images of {channels}x{side}x{side}; {source.name} has {have}")
    if source.labels is not None and source.labels.max() >= classifier.labels.count:
        raise ValueError(f"{source.name} has a label {source.labels.max()}, {name} knows {classifier.labels.count}")
