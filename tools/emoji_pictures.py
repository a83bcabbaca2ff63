"""Draw the pictures of docs/emoji.md: what the models of colour emoji sample, edit, inpaint and colour.

python tools/emoji_pictures.py --data data/emoji/test --out docs/emoji

The images that are edited, inpainted and coloured are test images, of which the models have seen no picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import admg
from admg import guidance
from admg.generation.contact_sheet import sheet
from admg.generation.images import save_png, to_uint8

LABELS = ["animal", "face", "flag", "food", "person", "plant"]
FAST = {"sampler": "dpmpp_2m", "steps": "karras20", "progress": False}


class Pictures:
    """The pictures by name, as methods.

    data: folder of test images, a folder for each label
    scale: scale of classifier-free guidance
    augment_level: noise that the upsampler adds to what it enlarges
    """

    def __init__(self, data: Path, scale: float, augment_level: float):
        self.model, self.classifier = admg.load("emoji"), admg.load_classifier("emoji")
        self.images = admg.data.open(str(data), self.model.shape[1])
        self.augment_level = augment_level
        self.guide = guidance.ClassifierFreeGuidance(scale)

    def tests(self, labels: list[str], skip: int = 0) -> Tensor:
        """Return a test image of each label, (N, 3, 32, 32) in [-1, 1], after leaving out so many."""
        assert self.images.labels is not None
        names = list(self.images.label_names)
        chosen = [int(np.flatnonzero(self.images.labels == names.index(label))[skip]) for label in labels]
        return self.images.batch(chosen)[0]

    def large(self, num: int) -> np.ndarray:
        """Return samples of every label, enlarged to 64 pixels, uint8 (labels, num, 64, 64, 3)."""
        labels = [name for name in self.model.label_names for _ in range(num)]
        base = admg.sample(self.model, labels, guide=self.guide, seed=1, **FAST)
        large = admg.upsample("emoji-x2", base, augment_level=self.augment_level, seed=1, **FAST)
        return large.images.reshape(-1, num, 64, 64, 3)

    def stack(self) -> Image.Image:
        return sheet([*self.large(8)], row_titles=self.model.label_names, cell=64)

    def samples(self) -> Image.Image:
        """The same in rows, for the README."""
        return sheet([*self.large(4).swapaxes(0, 1)], column_titles=self.model.label_names, cell=64)

    def upsampler(self) -> Image.Image:
        """Samples and test images with what the upsampler makes of them."""
        base = admg.sample(self.model, LABELS, guide=self.guide, seed=2, **FAST)
        tests = self.tests(LABELS, 1)
        rows = []
        for images, level in ((base.x, self.augment_level), (tests, 0.0)):
            large = admg.upsample("emoji-x2", images, LABELS, augment_level=level, seed=2, **FAST)
            rows += [enlarged(to_uint8(images)), large.images]
        titles = ["samples", "upsampled", "test images", "upsampled"]
        return sheet(rows, row_titles=titles, column_titles=LABELS, cell=64)

    def scales(self, guide: Callable[[float], guidance.Guide], scales: list[float], free: bool) -> Image.Image:
        """The same noise over scales; free: whether the network is not conditioned on the labels."""
        options = {"seed": 3, "unconditional": free, **FAST}
        columns = [admg.sample(self.model, LABELS, guide=guide(scale), **options).images for scale in scales]
        return sheet([*zip(*columns)], row_titles=LABELS, column_titles=[f"{scale:g}" for scale in scales], cell=64)

    def classifier_guidance(self) -> Image.Image:
        return self.scales(lambda s: guidance.ClassifierGuidance(self.classifier, s), [0, 1, 2, 4, 8, 16], free=True)

    def classifier_free(self) -> Image.Image:
        return self.scales(guidance.ClassifierFreeGuidance, [0, 1, 1.5, 2, 3, 5], free=False)

    def editing(self) -> Image.Image:
        """Test images, noised and sampled with another label."""
        edits = [("animal", "face"), ("face", "animal"), ("food", "plant"), ("flag", "food"), ("object", "vehicle")]
        strengths, images = (0.4, 0.5, 0.6, 0.7, 0.8), self.tests([a for a, _ in edits], 2)
        options = {"guide": self.guide, "seed": 4, **FAST}
        columns = [
            admg.edit(self.model, images, [b for _, b in edits], strength=strength, **options).images
            for strength in strengths
        ]
        titles = ["image", *map(str, strengths)]
        names = [f"{a} to {b}" for a, b in edits]
        return sheet([*zip(to_uint8(images), *columns)], row_titles=names, column_titles=titles, cell=64)

    def inverse(self, operator: Callable[[Tensor], Tensor], shown: Callable[[Tensor], Tensor]) -> Image.Image:
        """Test images, what is measured of them, and three samples given the measurement."""
        images = self.tests(LABELS, 3)
        guide = guidance.LinearInverse(operator, operator(images), noise_std=0.02, prior_std=0.5)
        options = {"guide": guide, "sampler": "dpmpp_2m", "steps": "karras40", "progress": False}
        columns = [admg.sample(self.model, LABELS, seed=seed, **options).images for seed in range(3)]
        titles = ["image", "measured", "sampled", "again", "again"]
        rows = zip(to_uint8(images), to_uint8(shown(images)), *columns)
        return sheet([*rows], row_titles=LABELS, column_titles=titles, cell=64)

    def inpainting(self) -> Image.Image:
        known = torch.ones(self.model.shape[1:], dtype=torch.bool)
        known[:, 20:] = False
        return self.inverse(guidance.Mask(known), lambda images: torch.where(known, images, torch.tensor(0.6)))

    def colourisation(self) -> Image.Image:
        return self.inverse(guidance.Grey(), lambda images: guidance.Grey()(images).expand_as(images))


def enlarged(images: np.ndarray) -> np.ndarray:
    """Return images with every pixel repeated, twice as high and wide."""
    return images.repeat(2, axis=1).repeat(2, axis=2)


NAMES = (
    "stack",
    "samples",
    "upsampler",
    "classifier_guidance",
    "classifier_free",
    "editing",
    "inpainting",
    "colourisation",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji/test"), help="folder of test images")
    parser.add_argument("--out", type=Path, default=Path("docs/emoji"), help="folder of the pictures")
    parser.add_argument("--scale", type=float, default=3.0, help="scale of classifier-free guidance (default: 3)")
    parser.add_argument("--augment-level", type=float, default=0.1, help="noise on what is enlarged (default: 0.1)")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, help="names of pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(args.data, args.scale, args.augment_level)
    for name in args.only:
        save_png(getattr(pictures, name)(), args.out / f"{name.replace('_', '-')}.png")
        print(args.out / f"{name.replace('_', '-')}.png", flush=True)


if __name__ == "__main__":
    main()
