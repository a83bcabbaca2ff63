"""`admg evaluate SAMPLES REFERENCE`: the metrics that papers report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from admg.config import check, group, setting
from admg.evaluation import evaluate
from admg.files import check_output_folder

from .feature_options import FeatureOptions

EXAMPLES = """  admg evaluate samples_50000x256x256x3.npz VIRTUAL_imagenet256_labeled.npz
  admg evaluate out data/fashion-mnist --fit pad --network efficientnet-lite0 --classifier fashion-mnist --json out.json
  torchrun --nproc-per-node 8 -m admg evaluate samples.npz reference.npz
  admg evaluate nll --model fashion-mnist --data data/fashion-mnist --fit pad    (options: admg evaluate nll --help)"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare samples with a reference: FID, sFID, IS, KID, precision, recall, density, coverage and label accuracy.

    SAMPLES and REFERENCE are each an .npz like the published batches (arr_0 images, arr_1 labels; mu, sigma, mu_s and
    sigma_s statistics of Inception), a folder of images, or a data set (IDX files). FID and sFID use the stored
    statistics of the reference if it has them; all other metrics need its images. Only distances in features of the
    2015 Inception network are called FID and sFID.

    samples: an .npz or a folder of images
    reference: an .npz, a folder of images, or a data set
    metrics: metrics to compute, from fid, sfid, is, kid, precision, recall, density, coverage and accuracy, or
        file.py:name of a function of two arrays of features (default: all that can be computed)
    classifier: classifier for the label accuracy: name or folder of a noisy classifier, or file.py:name
    num: number of samples, spread over all (default: all)
    num_reference: number of reference images, spread over all (default: all)
    interval: compute 95 % confidence intervals
    infinite: add FID extrapolated to infinitely many samples
    seed: seed of the random groups used for intervals
    json: JSON file to write the report to
    split: part of the data to read, if there are both a train and a test part
    """

    samples: str = setting(positional=True, metavar="SAMPLES")
    reference: str = setting(positional=True, metavar="REFERENCE")
    metrics: tuple[str, ...] | None = None
    classifier: str | None = setting(None, metavar="NAME")
    num: int | None = setting(None, min=2)
    num_reference: int | None = setting(None, min=2)
    interval: bool = True
    infinite: bool = False
    seed: int = setting(0, min=0)
    json: Path | None = setting(None, metavar="FILE")
    split: Literal["train", "test"] = "test"
    features: FeatureOptions = group(FeatureOptions)

    def __post_init__(self) -> None:
        check(self)
        if self.classifier and self.metrics is not None and "accuracy" not in self.metrics:
            raise ValueError("classifier requires the metric accuracy")
        if self.infinite and self.metrics is not None and not {"fid", "sfid"} & {*self.metrics}:
            raise ValueError("infinite requires the metric fid or sfid")


def run(options: Options) -> None:
    """Print the report, and write it as JSON if a file is given."""
    if options.json:
        if options.json.is_dir():
            raise ValueError(f"--json must be the name of a file, but {options.json} is a folder")
        check_output_folder(options.json.parent)
    report = evaluate(
        options.samples,
        options.reference,
        options.metrics,
        label_classifier=options.classifier,
        num=options.num,
        num_reference=options.num_reference,
        split=options.split,
        interval=options.interval,
        infinite=options.infinite,
        seed=options.seed,
        **options.features.arguments,
    )
    if not report.values:  # not the first process
        return
    print(report)
    if options.json:
        report.to_json(options.json)
        print(options.json)
