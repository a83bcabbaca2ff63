"""Noise and blur of low-resolution images against SciPy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from admg.diffusion.augmentation import blurred, with_noise


def test_noise_keeps_the_variance_and_has_the_level_of_each_image():
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(3, 2, 64, 64, generator=generator), torch.randn(3, 2, 64, 64, generator=generator)
    level = torch.tensor([0.0, 0.6, 1.0])
    found = with_noise(x, level, noise)
    assert torch.equal(found[0], x[0]) and torch.equal(found[2], noise[2])
    assert torch.allclose(found[1], 0.8 * x[1] + 0.6 * noise[1], atol=1e-6)
    assert found.var(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=0.05)


def test_blur_is_scipys_gaussian_filter_of_3x3():
    x = torch.rand(4, 3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.0, 0.4, 0.5, 0.6], dtype=torch.float64)
    found = blurred(x, sigma)
    assert torch.equal(found[0], x[0])
    for image, width, result in zip(x[1:], sigma[1:].tolist(), found[1:], strict=True):
        channels = [gaussian_filter(channel, width, radius=1, mode="nearest") for channel in image.numpy()]
        assert np.abs(result.numpy() - np.stack(channels)).max() < 1e-14
    constant = torch.full((1, 1, 1, 1), 0.3)
    assert torch.allclose(blurred(constant, torch.tensor([0.6])), constant)
