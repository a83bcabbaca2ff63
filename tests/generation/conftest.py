"""Models and commands that the tests of jobs share."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import NAMES, TRUNK, randomised

from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.diffusion.config import DiffusionConfig
from admg.models import SuperResConfig, SuperResUNet

SIXTEEN = TRUNK | {"image_size": 16, "attention_resolutions": ()}


@pytest.fixture(scope="session")
def upsampler() -> Model:
    """Return an upsampling model from 8 to 16 pixels."""
    config = DiffusionConfig(diffusion_steps=100)
    network = randomised(
        SuperResUNet(SuperResConfig(**SIXTEEN, num_classes=5, small_size=8)),
        2,
    )
    return Model(network, config.build(), (1, 16, 16), Labels(5, NAMES), config)


@pytest.fixture(scope="session")
def folders(tiny_folders, upsampler, tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("upsampler")
    upsampler.save(root / "upsampler")
    anything = SuperResUNet(SuperResConfig(**SIXTEEN))  # any small size, unconditional
    Model(randomised(anything, 3), upsampler.diffusion, (1, 16, 16), Labels(0), upsampler.config).save(root / "any")
    return tiny_folders | {"upsampler": str(root / "upsampler"), "any": str(root / "any")}


@pytest.fixture
def sampling(folders):
    """Return a command for 10 images in 5 shards of 2."""
    return ["sample", "--model", folders["model"], "--classifier", folders["classifier"], "--steps", 3, "--num", 10,
            "--batch-size", 2, "--sampler", "ddpm", "--precision", "fp32"]  # fmt: skip


@pytest.fixture
def small(tmp_path) -> tuple[str, np.ndarray]:
    images = np.random.default_rng(0).integers(256, size=(6, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", arr_0=images, arr_1=np.array([3, 1, 4, 1, 0, 2]))
    return str(tmp_path / "small.npz"), images


@pytest.fixture
def pipeline(sampling, folders):
    return [*sampling, "--scale", 2, "--upsampler", folders["upsampler"], "--upsampler-steps", 2,
            "--upsampler-batch-size", 3]  # fmt: skip
