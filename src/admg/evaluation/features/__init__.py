"""Feature networks: the 2015 Inception, EfficientNet-Lite0, DINOv2, and any module of the user's."""

from __future__ import annotations

from torch import nn

from . import efficientnet, inception, own
from .base import Activations, FeatureNetwork

NAMES = ("inception", "efficientnet-lite0", *own.DINOV2)

__all__ = ["NAMES", "Activations", "FeatureNetwork", "load"]


def load(
    network: str | nn.Module | FeatureNetwork, weights: str | None = None, offline: bool = False
) -> FeatureNetwork:
    """A feature network, on the CPU.

    network: one of NAMES, a hub name of DINOv2, "file.py:name" of a module of the user's (see own.own), or a module
    weights: path of Inception's weight file; None: in the cache folder, downloaded at first use
    ValueError: no such network, or not one. OSError: its weights cannot be had.
    """
    if isinstance(network, FeatureNetwork):
        return network
    if isinstance(network, nn.Module):
        return own.own(network)
    if weights is not None and network != "inception":
        raise ValueError(f"weights are a file for inception; {network} has its own")
    if network == "inception":
        return inception.load(weights, offline)
    if network == "efficientnet-lite0":
        return efficientnet.load()
    if network.startswith("dinov2_"):
        return own.dinov2(network, offline)
    if ".py:" in network:
        module, text = own.from_file(network)
        return own.own(module, network.rpartition(":")[2], text)
    raise ValueError(f"unknown feature network {network!r}: {', '.join(NAMES)}, or file.py:name")
