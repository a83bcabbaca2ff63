"""Samples: finished images with their labels, shown as a contact sheet and saved to a folder."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from admg.data.generated import IMAGES, RUN, SHEET

from .contact_sheet import contact_sheet
from .fonts import label_title
from .images import check_only_samples, save_images, save_png, to_uint8
from .shards import merged_path, write_npz


@dataclass(frozen=True, repr=False)
class Samples:
    """Finished images and their labels. A notebook shows them as a contact sheet.

    x: (N, C, H, W), float32 and about in [-1, 1]
    labels: (N,), -1 for an image without a label
    label_names: the name of each image's label, "" for no label

    >>> import torch
    >>> samples = Samples(torch.zeros(2, 1, 8, 8), torch.tensor([3, -1]), ("coat", ""))
    >>> samples
    Samples(2 images of 8x8, 1 channel; labels: coat, none)
    >>> samples.images.shape, samples.images.dtype
    ((2, 8, 8, 1), dtype('uint8'))
    """

    x: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    label_names: tuple[str, ...]

    @property
    def images(self) -> UInt8[np.ndarray, "n h w c"]:
        """The images as uint8 (N, H, W, C)."""
        return to_uint8(self.x)

    def pil(self) -> list[Image.Image]:
        """Return the images as Pillow images of mode L, LA, RGB or RGBA. Raises ValueError for other channels."""
        if self.x.shape[1] > 4:
            raise ValueError(f"Pillow images have 1 to 4 channels, got {self.x.shape[1]}")
        return [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in self.images]

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        _, channels, height, width = self.x.shape
        names = [name or "none" for name in dict.fromkeys(self.label_names)]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        images = f"{len(self)} image{'s' if len(self) != 1 else ''}"
        return (
            f"Samples({images} of {height}x{width}, {channels} channel{'s' if channels != 1 else ''}; labels: {shown})"
        )

    def sheet(self, title: str = "") -> Image.Image:
        """Return the contact sheet: a row per label."""
        names = [label_title(name, int(label)) for name, label in zip(self.label_names, self.labels)]
        return contact_sheet(self.images, names, title)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.sheet().save(buffer, "png")
        return buffer.getvalue()

    def save(self, folder: Path | str, title: str = "") -> Path:
        """Write `samples_NxHxWxC.npz`, `sheet.png` and a PNG file per image in `images/`. Return the path of the .npz.

        The .npz holds the images as `arr_0` (uint8, NHWC) and, if there are any, the labels as `arr_1` (int64), as
        evaluation reads them; `images/dataset.json` holds the labels for training. Files of these names are replaced.

        Raises ValueError, and writes nothing, if the folder holds a run (run.json), or other files in `images/`.
        """
        out, images, labels = Path(folder).expanduser(), self.images, self.labels.numpy()
        _check_replaceable(out)
        path = merged_path(out, images.shape)
        write_npz(path, images, labels if (labels >= 0).any() else None)
        save_png(self.sheet(title), out / SHEET)
        save_images(images, labels.tolist(), self.label_names, out / IMAGES)
        return path

    @staticmethod
    def joined(parts: list[Samples]) -> Samples:
        """Return several batches as one."""
        names = tuple(name for part in parts for name in part.label_names)
        return Samples(torch.cat([part.x for part in parts]), torch.cat([part.labels for part in parts]), names)


def _check_replaceable(out: Path) -> None:
    """Raise ValueError if saving samples in this folder would replace more than samples that were saved there."""
    if (out / RUN).exists():
        raise ValueError(f"{out} holds a run ({RUN}): choose another folder for the samples")
    check_only_samples(out / IMAGES)
