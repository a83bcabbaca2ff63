"""`FeatureNetwork`: maps uint8 images to features, and has a name that is part of the names of its metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from admg.checkpoints.weights import digest_of
from admg.engine import adapt_threads
from admg.engine.precision import without_autocast
from admg.generation.modes import evaluation_mode
from admg.userfile import errors_of

Pixels = UInt8[Tensor, "n c h w"]  # C = 3, unless the network takes any channels


@dataclass(frozen=True)
class Activations:
    """Features of N images.

    features: (N, D) float32
    spatial: (N, S) float32, the features of sFID, or None
    """

    features: Float[np.ndarray, "n d"]
    spatial: Float[np.ndarray, "n s"] | None = None

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def join(cls, parts: list[Activations]) -> Activations:
        """Return the features of several batches as one."""
        spatial = [part.spatial for part in parts if part.spatial is not None]
        return cls(np.concatenate([part.features for part in parts]), np.concatenate(spatial) if spatial else None)


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that computes the features that metrics compare.

    name: name in tables; the Fréchet distance is called FID for "Inception" and FD-<name> for any other
    module: maps the output of `prepare` to features (N, D), or to a pair of these and the maps of sFID (N, C, H, W)
    prepare: maps uint8 images (N, 3, H, W) to the input of the module
    identity: checksum of weights, architecture and preprocessing; equal identities have equal features
    probabilities: maps features (N, D) to p(y | x) (N, K) for the Inception Score; None if there are no classes
    any_channels: whether images with other than one or three channels are passed on unchanged
    spec: `path/to/file.py:name` of a user's network, for error messages
    """

    name: str
    module: nn.Module
    prepare: Callable[[Pixels], Tensor]
    identity: str
    probabilities: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n k"]] | None = None
    any_channels: bool = False
    spec: str = ""

    @property
    def is_inception(self) -> bool:
        """Whether this is the 2015 Inception network. Only its distances are called FID and sFID."""
        return self.name == "Inception"

    @property
    def distance(self) -> str:
        """The name of the Fréchet distance in these features."""
        return "FID" if self.is_inception else self.titled("FD")

    def titled(self, metric: str) -> str:
        """Return the name of a metric in these features: the metric's own for Inception, else <metric>-<name>."""
        return metric if self.is_inception else f"{metric}-{self.name}"

    @property
    def device(self) -> torch.device:
        """The device of the module's parameters, or the CPU if it has none."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> FeatureNetwork:
        """Move the module to a device and return self."""
        self.module.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> Activations:
        """Return the features of images, computed in float32; grey ones become three equal channels.

        TF32 is off, since its lower precision changes FID. Raises ValueError if the network does not take images with
        this number of channels, if the module does not return features (N, D), or if they are not finite.
        """
        adapt_threads()
        check_channels(self, images.shape[3], "the images")
        images = np.broadcast_to(images, (*images.shape[:3], 3)) if images.shape[3] == 1 else images
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(self.device)
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
        plain = without_autocast(torch.device(self.device))
        with exact, plain, evaluation_mode(self.module, self.prepare), errors_of(self.spec):
            output = self.module(self.prepare(pixels))
        features, maps = output if isinstance(output, tuple) else (output, None)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"network {self.name} must return features (N, D), got {got} for {len(images)} images")
        if not torch.isfinite(features).all():
            raise ValueError(f"network {self.name} returned features that are not finite")
        spatial = None if maps is None else maps.permute(0, 2, 3, 1).flatten(1)  # NHWC, as in stored statistics
        return Activations(to_array(features), None if spatial is None else to_array(spatial))


def check_channels(network: Any, channels: int, what: str) -> None:
    """Raise ValueError if a feature network, or its name, does not support images with this number of channels."""
    own = isinstance(network, nn.Module) or (isinstance(network, str) and ".py:" in network)
    if channels not in (1, 3) and not own and not getattr(network, "any_channels", False):
        name = network if isinstance(network, str) else network.name
        raise ValueError(
            f"{what} have {channels} channels, but the feature network {name} supports only grey and colour images: "
            f"pass a network of your own, file.py:name or a torch.nn.Module"
        )


def to_array(x: Tensor) -> np.ndarray:
    """Return a tensor as a float32 array."""
    return x.float().cpu().numpy()


class Head:
    """Maps features to p(y | x) = softmax(features Wᵀ + b), in float64."""

    def __init__(self, weight: Float[Tensor, "k d"], bias: Float[Tensor, " k"] | None = None):
        self.weight = weight.detach().cpu().double()
        self.bias = torch.zeros(len(weight)).double() if bias is None else bias.detach().cpu().double()

    def __call__(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        blocks = torch.split(torch.from_numpy(np.ascontiguousarray(features)), 1000)
        return torch.cat([(block.double() @ self.weight.T + self.bias).softmax(1) for block in blocks]).numpy()


def fingerprint(module: nn.Module, *more: str) -> str:
    """Return the SHA-256 of the module's layers, of its parameters and buffers, and of the given texts."""
    return hashlib.sha256("\0".join([repr(module), *more, digest_of(module)]).encode()).hexdigest()


def ready(module: nn.Module) -> nn.Module:
    """Prepare a module for inference, in channels-last format, which is faster on CPUs and tensor cores."""
    module.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution that computes what the two layers do in evaluation mode."""
    return torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm.eval())
