"""The 15 models that OpenAI published with "Diffusion Models Beat GANs on Image Synthesis" (arXiv 2105.05233).

The facts come from the README and the model card of github.com/openai/guided-diffusion, and from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import download
from .networks import Kind
from .openai.published_flags import PUBLISHED_FLAGS

BASE_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
MODEL_CARD = "https://github.com/openai/guided-diffusion/blob/main/model-card.md"
LICENSE = "MIT (the license of the repository that published it, openai/guided-diffusion)"
INTENDED_USE = (
    "Research: as a baseline for generative models, or as a starting point for further work on them. Not for "
    "commercial deployment, and not for propaganda or offensive images."
)
CAVEATS = (
    "People, and faces in particular, are often rendered badly.",
    "Guidance reduces diversity: what is rare in the training data becomes rarer, and biases of the data (such as "
    "those of gender and race) may be amplified.",
    "The training images come from the internet and show real people; a model may have memorised some of them.",
)
IMAGENET_CAVEAT = (
    "ImageNet's labels (ILSVRC 2012) are mostly animals, plants and other natural objects; many images contain people "
    "whom the label does not mention."
)
LSUN_CAVEAT = (
    "LSUN was labelled partly by machines, and about one label in ten is wrong; people appear occasionally, and many "
    "cat images are captioned memes."
)


@dataclass(frozen=True)
class SamplingSettings:
    """Settings for sampling, and the FID that the paper reports for them.

    scale: guidance scale of the model's own classifier; 0 for sampling without guidance
    sampler: name of the sampler
    steps: respacing, as sample() takes it
    fid: FID of 50,000 samples; None if it is not stated
    note: further conditions
    """

    scale: float
    sampler: str
    steps: str
    fid: float | None = None
    note: str = ""


@dataclass(frozen=True)
class PublishedModel:
    """A published model.

    name: name of the model, as `load` takes it
    file: name of its file at BASE_URL
    image_size: height and width of its images in pixels
    parameters: number of parameters
    best: settings of the paper's best FID with this model
    guided: settings of the guided command in OpenAI's README; None if the model has no classifier
    fast: the README's settings for few steps, or None
    classifier: name of the classifier that guides it, or None
    base: name of the model whose samples an upsampler enlarges, or None
    small_size: height and width of the images that an upsampler takes, or 0
    sha256: SHA-256 of the file; empty if it is not known (then the first download is trusted)
    """

    name: str
    file: str
    image_size: int
    parameters: int
    best: SamplingSettings | None = None
    guided: SamplingSettings | None = None
    fast: SamplingSettings | None = None
    classifier: str | None = None
    base: str | None = None
    small_size: int = 0
    sha256: str = ""

    @property
    def kind(self) -> Kind:
        return PUBLISHED_FLAGS[self.name].kind

    @property
    def flags(self) -> str:
        """Flags of guided-diffusion's scripts; see admg.openai.parse."""
        return PUBLISHED_FLAGS[self.name].flags

    @property
    def of_imagenet(self) -> bool:
        """Whether the model was trained on ImageNet, with its 1,000 labels, rather than on one class of LSUN."""
        return "/imagenet-" in self.name

    @property
    def classes(self) -> int:
        """Number of labels that the model is conditioned on or that the classifier distinguishes."""
        return 1000 if self.kind == "classifier" or "--class_cond True" in self.flags else 0

    @property
    def size(self) -> int:
        """Size of the parameters in bytes. The file is larger by some hundred kB."""
        return 4 * self.parameters

    @property
    def url(self) -> str:
        return f"{BASE_URL}/{self.file}"

    @property
    def path(self) -> Path:
        """Path of the file in the cache folder, whether or not it has been downloaded."""
        return download.cache_folder() / "openai" / self.file

    @property
    def on_disk(self) -> bool:
        """Whether the complete file is in the cache folder."""
        return self.path.is_file() and self.path.stat().st_size >= self.size

    @property
    def caveats(self) -> tuple[str, ...]:
        """Known limitations of the model and its training data, from the model card."""
        return (IMAGENET_CAVEAT if self.of_imagenet else LSUN_CAVEAT, *CAVEATS)

    def fetch(self, offline: bool = False, progress: bool = True) -> Path:
        """Return the path of the file, downloading it at first use.

        Raises DownloadError if it cannot be downloaded or differs from the file that was first used.
        """
        expected = download.Expected(self.size, self.sha256)
        return download.fetch(self.url, self.path, expected, forbid=offline, progress=progress)


