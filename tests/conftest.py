"""Small random models, for tests of everything around the network."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from admg.model import Classifier, DiffusionConfig, Labels, Model
from admg.nn import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig

NAMES = ("zero", "one", "two", "T-shirt/top", "Ankle boot")
TRUNK = {
    "image_size": 8,
    "image_channels": 1,
    "channels": 32,
    "channel_mult": (1, 1),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "head_channels": 32,
}


def randomised(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights without the zero-initialised layers, which would make every output zero."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.05 + (p.data if p.ndim == 1 else 0)
    return network.eval().requires_grad_(False)


def up_to_second_derivatives(
    layer: torch.nn.Module, x: torch.Tensor, w: torch.Tensor, dtype: torch.dtype
) -> list[torch.Tensor]:
    """In this dtype: y = layer(x), the gradient of sum(w y²), and the gradient of its square."""
    layer.to(dtype)
    leaf = x.to(dtype).requires_grad_()
    y = layer(leaf)
    first = torch.autograd.grad((w.to(dtype) * y * y).sum(), leaf, create_graph=True)[0]
    return [y.detach(), first.detach(), torch.autograd.grad(first.square().sum(), leaf)[0]]


@pytest.fixture(scope="session")
def tiny_model() -> Model:
    config = DiffusionConfig(diffusion_steps=100)
    network = randomised(UNet(UNetConfig(**TRUNK, num_classes=len(NAMES))), 0)
    return Model(network, config.build(), (1, 8, 8), Labels(len(NAMES), NAMES), config, {"seed": 0})


@pytest.fixture(scope="session")
def tiny_classifier() -> Classifier:
    config = DiffusionConfig(diffusion_steps=100)
    network = randomised(NoisyClassifier(ClassifierConfig(**TRUNK, num_classes=len(NAMES))), 1)
    return Classifier(network, config.build(), Labels(len(NAMES), NAMES), config)


@pytest.fixture(scope="session")
def tiny_upsampler() -> Model:
    """From 4x4 to 8x8."""
    config = DiffusionConfig(diffusion_steps=100)
    network = randomised(SuperResUNet(SuperResConfig(**TRUNK, num_classes=len(NAMES), small_size=4)), 2)
    return Model(network, config.build(), (1, 8, 8), Labels(len(NAMES), NAMES), config, {"seed": 0})


@pytest.fixture(scope="session")
def tiny_folders(tiny_model, tiny_classifier, tmp_path_factory) -> dict[str, str]:
    """The two as checkpoints on disk."""
    root = tmp_path_factory.mktemp("tiny")
    tiny_model.save(root / "model")
    tiny_classifier.save(root / "classifier")
    return {"model": str(root / "model"), "classifier": str(root / "classifier")}


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> str:
    """sklearn's 1,797 handwritten digits, 8x8, as an .npz."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, arr_0=(images.reshape(-1, 8, 8, 1) * 255 / 16).round().astype(np.uint8), arr_1=labels)
    return str(path)


def admg(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    command = [sys.executable, "-m", "admg.cli.main", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    if check and result.returncode:
        raise AssertionError(f"exit code {result.returncode}: {result.stderr}")
    return result
