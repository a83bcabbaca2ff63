"""`admg interpolate`: generate the images between two images or two seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from admg.checkpoints.loading import as_model
from admg.config import check, check_used, group, setting
from admg.data.config import as_range, check_value_range
from admg.data.dataset import Fit
from admg.diffusion.gaussian import Images
from admg.generation import JobOptions, generate_interpolation
from admg.generation.interpolate import MAX_FRAMES
from admg.generation.labels import typed_labels
from admg.generation.starts import load_images

from .image_options import RANGE_TEXT
from .sampling_options import GuidanceOptions, SamplingOptions, ShowProgress, print_result

EXAMPLES = """  admg interpolate --image a.png --image b.png --frames 8 --out way
  admg interpolate --seeds 0,1 --label sneaker --label "ankle boot" --frames 10 --scale 4 --out way"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Generate the images between two images or two seeds.

    Images are encoded by DDIM inversion, conditioned on the label, without guidance. With --scale 0, the default for
    images, the first and the last frame resemble the images, more closely with more --steps.

    model: name, folder or file of weights of a diffusion model
    image: image at one end of the interpolation; give the option twice
    seeds: two seeds A,B, whose first images are the ends
    label: name or number of the label of all frames; each label gets a separate row
    frames: number of images, both ends included
    fit: fitting of images of another size: scaled and cropped, or padded (default: as in training, if known)
    value_range: values of black and white in the images
    out: folder of samples_NxHxWxC.npz and the pictures
    """

    model: str = setting("fashion-mnist", metavar="NAME")
    image: tuple[str, ...] = setting((), repeat=True, metavar="IMAGE")
    seeds: tuple[int, ...] = setting((), min=0, metavar="A,B")
    label: tuple[int | str, ...] = setting((), repeat=True, metavar="LABEL")
    frames: int = setting(8, min=2, max=MAX_FRAMES)
    fit: Fit | None = None
    value_range: tuple[float, ...] = setting((), metavar="LOW,HIGH", dashes=True, default_text=RANGE_TEXT)
    out: Path = setting(Path("way"), metavar="DIR")
    sampling: SamplingOptions = group(SamplingOptions, chosen={"sampler": "ddim", "steps": "100"})
    guidance: GuidanceOptions = group(GuidanceOptions)
    job: JobOptions = group(JobOptions)

    def __post_init__(self) -> None:
        check(self)
        check_value_range(self.value_range)
        if bool(self.image) == bool(self.seeds):
            raise ValueError("image or --seeds is required, but not both")
        if self.image and len(self.image) != 2:
            raise ValueError(f"image must be given twice, for the two ends, got {len(self.image)}")
        if self.seeds and len(self.seeds) != 2:
            raise ValueError(f"seeds must be two whole numbers such as 0,1, got {len(self.seeds)} of them")
        check_used(self, "image", "fit", "value_range")


def run(options: Options) -> None:
    model = as_model(options.model)
    guides = options.guidance.load(model, options.model, 0.0 if options.image or not options.label else None)
    recipe = options.sampling.recipe(guides.build(), model=options.model, sampler="ddim", steps="100")
    ends: Images | tuple[int, int]
    if options.seeds:
        ends = (options.seeds[0], options.seeds[1])
    else:
        ends, _ = load_images(options.image, model, options.fit, as_range(options.value_range))
    options.sampling.to_device(model, guides)
    done = generate_interpolation(
        model, ends, typed_labels(model, guides, options.label) or None, out=options.out, frames=options.frames,
        recipe=recipe, options=options.job, progress=ShowProgress(options.job),
    )  # fmt: skip
    print_result(done, options.job)