def _ddpm(scale: float, steps: str, fid: float | None = None, note: str = "") -> SamplingSettings:
    return SamplingSettings(scale, "ddpm", steps, fid, note)


_LSUN = (256, 552_814_086)  # pixels, parameters
_MODELS = (
    PublishedModel(
        *("openai/imagenet-64", "64x64_diffusion.pt", 64, 295_904_454),
        best=_ddpm(0.0, "250", 2.07, "without guidance (guidance makes samples clearer but does not improve FID)"),
        guided=_ddpm(1.0, "250"),
        classifier="openai/imagenet-64-classifier",
    ),
    PublishedModel(
        *("openai/imagenet-128", "128x128_diffusion.pt", 128, 421_529_606),
        best=_ddpm(0.5, "250", 2.97),
        guided=_ddpm(0.5, "250"),
        fast=SamplingSettings(1.0, "ddim", "ddim25"),
        classifier="openai/imagenet-128-classifier",
    ),
    PublishedModel(
        *("openai/imagenet-256", "256x256_diffusion.pt", 256, 553_838_086),
        best=_ddpm(1.0, "250", 4.59),
        guided=_ddpm(1.0, "250"),
        classifier="openai/imagenet-256-classifier",
    ),
    PublishedModel(
        *("openai/imagenet-256-uncond", "256x256_diffusion_uncond.pt", 256, 552_814_086),
        best=_ddpm(10.0, "250", 12.00),
        guided=_ddpm(10.0, "250"),
        classifier="openai/imagenet-256-classifier",
        sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
    ),
    PublishedModel(
        *("openai/imagenet-512", "512x512_diffusion.pt", 512, 558_997_638),
        best=_ddpm(4.0, "250", 7.72),
        guided=_ddpm(4.0, "250"),
        classifier="openai/imagenet-512-classifier",
    ),
    PublishedModel("openai/imagenet-64-classifier", "64x64_classifier.pt", 64, 65_438_568),
    PublishedModel("openai/imagenet-128-classifier", "128x128_classifier.pt", 128, 42_568_040),
    PublishedModel("openai/imagenet-256-classifier", "256x256_classifier.pt", 256, 54_096_360),
    PublishedModel("openai/imagenet-512-classifier", "512x512_classifier.pt", 512, 54_448_360),
    PublishedModel(
        *("openai/imagenet-64-to-256", "64_256_upsampler.pt", 256, 311_795_910),
        best=_ddpm(0.0, "250", 3.94, "with guided samples of the base model; the upsampler itself is not guided"),
        base="openai/imagenet-64",
        small_size=64,
    ),
    PublishedModel(
        *("openai/imagenet-128-to-512", "128_512_upsampler.pt", 512, 308_835_270),
        best=_ddpm(0.0, "250", 3.85, "with guided samples of the base model; the upsampler itself is not guided"),
        base="openai/imagenet-128",
        small_size=128,
    ),
    PublishedModel("openai/lsun-bedroom", "lsun_bedroom.pt", *_LSUN, best=_ddpm(0.0, "1000", 1.90)),
    PublishedModel("openai/lsun-cat", "lsun_cat.pt", *_LSUN, best=_ddpm(0.0, "1000", 5.57)),
    PublishedModel("openai/lsun-horse", "lsun_horse.pt", *_LSUN, best=_ddpm(0.0, "1000", 2.57)),
    PublishedModel("openai/lsun-horse-nodropout", "lsun_horse_nodropout.pt", *_LSUN, best=_ddpm(0.0, "1000")),
)

PUBLISHED: dict[str, PublishedModel] = {model.name: model for model in _MODELS}
"""The published models by name."""
