"""Modules of a user's guide run in evaluation mode, whatever they were left in, and get their mode back."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import admg
from admg import guidance
from admg.evaluation.features.custom import from_module
from admg.evaluation.label_classifier import load_label_classifier
from admg.evaluation.likelihood import bits_per_dim
from admg.evaluation.opening import source_from_array
from admg.generation.modes import evaluation_mode, modules_in


def batch_norm(channels: int = 1, **options) -> nn.Module:
    """A small classifier of five labels with batch norm and dropout, in training mode."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8, **options), nn.SiLU(), nn.Dropout(), nn.Flatten(),
                         nn.Linear(8 * 36, 5))  # fmt: skip


GLOBAL = batch_norm()


def of_a_global(x):
    return -GLOBAL(x).square().sum(1)


@dataclass(eq=False)
class Own:
    network: nn.Module

    def __call__(self, x, timesteps):
        return self.network(x)


class NoDataclass:
    def __init__(self, network):
        self.parts = {"network": [network]}

    def energy(self, x):
        return self.parts["network"][0](x).square().sum(1)


def guides(network: nn.Module) -> dict:
    """One network behind each kind of guide."""
    energy = NoDataclass(network).energy
    return {
        "field": guidance.ClassifierGuidance(Own(network), 3.0),
        "closure": guidance.ClassifierGuidance(lambda x, t: network(x), 3.0),
        "closures": guidance.guide(lambda state: (lambda x: network(x).mean(1).view(-1, 1, 1, 1) * x)(state.x)),
        "clean": guidance.ExtendedClassifierGuidance(network, 3.0, at="x0"),
        "method": guidance.LossGuidance(energy, 1.0, at="x") + (lambda state: None),
        "partial": guidance.LossGuidance(functools.partial(lambda n, x: n(x).square().sum(1), network), 1.0, at="x"),
        "default": guidance.LossGuidance(lambda x, n=network: n(x).square().sum(1), 1.0, at="x"),
    }


@pytest.mark.thorough
@pytest.mark.parametrize("name", guides(GLOBAL))
def test_images_do_not_depend_on_the_batch_size(tiny_model, name):
    """In training mode, batch norm and dropout would change them by up to the full range."""
    network = batch_norm()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    options = {"steps": 3, "guide": guides(network)[name], "progress": False}
    one, all_at_once = (admg.sample(tiny_model, [0, 1, 2], **options, batch_size=size).x for size in (1, 3))
    torch.testing.assert_close(one, all_at_once, atol=1e-3, rtol=0)  # rounding, magnified at the noisiest step
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_global_of_the_users_file_and_modes_that_differ_are_restored_after_an_error():
    GLOBAL[3].eval()
    with pytest.raises(RuntimeError), evaluation_mode(guidance.LossGuidance(of_a_global)):
        assert not any(module.training for module in GLOBAL.modules())
        raise RuntimeError
    assert [module.training for module in GLOBAL.modules()] == [True, True, True, True, False, True, True]
    GLOBAL.train()


def test_the_model_itself_is_sampled_in_evaluation_mode(tiny_model):
    tiny_model.network.train()
    try:
        admg.sample(tiny_model, [0], steps=1, progress=False)
        assert tiny_model.network.training
    finally:
        tiny_model.network.eval()


def test_batch_norm_without_running_statistics_is_refused(tiny_model):
    network = batch_norm(track_running_stats=False)
    with pytest.raises(ValueError, match=r"BatchNorm2d.* has no running statistics: each image would depend"):
        admg.sample(tiny_model, [0], steps=1, guide=guides(network)["closure"], progress=False)


def test_each_module_is_found_once_and_cycles_end():
    network, loop = nn.Linear(1, 1), []
    loop += [loop, network, {"again": network}, nn.Linear]
    assert modules_in([loop]) == [network]


@pytest.mark.thorough
def test_networks_that_evaluate_keep_their_mode_and_their_gradients(tiny_model):
    """Features, labels and likelihoods do not depend on the batch, and the user's module is left as it was."""
    network, coloured = batch_norm(), batch_norm(3)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    features = from_module(coloured)
    one = np.concatenate([features(images[i : i + 1]).features for i in range(4)])
    np.testing.assert_allclose(features(images).features, one, atol=1e-5)
    source = source_from_array(images, "images")
    predict = load_label_classifier(network, source).predict
    assert predict(images).tolist() == [int(predict(images[i : i + 1])[0]) for i in range(4)]
    for own in (network, coloured):
        assert all(module.training for module in own.modules())
        assert all(parameter.requires_grad for parameter in own.parameters())
    unet = type(tiny_model.network)(replace(tiny_model.network.config, dropout=0.9))
    model = replace(tiny_model.respace(1), network=unet)
    x, y = torch.zeros(1, 1, 8, 8), torch.tensor([0])
    first, second = (bits_per_dim(model, x, y).vb for _ in range(2))
    assert torch.equal(first, second) and model.network.training


def test_a_module_stays_in_evaluation_mode_until_the_last_run_ends():
    """Of two runs in threads, the one that began first may end first."""
    network, frozen = nn.Dropout(), nn.Dropout().eval()
    first, second = evaluation_mode(network, frozen), evaluation_mode(network, frozen)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not network.training
    second.__exit__(None, None, None)
    assert network.training and not frozen.training
