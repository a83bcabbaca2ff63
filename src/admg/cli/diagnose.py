"""`admg diagnose CHECKPOINT`: the settings of a checkpoint, inferred from real images."""

from __future__ import annotations

from dataclasses import dataclass

from admg.config import check, group, setting
from admg.evaluation.diagnose import diagnose_checkpoint

from .image_options import ImageOptions

EXAMPLES = """  admg diagnose ema_0.9999_200000.pt --images photos
  admg diagnose ema_0.9999_200000.pt --images photos --flags "--image_size 64 --num_channels 128 --learn_sigma True\""""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Infer the settings of a checkpoint that its weights do not determine, from real images.

    These settings are the number of attention heads and their order, the noise schedule, the number of steps, rescaled
    timesteps, and the predicted quantity. Each candidate denoises the images at several noise levels. Its error is the
    squared error of the predicted images relative to a guess from the mean and variance of all pixels: 1 means that the
    network knows nothing about the images. The right candidate stands out unless the model is barely trained or the
    images differ from its training data.

    checkpoint: a file of weights, a checkpoint folder, or a name
    images: a folder of images or IDX files, or an .npz, similar to the training data
    flags: flags as given to guided-diffusion's scripts, to check
    image_size: side of the images in pixels (default: that of the flags, of the images, or of the weights)
    num: number of images, spread over all
    unconditional: do not condition the network on the labels of the images
    exhaustive: try all combinations first, which is several times slower
    seed: seed of the noise
    """

    checkpoint: str = setting(positional=True, metavar="CHECKPOINT")
    images: str = setting(metavar="PATH")
    flags: str | None = setting(None, metavar='"..."', dashes=True)
    image_size: int | None = None
    num: int = setting(16, min=1)
    unconditional: bool = False
    exhaustive: bool = False
    seed: int = setting(0, min=0)
    image_options: ImageOptions = group(ImageOptions)

    def __post_init__(self) -> None:
        check(self)


def run(options: Options) -> None:
    """Print the diagnosis."""
    diagnosis = diagnose_checkpoint(
        options.checkpoint,
        options.images,
        flags=options.flags,
        image_size=options.image_size,
        num=options.num,
        unconditional=options.unconditional,
        exhaustive=options.exhaustive,
        seed=options.seed,
        **options.image_options.arguments,
    )
    print(diagnosis)
