"""`admg evaluate nll`: the variational bound of real images, term by term."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from admg.config import check, group, setting
from admg.evaluation.nll import nll
from admg.files import check_output_folder
from admg.generation.run_record import check_no_data_set

from .image_options import ImageOptions

EXAMPLES = """  admg evaluate nll --model fashion-mnist --data data/fashion-mnist --fit pad --num 100 --out nll
  admg evaluate nll --model openai/imagenet-64 --data imagenet/val --steps 250 --out nll.json"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the log-likelihood of real images: the variational bound in bits per dimension, term by term.

    model: name or folder of a diffusion model
    data: a folder of images or IDX files, or an .npz
    num: number of images, spread over all
    unconditional: do not condition the network on the labels of the data
    steps: number of steps, or a respacing such as ddim50 (default: every step of the process)
    seed: seed of the noise; image i of a seed always has the same noise
    batch_size: number of images per batch
    precision: precision of matrix products
    out: a .json or .csv file, or a folder for both and a plot
    """

    model: str = setting("fashion-mnist", metavar="NAME")
    data: str = setting(metavar="PATH")
    num: int = setting(1000, min=1)
    unconditional: bool = False
    steps: str | None = setting(None, metavar="SPEC")
    seed: int = setting(0, min=0)
    batch_size: int = setting(32, min=1)
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    out: Path | None = None
    images: ImageOptions = group(ImageOptions)

    def __post_init__(self) -> None:
        check(self)


def run(options: Options) -> None:
    """Print the report, and write its files if `out` is given."""
    if options.out:
        check_out(options.out)
    report = nll(
        options.model,
        options.data,
        num=options.num,
        unconditional=options.unconditional,
        steps=options.steps,
        seed=options.seed,
        batch_size=options.batch_size,
        precision=options.precision,
        **options.images.arguments,
    )
    print(report)
    for path in report.save(options.out) if options.out else []:
        print(path)


def check_out(path: Path) -> None:
    """Raise ValueError or OSError if the path cannot be written, before anything is computed."""
    if path.suffix in (".json", ".csv"):
        check_output_folder(path.parent)
    elif path.suffix and not path.is_dir():
        raise ValueError(f"--out must be a file that ends in .json or .csv, or a folder without an ending, got {path}")
    else:
        check_output_folder(path)
        check_no_data_set(path)
