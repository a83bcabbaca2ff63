"""`admg upsample`: enlarge images with a super-resolution model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from admg.config import check, group, setting
from admg.generation import JobOptions, generate_upsampled
from admg.generation.upsample import load_upsampler

from .sampling_options import GuidanceOptions, SamplingOptions, ShowProgress, print_result

EXAMPLES = """  admg upsample --model openai/imagenet-64-to-256 --base samples/samples_1000x64x64x3.npz --out large
  admg upsample --model openai/imagenet-64-to-256 --base samples.npz --sampler ddim --steps 25 --num 16 --out few"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Enlarge images with a super-resolution model.

    The paper's best metrics come from 250 steps of ddpm, the default of OpenAI's upsamplers. 25 steps of ddim, the
    default of all others, are ten times as fast.

    model: name, folder or file of weights of an upsampling model
    base: .npz of the small images, arr_0, and of their labels, arr_1
    num: number of images to enlarge, from the first of the file
    augment_level: level of noise to add to the small images, for a model trained with --augment-noise; 0 leaves them
        unchanged
    out: folder of samples_NxHxWxC.npz and the pictures
    """

    model: str = setting(metavar="NAME")
    base: str = setting(metavar="FILE")
    num: int | None = setting(None, min=1, default_text="all")
    augment_level: float = setting(0.0, min=0, max=1)
    out: Path = setting(Path("upsampled"), metavar="DIR")
    sampling: SamplingOptions = group(SamplingOptions)
    guidance: GuidanceOptions = group(GuidanceOptions)
    job: JobOptions = group(JobOptions)

    def __post_init__(self) -> None:
        check(self)


def run(options: Options) -> None:
    model = load_upsampler(options.model)
    guides = options.guidance.load(model, options.model, 4.0 if options.guidance.classifier else 0.0)
    recipe = options.sampling.recipe(guides.build(), model=options.model)
    recipe = dataclasses.replace(recipe, augment_level=options.augment_level)
    options.sampling.to_device(model, guides)
    done = generate_upsampled(
        model, options.base, out=options.out, num=options.num, recipe=recipe, options=options.job,
        progress=ShowProgress(options.job),
    )  # fmt: skip
    print_result(done, options.job)
