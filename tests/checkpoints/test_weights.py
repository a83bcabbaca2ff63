"""Networks without values, which weights are loaded into."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import pytest
import torch
from helpers import TRUNK

import admg
from admg.checkpoints.weights import cached_digests, digest_of, is_finite, shapes_in, shapes_of
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig


@pytest.mark.parametrize(
    "network, config",
    [
        (UNet, UNetConfig(**TRUNK, num_classes=3)),
        (NoisyClassifier, ClassifierConfig(**TRUNK, num_classes=3)),
        (NoisyClassifier, ClassifierConfig(**TRUNK, num_classes=3, pool="spatial")),
        (SuperResUNet, SuperResConfig(**TRUNK, small_size=4)),
    ],
)
def test_shapes_are_those_of_a_network_with_values(network, config):
    found = shapes_of(network, config)
    initialised = network(config).state_dict()
    assert found == shapes_in(initialised)
    assert all(value.isfinite().all() for value in initialised.values())
    assert initialised["input_blocks.0.0.weight"].std() > 0.01


@pytest.mark.process
def test_loading_does_not_import_the_compiler_of_torch():
    """It takes more than a second, and what makes weights on the meta device would import it."""
    program = """if True:
        import sys, admg
        admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
        print([name for name in ("sympy", "torch._dynamo", "torch._inductor") if name in sys.modules])"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_numbers_are_finite_even_if_their_sum_is_not(dtype):
    largest = torch.full((4,), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(largest) and is_finite(-largest) and is_finite(torch.zeros(0, dtype=dtype))
    for bad in (math.inf, -math.inf, math.nan):
        for others in (largest, 0 * largest):
            assert not is_finite(torch.cat([others, torch.tensor([bad, 0.0], dtype=dtype)]))
    assert not is_finite(torch.tensor([math.inf, -math.inf], dtype=dtype))


def test_a_network_is_hashed_once_while_its_digest_is_kept_and_each_time_otherwise(monkeypatch):
    """Changes through `.data`, which torch does not count, are always seen outside."""
    networks, hashed = [torch.nn.Linear(2, 2) for _ in range(2)], []
    real = hashlib.sha256
    monkeypatch.setattr("admg.checkpoints.weights.hashlib.sha256", lambda: hashed.append(1) or real())
    before = [digest_of(network) for network in networks]
    with cached_digests(), cached_digests():
        assert [digest_of(network) for network in networks * 3] == before * 3
    assert len(hashed) == 4 and before[0] != before[1]
    networks[0].weight.data.view(-1).numpy()[0] += 1
    assert digest_of(networks[0]) != before[0] and digest_of(networks[1]) == before[1]


@pytest.mark.thorough
def test_a_sweep_hashes_the_weights_once(tiny_model, tiny_classifier, tmp_path, monkeypatch):
    planned = admg.evaluation.plan_sweep(
        tiny_model, classifier=tiny_classifier, scales=[1, 2, 3], steps=["2", "3"], num=4, out=tmp_path / "s"
    )
    hashed, real = [], hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *data: (hashed.append(1) if not data else None) or real(*data))
    assert repr(planned).endswith("6 cells, 60 network evaluations to sample") and len(hashed) == 2
