"""DINOv2 as a feature network, from torch.hub (Oquab et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from admg.checkpoints import download

from .base import FeatureNetwork, fingerprint, ready

REPO = "facebookresearch/dinov2"
NAMES = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14")
SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, on which DINOv2 was trained


def load(name: str, offline: bool = False) -> FeatureNetwork:
    """Return a DINOv2 by its hub name, such as dinov2_vitl14; its features are the normalised class token.

    torch.hub downloads code and weights at first use. Raises ValueError if the hub has no such network, and
    DownloadError if it cannot be downloaded.
    """
    try:
        module = _from_hub(name, offline or download.offline())
    except (OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise download.DownloadError(f"{name} cannot be loaded from the hub ({REPO}): {reason}") from None
    return FeatureNetwork(name, ready(module), prepare, fingerprint(module, "bicubic 224, ImageNet's mean"))


def _from_hub(name: str, offline: bool) -> nn.Module:
    """Load from the folder of the hub if it is there, without contacting a server."""
    folder = Path(torch.hub.get_dir()) / f"{REPO.replace('/', '_')}_main"
    there = (folder / "hubconf.py").is_file()
    if offline and not there:
        raise FileNotFoundError(f"it is not in {folder}, and downloads are off (--offline, ADMG_OFFLINE)")
    load: Callable[..., nn.Module] = torch.hub.load
    try:
        if there:
            return load(str(folder), name, source="local", verbose=False)
        return load(f"{REPO}:main", name, trust_repo=True, skip_validation=True, verbose=False)
    except RuntimeError as error:
        if "Cannot find callable" not in str(error):
            raise OSError(str(error)) from None
        raise ValueError(f"{REPO} has no {name!r}: choose {', '.join(NAMES)}, or one with _reg at the end") from None


def prepare(images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 224 224"]:
    """Resize the whole image to 224 x 224, bicubic with antialiasing, and normalise as for ImageNet."""
    x = F.interpolate(images.float(), (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255) / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1).to(x)) / torch.tensor(STD).view(3, 1, 1).to(x)
