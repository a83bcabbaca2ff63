"""`admg neighbours SAMPLES TRAINING`: the nearest training images of samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from admg.config import check, group, setting
from admg.evaluation.neighbours import neighbours
from admg.files import check_output_folder

from .feature_options import FeatureOptions

EXAMPLES = """  admg neighbours samples.npz data/fashion-mnist --fit pad --network efficientnet-lite0 --num 12
  admg neighbours out data/fashion-mnist --fit pad --network efficientnet-lite0 --closest"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Find the nearest training images of samples, to detect memorisation.

    Each row of the picture is a sample and its nearest training images in the features of the network; the number
    beside it is the distance of the nearest. The row of a memorised sample shows the same image twice.

    samples: an .npz (arr_0) or a folder of images
    training: training images: a folder, IDX files or an .npz
    num: number of samples, spread over all
    num_training: number of training images to search, spread over all (default: all)
    k: number of training images per sample
    closest: show the samples that are closest to a training image
    out: PNG file of the picture
    split: part of the data to read, if there are both a train and a test part
    """

    samples: str = setting(positional=True, metavar="SAMPLES")
    training: str = setting(positional=True, metavar="TRAINING")
    num: int = setting(10, min=1)
    num_training: int | None = setting(None, min=2)
    k: int = setting(5, min=1, metavar="K")
    closest: bool = False
    out: Path = setting(Path("neighbours.png"), metavar="PNG")
    split: Literal["train", "test"] = "train"
    features: FeatureOptions = group(FeatureOptions)

    def __post_init__(self) -> None:
        check(self)
        if self.out.suffix != ".png":
            raise ValueError(f"out must end in .png, got {self.out}")


def run(options: Options) -> None:
    """Print the nearest images, and write the picture."""
    check_output_folder(options.out.parent)
    result = neighbours(
        options.samples,
        options.training,
        num=options.num,
        num_training=options.num_training,
        k=options.k,
        closest=options.closest,
        split=options.split,
        **options.features.arguments,
    )
    if not len(result.nearest.numbers):  # another process than the first
        return
    result.save(options.out)
    print(result)
    print(options.out)
