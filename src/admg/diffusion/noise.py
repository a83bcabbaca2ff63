"""Noise that depends only on a seed and the index of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .gaussian import Images


def mixed(seed: int, index: int) -> int:
    """Return a number of 64 bits that differs between seeds and between indices below 2^32."""
    # An integer above 2^32 is several words, so that [2^32, 0] would be [0, 1]: the index always comes second.
    words = np.random.SeedSequence([seed & 0xFFFFFFFF, index, seed >> 32])
    return int(words.generate_state(1, np.uint64)[0])


class SeededNoise:
    """Standard normal noise for which every image has its own random stream.

    Image i of a seed gets the same noise whatever the batch size, the device and the number of processes: the numbers
    are drawn on the CPU. An instance is a noise sampler, so it can be passed to a sampler as `noise_sampler`.

    seed: seed shared by all images
    images: indices of the images in the batch
    """

    def __init__(self, seed: int, images: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(mixed(seed, i) >> 1) for i in images]

    def draw(self, shape: Sequence[int]) -> Images:
        """Return the next noise (N, *shape) of every image, float32 on the CPU."""
        size = tuple(shape)
        return torch.stack([torch.randn(size, generator=one, dtype=torch.float32) for one in self.generators])

    def __call__(self, x: Images, index: int) -> Tensor:
        """Return the next noise with the shape, device and dtype of x. `index`, that of the step, is ignored."""
        noise = self.draw(x.shape[1:])
        if x.is_cuda:
            return noise.pin_memory().to(x.device, x.dtype, non_blocking=True)
        return noise.to(x.device, x.dtype)
