"""Feature networks: the 2015 Inception, EfficientNet-Lite0, DINOv2, and any torch module."""

from __future__ import annotations

from torch import nn

from admg.checkpoints.download import DownloadError

from . import custom, dinov2, efficientnet, inception
from .base import Activations, FeatureNetwork

NAMES = ("inception", "efficientnet-lite0", *dinov2.NAMES)

__all__ = ["NAMES", "Activations", "FeatureNetwork", "load"]


def load(
    network: str | nn.Module | FeatureNetwork, weights: str | None = None, offline: bool = False
) -> FeatureNetwork:
    """Return a feature network, on the CPU.

    network: one of NAMES, another hub name of DINOv2, a module (see `custom.from_module`), or "file.py:name" of one
    weights: weight file of Inception; by default the one in the cache folder, which is downloaded at first use
    offline: whether downloads are forbidden
    Raises ValueError if there is no such network, and OSError if its weights cannot be read or downloaded.
    """
    if isinstance(network, FeatureNetwork):
        return network
    if isinstance(network, nn.Module):
        return custom.from_module(network)
    if weights is not None and network != "inception":
        raise ValueError(f"weights applies only to inception, not to {network}")
    if network == "inception":
        try:
            return inception.load(weights, offline)
        except DownloadError as error:
            hint = "the network efficientnet-lite0 needs no download; its distance is called FD-EfficientNetLite0"
            raise DownloadError(f"{error}; {hint}") from None
    if network == "efficientnet-lite0":
        return efficientnet.load()
    if network.startswith("dinov2_"):
        return dinov2.load(network, offline)
    if ".py:" in network:
        module, text = custom.from_file(network)
        return custom.from_module(module, network.rpartition(":")[2], text, spec=network)
    raise ValueError(f"unknown feature network {network!r}: choose {', '.join(NAMES)}, or file.py:name")
