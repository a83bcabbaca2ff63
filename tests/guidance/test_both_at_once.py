"""The conditional and the unconditional prediction from one call of the network, as used for small batches on GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import admg
from admg import guidance, samplers
from admg.checkpoints.model import Model

Y = torch.tensor([1, 2, 0])
GUIDES = {
    "cfg": guidance.ClassifierFreeGuidance(3.0),
    "apg": guidance.APG(4.0),
    "cfg++": guidance.CFGPlusPlus(0.6),
    "cfg-zero*": guidance.CFGZeroStar(2.0),
    "rescaled": guidance.Rescaled(guidance.ClassifierFreeGuidance(3.0)),
    "sum": guidance.ClassifierFreeGuidance(3.0) + (lambda state: -state.x),
    "gradient-free": guidance.GradientFreeGuidance(lambda x, t: x.flatten(1)[:, :5], 3.0, "null"),
}


def calls_of(model: Model, guide, x: torch.Tensor, y: torch.Tensor | None = Y) -> tuple[torch.Tensor, list[int]]:
    """The result of DDIM, and the images of each call of the network."""
    sizes: list[int] = []
    hook = model.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        return list(samplers.ddim(model, x, y=y, guide=guide))[-1].x, sizes
    finally:
        hook.remove()


@pytest.fixture
def pays(monkeypatch):
    """Switch to one call, as on a GPU."""
    return lambda: monkeypatch.setattr("admg.checkpoints.model.one_call_is_faster", lambda x: True)


@pytest.mark.thorough
@pytest.mark.parametrize("name", GUIDES)
def test_one_call_gives_what_two_give(name, tiny_model, pays):
    model, x = tiny_model.respace(4), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, two = calls_of(model, GUIDES[name], x)
    pays()
    found, one = calls_of(model, GUIDES[name], x)
    assert (two, one) == ([3] * 8, [6] * 4)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # rounding, magnified at the noisiest step


@pytest.mark.thorough
def test_no_more_calls_than_the_guide_needs(tiny_model, pays):
    """Neither outside an interval, nor at scale 1, for other guides, or for an unconditional network."""
    pays()
    model, x = tiny_model.respace(4), torch.randn(3, 1, 8, 8)
    sigmas = [model.diffusion.schedule.sigma(i) for i in range(4)]
    limited = guidance.Interval(guidance.ClassifierFreeGuidance(3.0), high=(sigmas[1] + sigmas[2]) / 2)
    assert calls_of(model, limited, x)[1] == [3, 3, 6, 6]
    for guide in (
        guidance.ClassifierFreeGuidance(1.0),
        guidance.APG(1.0),
        guidance.CFGZeroStar(1.0),
        lambda state: None,
        None,
    ):
        assert calls_of(model, guide, x)[1] == [3] * 4
    assert calls_of(model, guidance.PerturbedAttentionGuidance(3.0), x)[1] == [3] * 8
    with pytest.raises(ValueError, match="needs a conditional model"):
        calls_of(model, guidance.ClassifierFreeGuidance(3.0), x, None)


@pytest.mark.thorough
def test_further_inputs_of_the_network_are_doubled(tiny_upsampler, pays):
    low_res = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = replace(tiny_upsampler.respace(3), given={"low_res": low_res})
    expected, _ = calls_of(model, guidance.ClassifierFreeGuidance(3.0), x)
    pays()
    found, sizes = calls_of(model, guidance.ClassifierFreeGuidance(3.0), x)
    assert sizes == [6] * 3
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # rounding, magnified at the noisiest step


def test_a_users_network_is_called_twice(tiny_model, pays):
    """It may not know the label -1."""
    pays()
    labels = []

    class Own(torch.nn.Module):
        config = tiny_model.network.config

        def forward(self, x, timesteps, y=None):
            labels.append(y)
            return torch.zeros(len(x), 2, 8, 8)

    model = admg.Model(Own(), tiny_model.diffusion.respace(1), (1, 8, 8), tiny_model.labels)
    list(samplers.ddim(model, torch.randn(3, 1, 8, 8), y=Y, guide=guidance.ClassifierFreeGuidance(3.0)))
    assert labels[0] is Y and labels[1] is None
