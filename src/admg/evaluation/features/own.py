"""Feature networks that come from elsewhere: DINOv2 by its hub name, and any module of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from admg.checkpoints import download
from admg.userfile import load_object

from .base import FeatureNetwork, fingerprint, ready

DINOV2_REPO = "facebookresearch/dinov2"
DINOV2 = ("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14")
DINOV2_SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which DINOv2 was trained with


def dinov2(name: str, offline: bool = False) -> FeatureNetwork:
    """A DINOv2 by its hub name, such as dinov2_vitl14: the normalised class token (Oquab et al. 2023).

    torch.hub downloads code and weights at first use. ValueError: an unknown name. DownloadError: it cannot be had.
    """
    try:
        module = _from_hub(name, offline or download.offline())
    except (OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise download.DownloadError(f"{name} cannot be loaded from the hub ({DINOV2_REPO}): {reason}") from None
    return FeatureNetwork(name, ready(module), prepare_dinov2, fingerprint(module, "bicubic 224, ImageNet's mean"))


def _from_hub(name: str, offline: bool) -> nn.Module:
    """From the hub's folder if it is there, which asks no server."""
    folder = Path(torch.hub.get_dir()) / f"{DINOV2_REPO.replace('/', '_')}_main"
    there = (folder / "hubconf.py").is_file()
    if offline and not there:
        raise FileNotFoundError(f"it is not in {folder}, and downloads are off (--offline, ADMG_OFFLINE)")
    try:
        if there:
            return torch.hub.load(str(folder), name, source="local", verbose=False)
        return torch.hub.load(f"{DINOV2_REPO}:main", name, trust_repo=True, skip_validation=True, verbose=False)
    except RuntimeError as error:
        if "Cannot find callable" not in str(error):
            raise OSError(str(error)) from None
        raise ValueError(
            f"{DINOV2_REPO} has no {name!r}: {', '.join(DINOV2)}, and those with _reg at the end"
        ) from None


def prepare_dinov2(images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 224 224"]:
    """The whole image, bicubic with antialiasing to 224 x 224, with ImageNet's mean and deviation."""
    x = F.interpolate(images.float(), (DINOV2_SIZE, DINOV2_SIZE), mode="bicubic", antialias=True).clamp(0, 255) / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1).to(x)) / torch.tensor(STD).view(3, 1, 1).to(x)


def own(module: nn.Module, name: str = "", source: str = "") -> FeatureNetwork:
    """Any module as a feature network: x (N, 3, H, W) in [-1, 1] -> features (N, D).

    If it has a method `prepare`, that is given the uint8 images (N, 3, H, W), and the module what it returns.
    name: for the figures; "": of its class
    source: what else decides its features, such as its code: part of its identity
    ValueError: not a module.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"a feature network is a torch.nn.Module, not {type(module).__name__}")
    prepare = getattr(module, "prepare", None) or to_unit_range
    name = name or type(module).__name__
    if name.lower().startswith("inception"):  # FID is said of the published one only
        name = f"own-{name}"
    return FeatureNetwork(name, module.eval().requires_grad_(False), prepare, fingerprint(module, name, source))


def to_unit_range(images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    return images.float() / 127.5 - 1


def from_file(spec: str) -> tuple[Any, str]:
    """The object of "file.py:name", made by calling it if it is a class or a function, and a checksum of its file.

    ValueError: no such file or name, or the file fails.
    """
    found, digest = load_object(spec)
    if isinstance(found, nn.Module) or not callable(found):
        return found, digest
    try:
        return found(), digest
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"{spec}() fails: {type(error).__name__}: {' '.join(str(error).split())}") from None
