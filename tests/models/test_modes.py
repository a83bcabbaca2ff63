"""Evaluation mode for a while: each module gets its own mode back, also if several contexts share it."""

from __future__ import annotations

import pytest
from torch import nn

from admg.models.modes import evaluating


@pytest.fixture
def network():
    """A network in training mode, one part of which is in evaluation mode."""
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(1)))
    network[1].eval()
    return network


def modes(network):
    return [module.training for module in network.modules()]


def test_each_module_gets_its_own_mode_back(network):
    before = modes(network)
    with pytest.raises(KeyError), evaluating(network):
        assert modes(network) == [False] * 4
        raise KeyError
    assert modes(network) == before == [True, True, False, False]


def test_the_last_of_several_contexts_restores_the_modes(network):
    first, second = evaluating(network), evaluating(network)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert modes(network) == [False] * 4
    second.__exit__(None, None, None)
    assert modes(network) == [True, True, False, False]
