"""Modules of a user's guide run in evaluation mode, whatever they were left in, and get their mode back."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import admg
from admg import guidance
from admg.generation.modes import evaluation_mode, modules_in


def batch_norm(seed: int = 0, **options) -> nn.Module:
    """A small classifier of five labels with batch norm and dropout, in training mode."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, **options), nn.SiLU(), nn.Dropout(), nn.Flatten(),
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
    with pytest.raises(ValueError, match=r"BatchNorm2d.* without running statistics an image depends on the others"):
        admg.sample(tiny_model, [0], steps=1, guide=guides(network)["closure"], progress=False)


def test_each_module_is_found_once_and_cycles_end():
    network, loop = nn.Linear(1, 1), []
    loop += [loop, network, {"again": network}, nn.Linear]
    assert modules_in([loop]) == [network]
