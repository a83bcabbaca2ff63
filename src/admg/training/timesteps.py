"""Distribution of the timesteps in training: uniform, in proportion to the loss, or by a density of the noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from admg.config import check, setting
from admg.diffusion import NoiseSchedule

TimestepsName = Literal["uniform", "loss-second-moment", "logit-normal", "log-normal"]
MEAN_STD = {"logit-normal": (0.0, 1.0), "log-normal": (-1.2, 1.2)}
"""Mean and standard deviation in the papers."""
LEVELS = 10
"""Number of timesteps at which losses and accuracies are measured."""


@dataclass(frozen=True, kw_only=True)
class Timesteps:
    """The distribution of the timesteps that a diffusion model is trained on.

    kind: `uniform` draws each t equally often. `loss-second-moment` draws t in proportion to the root mean square of
        its latest losses, see ImportanceSampler; losses are divided by the frequency of t, which keeps their
        expectation that of `uniform`. `logit-normal` (Esser et al. 2024) draws logit((t + 1/2) / T) from a normal
        distribution, and `log-normal` (EDM) log σ, with σ = sqrt((1 - ᾱ) / ᾱ). These two do not reweight losses, and
        thus change the objective: noise levels count as often as they are drawn.
    mean, std: mean and standard deviation of the normal distribution; None: 0 and 1 for `logit-normal`, -1.2 and 1.2
        for `log-normal`

    Raises ValueError for an unknown kind, or for a number that does not apply to the kind.
    """

    kind: TimestepsName = "uniform"
    mean: float | None = setting(None, min=-10, max=10)
    std: float | None = setting(None, above=0)

    def __post_init__(self) -> None:
        check(self)
        for name in ("mean", "std"):
            if getattr(self, name) is not None and self.kind not in MEAN_STD:
                raise ValueError(f"{name} applies only to the timesteps {' and '.join(MEAN_STD)}, not to {self.kind}")

    def draw(self, schedule: NoiseSchedule, count: int, generator: torch.Generator) -> Tensor:
        """Return t (count,), int64 in [0, T).

        For `loss-second-moment`, return uniform numbers in [0, 1), float64: ImportanceSampler.choose turns them into t.
        """
        if self.kind == "uniform":
            return torch.randint(len(schedule), (count,), generator=generator)
        u = torch.rand(count, dtype=torch.float64, generator=generator)
        return u if self.kind == "loss-second-moment" else torch.searchsorted(self._inner_cdf(schedule), u, right=True)

    def probabilities(self, schedule: NoiseSchedule) -> Float64[Tensor, " T"]:
        """Return the probability of each t, float64 (T,). For `loss-second-moment`, it is the initial one."""
        if self.kind not in MEAN_STD:
            return torch.full((len(schedule),), 1 / len(schedule), dtype=torch.float64)
        ends = torch.tensor([0.0]), self._inner_cdf(schedule), torch.tensor([1.0])
        return torch.cat(ends).diff()

    def check_schedule(self, schedule: NoiseSchedule) -> None:
        """Raise ValueError if the schedule has steps that would never be drawn."""
        if self.kind == "log-normal" and schedule.is_pure_noise(-1):
            raise ValueError(
                "timesteps log-normal never draws pure noise (σ = ∞), where this noise schedule ends and sampling "
                "begins: choose uniform, logit-normal or loss-second-moment"
            )

    def _inner_cdf(self, schedule: NoiseSchedule) -> Float64[Tensor, " T-1"]:
        """Return the probability of drawing at most t, for each t but the last: the density up to half way to t + 1."""
        usual_mean, usual_std = MEAN_STD[self.kind]
        mean = usual_mean if self.mean is None else self.mean
        std = usual_std if self.std is None else self.std
        if self.kind == "logit-normal":
            edges = torch.logit(torch.arange(1, len(schedule), dtype=torch.float64) / len(schedule))
        else:
            log_sigma = -schedule.snr.log() / 2
            edges = (log_sigma[1:] + log_sigma[:-1]) / 2
        cdf: Tensor = torch.special.ndtr((edges - mean) / std)
        return cdf


def evenly_spaced_timesteps(steps: int, count: int = LEVELS) -> list[int]:
    """Return `count` timesteps from 0 to the last one, evenly spaced; or all timesteps if there are not more."""
    return list(dict.fromkeys(round(k * (steps - 1) / (count - 1)) for k in range(count)))
