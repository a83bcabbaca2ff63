"""Weights of the mean squared error by noise level: min-SNR and P2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from admg.config import check, setting

from .gaussian import Diffusion, Predict
from .schedule import NoiseSchedule

WeightingName = Literal["uniform", "min-snr", "p2"]
GAMMA = {"min-snr": 5.0, "p2": 1.0}
"""Values of gamma in the papers."""


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """Weight of each step's mean squared error, a function of its signal-to-noise ratio SNR = ᾱ / (1 - ᾱ).

    Each kind is a weight of the error of x0. The error of eps is SNR times as large, and that of v SNR + 1 times;
    weights are divided by these factors where eps or v is predicted.

    kind: `uniform` weights the errors of what is predicted by 1. `min-snr` weights those of x0 by min(SNR, gamma)
        (Hang et al. 2023), and `p2` by SNR / (k + SNR)^gamma (Choi et al. 2022)
    gamma: largest weight of `min-snr`, or exponent of `p2`; None: 5 for `min-snr`, 1 for `p2`
    k: offset k of the SNR in `p2`: the weight decreases where the SNR exceeds it; None: 1

    Raises ValueError for an unknown kind, or for a number that does not apply to the kind.
    """

    kind: WeightingName = "uniform"
    gamma: float | None = setting(None, above=0)
    k: float | None = setting(None, above=0)

    def __post_init__(self) -> None:
        check(self)
        if self.gamma is not None and self.kind not in GAMMA:
            raise ValueError(f"gamma applies only to the weightings {' and '.join(GAMMA)}, not to {self.kind}")
        if self.k is not None and self.kind != "p2":
            raise ValueError(f"k applies only to the weighting p2, not to {self.kind}")

    def weights(self, schedule: NoiseSchedule, predicts: Predict) -> Float64[Tensor, " T"]:
        """Return the weight of the mean squared error of each step, float64 (T,).

        Where the schedule ends in pure noise (SNR = 0), the last step has the weight 0 if v or x0 is predicted.
        """
        if self.kind == "uniform":
            return torch.ones_like(schedule.alpha_bar)
        gamma, snr = self.gamma or GAMMA[self.kind], schedule.snr
        of_eps = {
            "min-snr": (gamma / snr).clamp(max=1),  # min(SNR, γ) / SNR, which is 1 at SNR = 0
            "p2": ((self.k or 1.0) + snr) ** -gamma,
        }[self.kind]
        return {"eps": of_eps, "x0": snr * of_eps, "v": snr * of_eps / (snr + 1)}[predicts]


class StepWeights:
    """The weights of a process, looked up for the steps of a batch on their device.

    table: weight of each step, float64 (T,)
    """

    def __init__(self, weighting: Weighting, diffusion: Diffusion) -> None:
        self.table = weighting.weights(diffusion.schedule, diffusion.predicts)
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def at(self, t: Tensor, dtype: torch.dtype) -> Float[Tensor, " n"]:
        """Return the weights of steps t (N,). After the first call nothing is copied between devices."""
        key = t.device, dtype
        if key not in self._copies:
            self._copies[key] = self.table.to(t.device, dtype)
        return self._copies[key][t]
