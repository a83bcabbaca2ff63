"""Noise that depends only on a seed and the index of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .gaussian import Images


class SeededNoise:
    """Standard normal noise for which every image has its own random stream.

    Image i of a seed gets the same noise whatever the batch size, the device and the number of processes: the numbers
    are drawn on the CPU. An instance is a noise sampler, so it can be passed to a sampler as `noise_sampler`.

    seed: seed shared by all images
    images: indices of the images in the batch
    """

    def __init__(self, seed: int, images: Sequence[int]) -> None:
        self.generators = [
            torch.Generator().manual_seed(int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] >> 1))
            for i in images
        ]

    def draw(self, shape: Sequence[int]) -> Images:
        """Return the next noise (N, *shape) of every image, float32 on the CPU."""
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in self.generators])

    def __call__(self, x: Images, index: int) -> Tensor:
        """Return the next noise with the shape, device and dtype of x. `index`, that of the step, is ignored."""
        noise = self.draw(x.shape[1:])
        if x.is_cuda:
            return noise.pin_memory().to(x.device, x.dtype, non_blocking=True)
        return noise.to(x.device, x.dtype)
