"""`admg sample`: generate images of chosen labels, and enlarge them if an upsampler is given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from admg.checkpoints.loading import as_model
from admg.checkpoints.model import Model
from admg.config import changed_fields, check, check_used, group, setting
from admg.data.dataset import Fit
from admg.diffusion.gaussian import Images
from admg.generation import JobOptions, Recipe, generate, generate_denoising, generate_scale_sheet
from admg.generation.denoising import AnimationFormat, ffmpeg
from admg.generation.guide_specs import GuideSet
from admg.generation.labels import MAX_IMAGES, Label
from admg.generation.sampler_specs import SAMPLERS
from admg.generation.starts import load_images

from .label_options import Labels, chosen_labels
from .sampling_options import GuidanceOptions, SamplingOptions, ShowProgress, print_result

EXAMPLES = """  admg sample --label sneaker --label 9 --scale 4 --num 32 --out sneakers
  admg sample --label coat --sheet scale=0,1,2,4,8 --num 6 --unconditional --out coats
  admg sample --label coat --cfg 3 --interval 0.3,10 --sampler unipc --steps karras10 --out coats
  admg sample --label coat --num 4 --steps 50 --animate gif --trajectory --out steps
  admg sample --label coat --guide my_guides.py:darker --init shirt.png --strength 0.6 --out coats
  admg sample --model openai/imagenet-64 --labels balanced --num 50000 --no-images --out for-fid
  admg sample --model openai/imagenet-64 --upsampler openai/imagenet-64-to-256 --labels random --num 16 --out large
  torchrun --nproc-per-node 8 -m admg sample --num 50000 --out for-fid"""


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Starting image. For several images, use admg edit.

    init: image to start from instead of noise
    strength: fraction of the steps to run, at most 1; fewer steps preserve more of the image (default: 0.6)
    fit: fitting of an image of another size: scaled and cropped, or padded (default: as in training, if known)
    """

    init: str | None = setting(None, metavar="IMAGE")
    strength: float | None = setting(None, above=0, max=1)
    fit: Fit | None = None

    def __post_init__(self) -> None:
        check(self)
        check_used(self, "init", "strength", "fit")

    def load(self, model: Model) -> Images | None:
        if not self.init:
            return None
        images, _ = load_images([self.init], model, self.fit)
        if len(images) != 1:
            raise ValueError(f"--init must be a single image, but {self.init} holds {len(images)}: use admg edit")
        return images


