"""The judge: a small CNN that names the garment on a clean Fashion-MNIST image, and is no part of admg.

It is independent of what it judges: it shares no code with admg's networks, it has never seen a noised image, and
nothing was ever guided by it. Its weights lie beside this file; train.py made them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("judge.safetensors")
SIZE = 32  # images of 28x28 are put on a black canvas of this size
FEATURES = 128


class Network(nn.Module):
    """Six 3x3 convolutions at 16x16, 8x8 and 4x4; (N, 1, 32, 32) in [0, 1], black is 0 -> logits (N, 10)."""

    def __init__(self):
        super().__init__()

        def conv(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),  # 2x2 pixels become 4 channels: no pixel is lost, and a quarter of the work remains
            *conv(4, 48),
            *conv(48, 48),
            nn.MaxPool2d(2),
            *conv(48, 80),
            *conv(80, 80),
            nn.MaxPool2d(2),
            *conv(80, 80),
            *conv(80, FEATURES),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Judge:
    """The network with its stored weights. All methods take uint8 (N, H, W, 1) or float x (N, 1, H, W) in [-1, 1],
    as arrays or tensors, of 28x28 or 32x32 pixels."""

    def __init__(self, weights: Path | str = WEIGHTS):
        self.network = Network().to(memory_format=torch.channels_last)  # on a CPU twice as fast
        self.network.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
        self.network.eval().requires_grad_(False)

    def predict(self, images: np.ndarray | Tensor) -> np.ndarray:
        """Labels (N,), int64: 0 T-shirt/top ... 9 Ankle boot, as in Fashion-MNIST."""
        return self._batched(self.network, images).argmax(1).numpy()

    def features(self, images: np.ndarray | Tensor) -> np.ndarray:
        """What the last layer sees, (N, 128) float32, >= 0."""
        return self._batched(self.network.body, images).numpy()

    def _batched(self, function: nn.Module, images: np.ndarray | Tensor) -> Tensor:
        x = prepare(images)
        with torch.inference_mode():
            return torch.cat([function(batch) for batch in x.split(100)])


def prepare(images: np.ndarray | Tensor) -> Tensor:
    """Images, as Judge takes them -> (N, 1, 32, 32) in [0, 1]. ValueError: another type or shape."""
    x = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    if x.dtype == torch.uint8:
        x = x.movedim(-1, 1).float() / 255
    elif x.is_floating_point():
        x = ((x.float() + 1) / 2).clamp(0, 1)
    else:
        raise ValueError(f"images are uint8 or float, not {x.dtype}")
    if x.ndim != 4 or x.shape[1] != 1 or x.shape[2:] not in ((28, 28), (SIZE, SIZE)):
        shape = tuple(images.shape)
        raise ValueError(f"images are (N, H, W, 1) uint8 or (N, 1, H, W) float, of 28x28 or 32x32, not {shape}")
    margin = (SIZE - x.shape[-1]) // 2
    return nn.functional.pad(x, (margin,) * 4)
