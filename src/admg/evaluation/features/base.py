"""What a feature network is: uint8 images -> features, under a name that every figure bears."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

Pixels = UInt8[Tensor, "n 3 h w"]
ImagesAsFloat = Float[Tensor, "n 3 h2 w2"]


@dataclass(frozen=True)
class Activations:
    """Of N images. features: (N, D) float32; spatial: (N, S) float32, what sFID looks at, or None"""

    features: Float[np.ndarray, "n d"]
    spatial: Float[np.ndarray, "n s"] | None = None

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def join(cls, parts: list[Activations]) -> Activations:
        spatial = [part.spatial for part in parts if part.spatial is not None]
        return cls(np.concatenate([part.features for part in parts]), np.concatenate(spatial) if spatial else None)


@dataclass(frozen=True)
class FeatureNetwork:
    """A network with all that is needed to judge images by it.

    name: for people: FID is said of "Inception" only, FD-<name> of any other
    module: takes what `prepare` returns, and gives features (N, D), or a pair with what sFID needs, (N, C, H, W)
    prepare: uint8 (N, 3, H, W) -> the module's input
    identity: of weights, architecture and preprocessing: equal ones give equal features
    probabilities: features (N, D) -> p(y | x) (N, K), for the Inception Score; None: the network tells no classes
    """

    name: str
    module: nn.Module
    prepare: Callable[[Pixels], Tensor]
    identity: str
    probabilities: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n k"]] | None = None

    @property
    def is_inception(self) -> bool:
        """Whether it is the 2015 Inception, of which alone FID and sFID are said and statistics are published."""
        return self.name == "Inception"

    @property
    def distance(self) -> str:
        """What the Fréchet distance in its features is called."""
        return "FID" if self.is_inception else f"FD-{self.name}"

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> FeatureNetwork:
        self.module.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> Activations:
        """Activations of images of one or three channels, in float32 proper: no TF32, whose three digits move a FID.

        ValueError: what the module gives are not features (N, D), or not finite.
        """
        rgb = np.broadcast_to(images, (*images.shape[:3], 3))
        pixels = torch.from_numpy(np.ascontiguousarray(rgb.transpose(0, 3, 1, 2))).to(self.device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            output = self.module(self.prepare(pixels))
        features, maps = output if isinstance(output, tuple) else (output, None)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"network {self.name} gives {got} for {len(images)} images: features (N, D) are needed")
        if not torch.isfinite(features).all():
            raise ValueError(f"network {self.name} gives features that are not finite")
        spatial = None if maps is None else maps.permute(0, 2, 3, 1).flatten(1)  # NHWC, as the stored statistics
        return Activations(to_array(features), None if spatial is None else to_array(spatial))


def to_array(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()


class Head:
    """p(y | x) of features: softmax(features Wᵀ + b), in float64."""

    def __init__(self, weight: Float[Tensor, "k d"], bias: Float[Tensor, " k"] | None = None):
        self.weight = weight.detach().cpu().double()
        self.bias = torch.zeros(len(weight)).double() if bias is None else bias.detach().cpu().double()

    def __call__(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        blocks = torch.from_numpy(np.ascontiguousarray(features)).split(1000)
        return torch.cat([(block.double() @ self.weight.T + self.bias).softmax(1) for block in blocks]).numpy()


def fingerprint(module: nn.Module, *more: str) -> str:
    """SHA-256 of names, shapes and values of all parameters and buffers, of the module's layers, and of the texts."""
    digest = hashlib.sha256("\0".join([repr(module), *more]).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def ready(module: nn.Module) -> nn.Module:
    """For inference; channels last, in which convolutions on a CPU and on tensor cores run faster."""
    return module.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that does what the two do in evaluation mode."""
    return torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm.eval())