@dataclass(frozen=True, kw_only=True)
class UpsamplerOptions:
    """Upsampling. The images go to OUT/base, then through an upsampling model.

    upsampler: upsampling model, which receives the same labels
    upsampler_sampler: sampler of the upsampler
    upsampler_steps: steps of the upsampler, as for --steps; 250 steps of ddpm give better images
    upsampler_batch_size: large images per batch
    upsampler_augment_level: level of noise to add to the small images, for a model trained with --augment-noise; 0
        leaves them unchanged
    """

    upsampler: str | None = setting(None, metavar="NAME", default_text="none")
    upsampler_sampler: str = setting("ddim", choices=sorted(SAMPLERS))
    upsampler_steps: str = setting("25", metavar="STEPS")
    upsampler_batch_size: int | None = setting(None, min=1)
    upsampler_augment_level: float = setting(0.0, min=0, max=1)

    def __post_init__(self) -> None:
        check(self)
        others = (field.name for field in dataclasses.fields(self) if field.name != "upsampler")
        check_used(self, "upsampler", *others)

    def recipe(self, base: Recipe) -> Recipe:
        return dataclasses.replace(
            base, guide=None, unconditional=False, sampler=self.upsampler_sampler, steps=self.upsampler_steps,
            batch_size=self.upsampler_batch_size, augment_level=self.upsampler_augment_level,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions:
    """Denoising. Pictures of the denoising of the first images, at most 8, which are sampled a second time.

    animate: write OUT/denoising.gif or .mp4: x and the predicted image of at most 60 steps; mp4 needs ffmpeg
    trajectory: write OUT/trajectory.png: nine steps of each image side by side
    """

    animate: AnimationFormat | None = setting(None, default_text="none")
    trajectory: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.animate == "mp4":
            ffmpeg()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Generate images of chosen labels, with or without guidance.

    model: name, folder or file of weights of a diffusion model, or hf:user/name for one of the Hugging Face Hub
    label: name of a label, or else its number; in a TOML file, an integer is always its number
    labels: balanced (each label equally often), random (drawn with the seed), or a list A,B,...; a label whose name has
        a comma or is one of these two words is given with --label
    num: number of images, in equal shares of the labels
    sheet: instead of samples, draw one picture with a row per image and a column per guidance scale: scale=A,B,... or
        cfg=A,B,...
    out: folder of samples_NxHxWxC.npz and the pictures
    """

    model: str = setting("fashion-mnist", metavar="NAME")
    label: tuple[int | str, ...] = setting((), repeat=True, metavar="LABEL")
    labels: Labels | None = setting(
        None, metavar="WHICH", default_text="balanced, or random for fewer images than labels"
    )
    num: int | None = setting(
        None, min=1, max=MAX_IMAGES, default_text="8 per label; 64 if no label is given and the model has more than 20"
    )
    sheet: str | None = setting(None, metavar="scale=A,B,...")
    out: Path = setting(Path("samples"), metavar="DIR")
    sampling: SamplingOptions = group(SamplingOptions)
    guidance: GuidanceOptions = group(GuidanceOptions)
    start: InitOptions = group(InitOptions)
    upsampling: UpsamplerOptions = group(UpsamplerOptions)
    denoising: DenoisingOptions = group(DenoisingOptions)
    job: JobOptions = group(JobOptions)

    def __post_init__(self) -> None:
        check(self)
        if (self.denoising.animate or self.denoising.trajectory) and (self.sheet or self.job.processes > 1):
            what = "animate" if self.denoising.animate else "trajectory"
            raise ValueError(f"{what} requires a single process, and cannot be combined with --sheet")
        if self.label and self.labels is not None:
            raise ValueError("label cannot be combined with --labels")
        if self.sheet and (self.upsampling.upsampler or self.start.init):
            other = "--upsampler" if self.upsampling.upsampler else "--init"
            raise ValueError(f"sheet draws samples of the model from noise, and cannot be combined with {other}")
        varied = self.sheet.partition("=")[0].strip() if self.sheet else ""
        if varied in ("scale", "cfg") and getattr(self.guidance, varied) is not None:
            raise ValueError(f"sheet varies {varied}, and cannot be combined with --{varied}")
        if self.sheet and self.job.processes > 1:
            raise ValueError(f"sheet requires a single process, got {self.job.processes}")
        if self.sheet and (changed := changed_fields(self.job)):
            option = changed[0].replace("_", "-")
            raise ValueError(f"sheet draws a single picture, and cannot be combined with --{option}")

    def chosen(self, model: Model, guides: GuideSet) -> tuple[str | list[Label] | None, int | None]:
        """Return the labels and the number of images for generate()."""
        labels = chosen_labels(model, guides, self.label, self.labels)
        return labels, self.num or (8 * len(labels) if isinstance(labels, list) else None)


def run(options: Options) -> None:
    sheet = parse_sheet(options.sheet) if options.sheet else None
    model = as_model(options.model)
    varied = sheet[0] if sheet is not None else ""
    guides = options.guidance.load(
        model,
        options.model,
        default_scale=0.0 if varied == "cfg" else None,  # as --cfg, it replaces the classifier
        keep_classifier=varied == "scale",
    )
    recipe = options.sampling.recipe(guides.build(), model=options.model)
    init, (labels, num) = options.start.load(model), options.chosen(model, guides)
    options.sampling.to_device(model, guides)
    if sheet is not None:
        option, scales = sheet
        path = generate_scale_sheet(
            model, labels, guides, scales, out=options.out, option=option, num=num, recipe=recipe
        )
        print(f"Saved {path}")
        return
    strength = 0.6 if options.start.strength is None else options.start.strength
    done = generate(
        model, labels, out=options.out, num=num, **recipe.arguments(), **dataclasses.asdict(options.job), init=init,
        strength=strength, upsampler=options.upsampling.upsampler, upsampler_recipe=options.upsampling.recipe(recipe),
        progress=ShowProgress(options.job),
    )  # fmt: skip
    print_result(done, options.job)
    if options.denoising.animate or options.denoising.trajectory:
        pictures = generate_denoising(
            model, labels, out=options.out, num=num, recipe=recipe, init=init, strength=strength,
            animate=options.denoising.animate, trajectory=options.denoising.trajectory,
        )  # fmt: skip
        print(f"Saved {' and '.join(map(str, pictures))}")


def parse_sheet(text: str) -> tuple[str, list[float]]:
    """Return `scale=0,1,2` as a name, scale or cfg, and numbers."""
    name, _, values = text.partition("=")
    try:
        scales = [float(value) for value in values.split(",")]
    except ValueError:
        scales = []
    if name not in ("scale", "cfg") or not scales:
        raise ValueError(f"--sheet must be scale= or cfg= and numbers, such as scale=0,1,2,4,8, got {text!r}")
    return name, scales
