"""Weights of the mean squared error by noise level, against the papers' formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from admg.diffusion import Diffusion, NoiseSchedule
from admg.diffusion.losses import loss_terms
from admg.diffusion.weighting import StepWeights, Weighting

SCHEDULE = NoiseSchedule.linear(1000)
ALPHA_BAR = SCHEDULE.alpha_bar.numpy()
SNR = ALPHA_BAR / (1 - ALPHA_BAR)
T = torch.tensor([0, 40, 300, 999])
X0, NOISE, WRONG = (torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(i)).double() for i in range(3))

# Hang et al. 2023, section 3.4; Choi et al. 2022, equation 8, whose weights are those of eps
BY_PAPER = {
    ("min-snr", "eps"): np.minimum(SNR, 5) / SNR,
    ("min-snr", "x0"): np.minimum(SNR, 5),
    ("min-snr", "v"): np.minimum(SNR, 5) / (SNR + 1),
    ("p2", "eps"): 1 / (1 + SNR),
    ("p2", "x0"): SNR / (1 + SNR),
    ("p2", "v"): SNR / (1 + SNR) ** 2,
}


def network_for(predict: str):
    """A network whose prediction of x0 is WRONG, in what it predicts."""
    alpha_bar = SCHEDULE.alpha_bar[T].view(-1, 1, 1, 1)

    def network(x: Tensor, timesteps: Tensor) -> Tensor:
        eps = (x - alpha_bar.sqrt() * WRONG) / (1 - alpha_bar).sqrt()
        return {"eps": eps, "x0": WRONG, "v": alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * WRONG}[predict]

    return network


def loss(predict: str, weighting: Weighting) -> dict[str, Tensor]:
    diffusion = Diffusion(SCHEDULE, predict, "fixed_large")
    weights = StepWeights(weighting, diffusion)
    return loss_terms(diffusion, network_for(predict), X0, T, NOISE, objective="simple", weights=weights)


@pytest.mark.parametrize("kind,predict", BY_PAPER)
def test_the_loss_is_the_error_times_the_weight_of_the_paper(kind, predict):
    terms, plain = loss(predict, Weighting(kind=kind)), loss(predict, Weighting())
    assert torch.equal(terms["mse"], plain["mse"]) and torch.equal(plain["loss"], plain["mse"])
    np.testing.assert_allclose(terms["loss"] / plain["mse"], BY_PAPER[kind, predict][T], rtol=1e-12)


@pytest.mark.parametrize("weighting", [Weighting(kind="min-snr", gamma=2.0), Weighting(kind="p2", gamma=0.5, k=3.0)])
def test_the_same_prediction_has_the_same_loss_whatever_is_predicted(weighting):
    """All weights are one weight of the error of x0."""
    error = (X0 - WRONG).square().flatten(1).mean(1).numpy()
    snr = SNR[T]
    weight = np.minimum(snr, 2) if weighting.kind == "min-snr" else snr / np.sqrt(3 + snr)
    for predict in ("eps", "x0", "v"):
        np.testing.assert_allclose(loss(predict, weighting)["loss"], weight * error, rtol=1e-9)


@pytest.mark.parametrize("kind", ["min-snr", "p2"])
@pytest.mark.parametrize("predict", ["x0", "v"])
def test_the_weight_of_pure_noise_is_finite(kind, predict):
    schedule = NoiseSchedule.from_betas([0.1, 0.5, 1.0])
    weights = Weighting(kind=kind).weights(schedule, predict)
    assert weights.isfinite().all() and weights[-1] == 0 and (weights[:-1] > 0).all()
    assert Weighting(kind=kind).weights(schedule, "eps")[-1] == 1


def test_the_variational_bound_is_not_weighted():
    diffusion = Diffusion(SCHEDULE, "v")
    output = torch.cat([WRONG, NOISE.tanh()], 1)
    terms, plain = (
        loss_terms(diffusion, lambda x, t: output, X0, T, NOISE, vlb_weight=0.01, weights=weights)
        for weights in (StepWeights(Weighting(kind="min-snr"), diffusion), None)
    )
    assert torch.equal(terms["vb"], plain["vb"]) and terms["vb"].min() > 0
    expected = torch.from_numpy(BY_PAPER["min-snr", "v"][T]) * plain["mse"] + 0.01 * 1000 * plain["vb"]
    np.testing.assert_allclose(terms["loss"], expected, rtol=1e-12)


def test_numbers_that_a_weighting_does_not_have_are_refused():
    for changes, message in (
        ({"gamma": 5.0}, "gamma applies only to the weightings min-snr and p2, not to uniform"),
        ({"kind": "min-snr", "k": 1.0}, "k applies only to the weighting p2, not to min-snr"),
        ({"kind": "p2", "gamma": 0.0}, "gamma must be above 0, got 0.0"),
        ({"kind": "snr"}, "kind must be one of uniform, min-snr, p2, got 'snr'"),
    ):
        with pytest.raises(ValueError, match=message):
            Weighting(**changes)
