"""The 15 models that OpenAI published with "Diffusion Models Beat GANs on Image Synthesis" (arXiv 2105.05233).

Facts of the README and the model card of github.com/openai/guided-diffusion, and of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import download
from .openai.known import KNOWN, Kind

BASE_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
CARD = "https://github.com/openai/guided-diffusion/blob/main/model-card.md"
LICENSE = "MIT (of the repository that published it, openai/guided-diffusion)"
INTENDED_USE = (
    "Research: a baseline for generative models, or a starting point for further work on them. Not for commercial "
    "deployment, nor for propaganda or offensive pictures."
)
CAVEATS = (
    "People, and faces above all, often come out wrong.",
    "Guidance makes samples more alike: what is rare in the training data becomes rarer, and its biases (of gender or "
    "race, say) may grow.",
    "The training pictures are from the internet and show real people, some of which a model may have memorised.",
)
OF_IMAGENET = (
    "ImageNet's labels (ILSVRC 2012) are mostly animals, plants and other things of nature; people are in many pictures"
    " without being named by the label."
)
OF_LSUN = (
    "LSUN was labelled partly by machines, and about one label in ten is wrong; people appear now and then, and many "
    "cat pictures are captioned memes."
)


@dataclass(frozen=True)
class Settings:
    """How to sample: guidance scale (0: unguided), sampler, steps; and the FID that the paper has for it.

    scale: of the model's own classifier
    steps: as sample() takes them
    fid: of 50,000 samples; None: not stated
    note: what else belongs to it
    """

    scale: float
    sampler: str
    steps: str
    fid: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Published:
    """A published model.

    name: of the preset
    file: its name at BASE_URL
    image_size: side of its images in pixels; small_size: of those that an upsampler starts from
    parameters: their number
    classifier: the name of the one that guides it, or None
    base: of an upsampler: the name of the model whose samples it enlarges
    sha256: of the file; "": not known, so that of the first copy counts
    best: the settings of the paper's best FID with this model
    guided: the settings of the README's guided command; None for one without a classifier
    fast: the README's settings for few steps, or None
    """

    name: str
    file: str
    image_size: int
    parameters: int
    best: Settings | None = None
    guided: Settings | None = None
    fast: Settings | None = None
    classifier: str | None = None
    base: str | None = None
    small_size: int = 0
    sha256: str = ""

    @property
    def kind(self) -> Kind:
        return KNOWN[self.name].kind

    @property
    def flags(self) -> str:
        """Those of the reference's scripts, see admg.openai.flags."""
        return KNOWN[self.name].flags

    @property
    def of_imagenet(self) -> bool:
        """Whether it was trained on ImageNet's 1,000 labels; else on one class of LSUN."""
        return "/imagenet-" in self.name

    @property
    def classes(self) -> int:
        """Labels that it takes, or tells apart."""
        return 1000 if self.kind == "classifier" or "--class_cond True" in self.flags else 0

    @property
    def size(self) -> int:
        """Bytes, at 4 for each parameter: what the file has, but for some hundreds of kB."""
        return 4 * self.parameters

    @property
    def url(self) -> str:
        return f"{BASE_URL}/{self.file}"

    @property
    def path(self) -> Path:
        """Where it is, or will be, in the cache folder."""
        return download.cache_folder() / "openai" / self.file

    @property
    def on_disk(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size >= self.size

    @property
    def caveats(self) -> tuple[str, ...]:
        return (OF_IMAGENET if self.of_imagenet else OF_LSUN, *CAVEATS)

    def fetch(self, offline: bool = False, progress: bool = True) -> Path:
        """The file, downloaded at first use. DownloadError: it cannot be had, or is not what it was."""
        expected = download.Expected(self.size, self.sha256)
        return download.fetch(self.url, self.path, expected, forbid=offline, progress=progress)


def _ddpm(scale: float, steps: str, fid: float | None = None, note: str = "") -> Settings:
    return Settings(scale, "ddpm", steps, fid, note)


_LSUN = (256, 552_814_086)  # pixels, parameters
_MODELS = (
    Published(
        *("openai/imagenet-64", "64x64_diffusion.pt", 64, 295_904_454),
        best=_ddpm(0.0, "250", 2.07, "of the model alone (guidance makes samples clearer, but FID no better)"),
        guided=_ddpm(1.0, "250"),
        classifier="openai/imagenet-64-classifier",
    ),
    Published(
        *("openai/imagenet-128", "128x128_diffusion.pt", 128, 421_529_606),
        best=_ddpm(0.5, "250", 2.97),
        guided=_ddpm(0.5, "250"),
        fast=Settings(1.0, "ddim", "ddim25"),
        classifier="openai/imagenet-128-classifier",
    ),
    Published(
        *("openai/imagenet-256", "256x256_diffusion.pt", 256, 553_838_086),
        best=_ddpm(1.0, "250", 4.59),
        guided=_ddpm(1.0, "250"),
        classifier="openai/imagenet-256-classifier",
    ),
    Published(
        *("openai/imagenet-256-uncond", "256x256_diffusion_uncond.pt", 256, 552_814_086),
        best=_ddpm(10.0, "250", 12.00),
        guided=_ddpm(10.0, "250"),
        classifier="openai/imagenet-256-classifier",
        sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
    ),
    Published(
        *("openai/imagenet-512", "512x512_diffusion.pt", 512, 558_997_638),
        best=_ddpm(4.0, "250", 7.72),
        guided=_ddpm(4.0, "250"),
        classifier="openai/imagenet-512-classifier",
    ),
    Published("openai/imagenet-64-classifier", "64x64_classifier.pt", 64, 65_438_568),
    Published("openai/imagenet-128-classifier", "128x128_classifier.pt", 128, 42_568_040),
    Published("openai/imagenet-256-classifier", "256x256_classifier.pt", 256, 54_096_360),
    Published("openai/imagenet-512-classifier", "512x512_classifier.pt", 512, 54_448_360),
    Published(
        *("openai/imagenet-64-to-256", "64_256_upsampler.pt", 256, 311_795_910),
        best=_ddpm(0.0, "250", 3.94, "of guided samples of the base model; the upsampler itself is not guided"),
        base="openai/imagenet-64",
        small_size=64,
    ),
    Published(
        *("openai/imagenet-128-to-512", "128_512_upsampler.pt", 512, 308_835_270),
        best=_ddpm(0.0, "250", 3.85, "of guided samples of the base model; the upsampler itself is not guided"),
        base="openai/imagenet-128",
        small_size=128,
    ),
    Published("openai/lsun-bedroom", "lsun_bedroom.pt", *_LSUN, best=_ddpm(0.0, "1000", 1.90)),
    Published("openai/lsun-cat", "lsun_cat.pt", *_LSUN, best=_ddpm(0.0, "1000", 5.57)),
    Published("openai/lsun-horse", "lsun_horse.pt", *_LSUN, best=_ddpm(0.0, "1000", 2.57)),
    Published("openai/lsun-horse-nodropout", "lsun_horse_nodropout.pt", *_LSUN, best=_ddpm(0.0, "1000")),
)

PUBLISHED: dict[str, Published] = {model.name: model for model in _MODELS}
"""By name."""
