"""`admg data pack`: a data set as the zip of EDM's dataset tool, resized once."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm

from admg.config import check, printable, setting
from admg.data import DataConfig, pack
from admg.data.arrays import Split
from admg.data.config import Background, check_value_range
from admg.data.decoding import Frames
from admg.data.labelling import LabelSource
from admg.data.pack import check_target
from admg.data.scan import Verify
from admg.data.workers import MAX_WORKERS
from admg.models import UNetConfig

from .tables import size_text

EXAMPLES = """  admg data pack photos --image-size 64 --out photos-64.zip
  admg data pack imagenet/train --image-size 256 --out imagenet-256.zip --workers 16
  admg data pack "shards-{000..099}.tar" --image-size 64 --out shards-64.zip --compression 6"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a data set, resized once, as the zip of StyleGAN's and EDM's dataset tools.

    Training on the zip gives the same result as on the source, and is several times as fast for large photographs. The
    images are resized as guided-diffusion does: halved by box filters while they are twice as large, then a bicubic
    step and a crop of the centre. Folders named by WordNet ids (n01440764) become ImageNet's labels with the published
    numbers and names. An interrupted command continues when it is started again, and the zip is the same to the byte.

    source: data set: anything that --data of admg train accepts
    image_size: side of the images in pixels
    out: file to write, which ends in .zip
    fit: fitting of other sizes: resize scales the shorter side to the image size, pad adds a border
    image_channels: channels of the images, from 1 to 4; 2 and 4 keep the transparency of files as a channel
    value_range: values of black and white in all images
    frames: frames of animations and pages of TIFF files: first uses the first of each file, all uses every one
    background: colour behind transparent pixels and around padded images
    split: part of the data to read, if there are both a train and a test part
    labels: labels of a folder or archive, see --labels of admg train
    strict: stop at the first file that is not an image instead of leaving it out
    verify: check of the images before they are packed, see --verify of admg train
    compression: compression of the PNG files: 0, as EDM's tool writes them, to 9
    workers: processes that read and resize images
    overwrite: replace an existing file
    """

    source: str = setting(positional=True)
    image_size: int = setting(min=1, max=UNetConfig.RANGES["image_size"][1])
    out: Path = setting(metavar="FILE")
    fit: Literal["resize", "pad"] = "resize"
    image_channels: int | None = setting(None, min=1, max=4, default_text="1 if all images are grey, else 3")
    value_range: tuple[float, ...] = setting(
        (), metavar="LOW,HIGH", dashes=True, default_text="from the type of the values, if unambiguous"
    )
    frames: Frames = "first"
    background: Background | None = setting(None, default_text="white behind; black around if none is transparent")
    split: Split = "train"
    labels: LabelSource = "auto"
    strict: bool = False
    verify: Verify = "headers"
    compression: int = setting(0, min=0, max=9)
    workers: int | None = setting(None, min=0, max=MAX_WORKERS, default_text="one per processor")
    overwrite: bool = False

    def __post_init__(self) -> None:
        check(self)
        check_value_range(self.value_range)


def run(options: Options) -> None:
    check_target(options.out, options.overwrite)  # before the images are read, which may take long
    fields = ("image_size", "fit", "image_channels", "value_range", "frames", "background", "split", "labels", "strict")
    chosen = {name: getattr(options, name) for name in fields}
    dataset = DataConfig(data=options.source, verify=options.verify, **chosen).open()
    workers = options.workers if options.workers is not None else os.cpu_count() or 1
    problems = [f"{path}: {reason}" for path, reason in dataset.skipped]
    packed = pack(
        dataset,
        options.out,
        workers=workers,
        compression=options.compression,
        strict=options.strict,
        overwrite=options.overwrite,
    )
    count = 0
    with tqdm(total=len(dataset), unit=" images", mininterval=1, desc=printable(options.out.name)) as bar:
        for step in packed:
            count += step.problem is None
            problems += [] if step.problem is None else [step.problem]
            bar.update(step.position - bar.n)
    for problem in problems[:10]:
        print(printable(f"left out {problem}"), file=sys.stderr)
    if problems:
        print(f"left out {len(problems)} files that cannot be read as images", file=sys.stderr)
    size = size_text(options.out.expanduser().stat().st_size)
    print(f"{options.out}: {count} images of {dataset.channels}x{options.image_size}x{options.image_size}, {size}")
