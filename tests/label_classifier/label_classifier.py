"""A small CNN that classifies clean Fashion-MNIST images. It is not part of admg.

It is independent of the models that it evaluates: it shares no code with admg's networks, it was never trained on noisy
images, and no sampler was ever guided by it. Its weights are stored next to this file; train.py trained them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("label_classifier.safetensors")
SIZE = 32  # images of 28x28 are padded with black to this size
FEATURES = 128


class Network(nn.Module):
    """Six 3x3 convolutions at 16x16, 8x8 and 4x4.

    Maps images (N, 1, 32, 32) in [0, 1], where 0 is black, to logits (N, 10).
    """

    def __init__(self):
        super().__init__()

        def conv(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),  # 2x2 pixels become 4 channels: keeps all pixels at a quarter of the work
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


class LabelClassifier:
    """The network with its stored weights.

    All methods take arrays or tensors of 28x28 or 32x32 pixels: uint8 (N, H, W, 1), or float (N, 1, H, W) in [-1, 1].
    """

    def __init__(self, weights: Path | str = WEIGHTS):
        self.network = Network().to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.network.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
        self.network.eval().requires_grad_(False)

    def predict(self, images: np.ndarray | Tensor) -> np.ndarray:
        """Return the predicted labels (N,), int64: 0 is T-shirt/top, 9 is Ankle boot, as in Fashion-MNIST."""
        return self._batched(self.network, images).argmax(1).numpy()

    def features(self, images: np.ndarray | Tensor) -> np.ndarray:
        """Return the inputs of the last layer, (N, 128) float32, all non-negative."""
        return self._batched(self.network.body, images).numpy()

    def _batched(self, function: nn.Module, images: np.ndarray | Tensor) -> Tensor:
        x = prepare(images)
        with torch.inference_mode():
            return torch.cat([function(batch) for batch in x.split(100)])


def prepare(images: np.ndarray | Tensor) -> Tensor:
    """Convert images in any form that LabelClassifier accepts to (N, 1, 32, 32) in [0, 1].

    Raises ValueError if their type or shape is another.
    """
    x = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    if x.dtype == torch.uint8:
        x = x.movedim(-1, 1).float() / 255
    elif x.is_floating_point():
        x = ((x.float() + 1) / 2).clamp(0, 1)
    else:
        raise ValueError(f"images must be uint8 or float, got {x.dtype}")
    if x.ndim != 4 or x.shape[1] != 1 or x.shape[2:] not in ((28, 28), (SIZE, SIZE)):
        shape = tuple(images.shape)
        raise ValueError(f"images must be uint8 (N, H, W, 1) or float (N, 1, H, W), of 28x28 or 32x32, got {shape}")
    margin = (SIZE - x.shape[-1]) // 2
    return nn.functional.pad(x, (margin,) * 4)
