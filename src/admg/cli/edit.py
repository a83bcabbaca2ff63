"""`admg edit`: change images towards labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from admg.checkpoints.loading import as_model
from admg.config import check, group, setting
from admg.data.config import as_range, check_value_range
from admg.data.dataset import Fit
from admg.generation import JobOptions, generate_edits
from admg.generation.labels import MAX_IMAGES, typed_labels
from admg.generation.starts import load_images

from .image_options import RANGE_TEXT
from .sampling_options import GuidanceOptions, SamplingOptions, ShowProgress, print_result

EXAMPLES = """  admg edit --image shirt.png --label dress --strength 0.6 --out dress
  admg edit --image boots --label sneaker --label sandal --num 8 --scale 8 --sampler ddpm --steps 250 --out shoes
  admg edit --image shirt.png --invert --from-label shirt --label pullover --cfg 3 --out pullover"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Change images towards labels: add noise to an image up to a level, then sample from there.

    The lower the strength, the more of the image is kept. With --invert, DDIM inversion is used instead of noise.

    model: name, folder or file of weights of a diffusion model
    image: picture, or a folder, .npz or IDX file of pictures
    label: name of a label, or else its number (default: none, and no guidance)
    num: edits of each image towards each label
    strength: fraction of the steps to run
    fit: fitting of images of another size: scaled and cropped, or padded (default: as in training, if known)
    value_range: values of black and white in the images
    invert: begin with the DDIM inversion of the image instead of a noisy copy; the default is then ddim in 100 steps
    from_label: label that the network is conditioned on during inversion, one for all images or one per image
    out: folder of samples_NxHxWxC.npz and the pictures
    """

    model: str = setting("fashion-mnist", metavar="NAME")
    image: tuple[str, ...] = setting(repeat=True, metavar="IMAGE")
    label: tuple[int | str, ...] = setting((), repeat=True, metavar="LABEL")
    num: int | None = setting(None, min=1, max=MAX_IMAGES, default_text="4; 1 with --invert")
    strength: float = setting(0.6, above=0, max=1)
    fit: Fit | None = None
    value_range: tuple[float, ...] = setting((), metavar="LOW,HIGH", dashes=True, default_text=RANGE_TEXT)
    invert: bool = False
    from_label: tuple[int | str, ...] = setting((), repeat=True, metavar="LABEL")
    out: Path = setting(Path("edits"), metavar="DIR")
    sampling: SamplingOptions = group(SamplingOptions)
    guidance: GuidanceOptions = group(GuidanceOptions)
    job: JobOptions = group(JobOptions)

    def __post_init__(self) -> None:
        check(self)
        check_value_range(self.value_range)
        if self.from_label and not self.invert:
            raise ValueError("from_label requires --invert: adding noise to an image needs no label")


def run(options: Options) -> None:
    model = as_model(options.model)
    guides = options.guidance.load(model, options.model, None if options.label else 0.0)
    usual = {"sampler": "ddim", "steps": "100"} if options.invert else {}
    recipe = options.sampling.recipe(guides.build(), model=options.model, **usual)
    images, _ = load_images(options.image, model, options.fit, as_range(options.value_range))
    options.sampling.to_device(model, guides)
    labels, from_labels = (typed_labels(model, guides, typed) or None for typed in (options.label, options.from_label))
    done = generate_edits(
        model, images, labels, out=options.out, num=options.num or (1 if options.invert else 4),
        strength=options.strength, invert=options.invert, from_labels=from_labels, recipe=recipe,
        options=options.job, progress=ShowProgress(options.job),
    )  # fmt: skip
    print_result(done, options.job)
