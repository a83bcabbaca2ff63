"""Small random models, for tests of everything around the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NAMES, TRUNK, randomised

from admg.checkpoints.card import MARK
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.diffusion.config import DiffusionConfig
from admg.files import atomic
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig
from admg.training import curves, tasks


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch):
    """Pictures of training runs are made as always, but previews take two steps, and curves are not laid out twice.

    Tests of several processes and slow ones make them as users do.
    """
    if not any(request.node.get_closest_marker(name) for name in ("process", "slow")):
        monkeypatch.setattr(tasks, "PREVIEW_STEPS", 2)
        monkeypatch.setattr(curves, "LAYOUT", None)


@pytest.fixture
def simple_pictures(monkeypatch):
    """Curves and cards, which take longer than the steps of a tiny run, hold next to nothing; there are no previews."""

    def draw(rows, path):
        with atomic(path) as temporary:
            temporary.touch()

    def write(folder, *arguments):
        (folder / "README.md").write_text(MARK)

    monkeypatch.setattr("admg.training.trackers.plot_log", draw)
    monkeypatch.setattr("admg.training.run_models.write_card", write)
    monkeypatch.setattr("admg.training.tasks.DiffusionTask.preview", lambda *arguments: {})


TRAINING = {"seed": 0, "label_dropout": 0.1}


UNMEASURED = (
    "docs", "reliability", "checkpoints/test_graph_export", "evaluation/test_inception", "models/test_plain_modules",
    "samplers/test_guided_reference", "test_examples", "test_notebooks",
)  # fmt: skip
"""Tests that are much slower while coverage is measured, of lines that other tests run too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(root) and item.path.relative_to(root).as_posix().startswith(UNMEASURED):
            item.add_marker(pytest.mark.no_cover)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="folder for the screenshots of the browser tests")


@pytest.fixture(scope="session")
def tiny_model() -> Model:
    config = DiffusionConfig(diffusion_steps=100)
    torch.manual_seed(0)  # of the parameters that randomised() leaves as they are
    network = randomised(UNet(UNetConfig(**TRUNK, num_classes=len(NAMES))), 0)
    return Model(network, config.build(), (1, 8, 8), Labels(len(NAMES), NAMES), config, TRAINING)


@pytest.fixture(scope="session")
def tiny_classifier() -> Classifier:
    config = DiffusionConfig(diffusion_steps=100)
    torch.manual_seed(1)  # of the parameters that randomised() leaves as they are
    network = randomised(NoisyClassifier(ClassifierConfig(**TRUNK, num_classes=len(NAMES))), 1)
    return Classifier(network, config.build(), Labels(len(NAMES), NAMES), config)


@pytest.fixture(scope="session")
def tiny_upsampler() -> Model:
    """From 4x4 to 8x8."""
    config = DiffusionConfig(diffusion_steps=100)
    torch.manual_seed(2)  # of the parameters that randomised() leaves as they are
    network = randomised(SuperResUNet(SuperResConfig(**TRUNK, num_classes=len(NAMES), small_size=4)), 2)
    return Model(network, config.build(), (1, 8, 8), Labels(len(NAMES), NAMES), config, TRAINING)


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
