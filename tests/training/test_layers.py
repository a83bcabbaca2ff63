"""The table of layers: parameters and operations by their formulas, and sums that agree with the whole network."""

from __future__ import annotations

import pytest
from helpers import TRUNK, succeed

from admg.models import ClassifierConfig, SuperResConfig, UNet, UNetConfig
from admg.training.recipes.layers import layers
from admg.training.recipes.measure import measure


@pytest.mark.thorough
@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(**TRUNK, num_classes=3),
        SuperResConfig(**TRUNK, small_size=4),
        ClassifierConfig(**TRUNK, num_classes=3),
    ],
)
def test_layers_add_up_to_the_network(config):
    found, whole = layers(config), measure(config)
    assert sum(layer.parameters for layer in found) == whole.parameters
    assert sum(layer.gflops for layer in found) == pytest.approx(whole.gflops, rel=1e-9)


@pytest.mark.thorough
def test_a_layer_by_its_formula():
    config = UNetConfig(**TRUNK, num_classes=3)
    found = {layer.name: layer for layer in layers(config)}
    assert set(found) == {name for name, _ in UNet(config).named_children() if not name.endswith("blocks")} | {
        name for name in found if "blocks" in name
    }
    first = found["input_blocks.0"]  # a 3x3 convolution from 1 to 32 channels of 8x8 pixels
    assert first.kind == "Conv2d" and first.shape == (32, 8, 8) and first.parameters == 9 * 32 + 32
    assert first.gflops == pytest.approx(2 * 9 * 32 * 64 / 1e9)
    assert found["label_emb"].gflops == 0 and found["label_emb"].parameters == 3 * 128


@pytest.mark.thorough
def test_the_command(tiny_folders, capsys):
    text = succeed(capsys, "info", tiny_folders["model"], "--table")
    assert "input_blocks.0" in text and "GFLOPs" in text and "memory of training" in text
    assert "GFLOPs" not in succeed(capsys, "info", tiny_folders["model"])
