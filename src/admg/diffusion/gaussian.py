"""What a network's output says of p(x_{t-1} | x_t): the maths of DDPM and Improved DDPM, for one noise schedule.

Everywhere, t is an index into the schedule: an int for the whole batch, or a tensor (N,). The network is told
`schedule.timesteps[t]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from .schedule import NoiseSchedule

Images = Float[Tensor, "n c h w"]
Index = int | Tensor
Predict = Literal["eps", "x0", "v"]
Variance = Literal["learned_range", "learned", "fixed_small", "fixed_large"]


@dataclass(frozen=True)
class Prediction:
    """All that a sampler may know of p(x_{t-1} | x_t) = N(mean, variance). Each (N, C, H, W) or broadcastable to it."""

    x0: Images
    eps: Images
    mean: Images
    variance: Images
    log_variance: Images


class Diffusion:
    """The meaning of a network's output under a noise schedule.

    predict: what the network tells: the noise `eps`, the image `x0`, or v = sqrt(ᾱ) eps - sqrt(1 - ᾱ) x0
    variance: of p(x_{t-1} | x_t): `learned_range` (Improved DDPM, equation 15), `learned` (the log variance itself),
        `fixed_small` (β̃_t) or `fixed_large` (β_t). The learned ones need 2C output channels.
    """

    def __init__(self, schedule: NoiseSchedule, predict: Predict = "eps", variance: Variance = "learned_range") -> None:
        if predict not in get_args(Predict):
            raise ValueError(f"unknown prediction {predict!r}: {', '.join(get_args(Predict))}")
        if variance not in get_args(Variance):
            raise ValueError(f"unknown variance {variance!r}: {', '.join(get_args(Variance))}")
        self.schedule = schedule
        self.predicts: Predict = predict
        self.variance: Variance = variance

    def __len__(self) -> int:
        return len(self.schedule)

    def respace(self, spec: int | str) -> Diffusion:
        """The same with fewer steps, see NoiseSchedule.respace."""
        return Diffusion(self.schedule.respace(spec), self.predicts, self.variance)

    @property
    def learns_variance(self) -> bool:
        return self.variance.startswith("learned")

    # -- the forward process -------------------------------------------------------------------------------------

    def q_sample(self, x0: Images, t: Index, noise: Images) -> Images:
        """x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) noise (DDPM, equation 4)."""
        return self._at("sqrt_alpha_bar", t, x0) * x0 + self._at("sqrt_one_minus_alpha_bar", t, x0) * noise

    def posterior(self, x0: Images, x: Images, t: Index) -> tuple[Images, Tensor, Tensor]:
        """Mean, variance and log variance of q(x_{t-1} | x_t, x_0) (DDPM, equations 6 and 7).

        The log variance at t = 0, where the variance is 0, is that at t = 1.
        """
        mean = self._at("posterior_x0", t, x) * x0 + self._at("posterior_xt", t, x) * x
        return mean, self._at("posterior_variance", t, x), self._at("posterior_log_variance", t, x)

    def x0_from_eps(self, x: Images, t: Index, eps: Images) -> Images:
        return self._at("sqrt_recip_alpha_bar", t, x) * x - self._at("sqrt_recip_alpha_bar_minus_one", t, x) * eps

    def eps_from_x0(self, x: Images, t: Index, x0: Images) -> Images:
        return (x - self._at("sqrt_alpha_bar", t, x) * x0) / self._at("sqrt_one_minus_alpha_bar", t, x)  # ᾱ = 0 too

    # -- the reverse process -------------------------------------------------------------------------------------

    def predict(self, network_output: Tensor, x: Images, t: Index, clip: bool = True) -> Prediction:
        """p(x_{t-1} | x_t) from the network's output (N, C or 2C, H, W) at x = x_t, in float32.

        clip: x0 is clipped to [-1, 1] before eps and the mean are derived from it.
        ValueError: the number of output channels does not fit the kind of variance.
        """
        x, output = x.float(), network_output.float()
        channels = x.shape[1]
        if output.shape[1] != channels * (2 if self.learns_variance else 1):
            raise ValueError(
                f"variance {self.variance!r} needs {channels * (2 if self.learns_variance else 1)} output channels "
                f"for {channels} image channels, the network gave {output.shape[1]}"
            )
        output, v = output[:, :channels], output[:, channels:]

        if self.predicts == "eps":
            x0 = self.x0_from_eps(x, t, output)
        elif self.predicts == "x0":
            x0 = output
        else:  # x_0 = sqrt(ᾱ) x_t - sqrt(1 - ᾱ) v (Salimans & Ho 2022)
            x0 = self._at("sqrt_alpha_bar", t, x) * x - self._at("sqrt_one_minus_alpha_bar", t, x) * output
        x0 = x0.clamp(-1, 1) if clip else x0

        if self.variance == "learned_range":  # Σ = exp(v log β_t + (1 - v) log β̃_t), v from [-1, 1] to [0, 1]
            low, high = self._at("posterior_log_variance", t, x), self._at("log_beta", t, x)
            log_variance = low + (v + 1) / 2 * (high - low)
            variance = log_variance.exp()
        elif self.variance == "learned":
            log_variance, variance = v, v.exp()
        else:
            log_variance, variance = self._at(f"{self.variance}_log", t, x), self._at(self.variance, t, x)
        return self._prediction(x0, x, t, variance, log_variance)

    def clipped(self, p: Prediction, x: Images, t: Index) -> Prediction:
        """The prediction with x0 clipped to [-1, 1], and eps and mean as they follow from it."""
        return self._prediction(p.x0.clamp(-1, 1), x, t, p.variance, p.log_variance)

    def shift_eps(self, p: Prediction, x: Images, t: Index, score: Images) -> Prediction:
        """The prediction after its score has been moved: ε̂ = ε - sqrt(1 - ᾱ_t)·score (paper, Algorithm 2).

        x0 and the mean follow from ε̂, and x0 is not clipped again, as in the reference.
        """
        return self.with_eps(p, x, t, p.eps - self._at("sqrt_one_minus_alpha_bar", t, x) * score)

    def with_eps(self, p: Prediction, x: Images, t: Index, eps: Images) -> Prediction:
        """The prediction with another eps, and x0 and mean as they follow from it; the variance stays."""
        return self._prediction(self.x0_from_eps(x, t, eps), x, t, p.variance, p.log_variance, eps)

    def _prediction(self, x0, x, t, variance, log_variance, eps=None) -> Prediction:
        mean, _, _ = self.posterior(x0, x, t)
        return Prediction(x0, self.eps_from_x0(x, t, x0) if eps is None else eps, mean, variance, log_variance)

    # -- constants -----------------------------------------------------------------------------------------------

    @cached_property
    def constants(self) -> dict[str, Tensor]:
        """Every constant as a float64 table (T,) over t, computed once."""
        beta, alpha_bar = self.schedule.betas, self.schedule.alphas_cumprod
        before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        posterior_variance = beta * (1 - before) / (1 - alpha_bar)
        # β̃_0 = 0 has no logarithm; the reference puts β̃_1 there, and where T = 1 leaves none: then β_0.
        floor = posterior_variance[1:2] if len(beta) > 1 else beta
        fixed_large = torch.cat([floor, beta[1:]])
        posterior_log_variance = torch.cat([floor, posterior_variance[1:]]).log()
        return {
            "alpha_bar": alpha_bar,
            "alpha_bar_prev": before,
            "sqrt_alpha_bar": alpha_bar.sqrt(),
            "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
            "sqrt_recip_alpha_bar": alpha_bar.rsqrt(),
            "sqrt_recip_alpha_bar_minus_one": (1 / alpha_bar - 1).sqrt(),
            "log_beta": beta.log(),
            "posterior_variance": posterior_variance,
            "posterior_log_variance": posterior_log_variance,
            "posterior_x0": beta * before.sqrt() / (1 - alpha_bar),
            "posterior_xt": (1 - before) * (1 - beta).sqrt() / (1 - alpha_bar),
            "fixed_small": posterior_variance,
            "fixed_small_log": posterior_log_variance,
            "fixed_large": fixed_large,
            "fixed_large_log": fixed_large.log(),
        }

    def at(self, name: str, t: int) -> float:
        """The constant `name` at step t, as a Python float."""
        return self._floats[name][t]

    def timestep(self, t: Index, device: torch.device | str | None = None) -> Tensor:
        """What the network is told at step t: (1,) for an int, (N,) for a tensor."""
        device = torch.device(device or "cpu")
        table = self._tables.get(("timesteps", device))
        if table is None:
            steps = self.schedule.timesteps
            steps = steps.float() if steps.is_floating_point() else steps
            table = self._tables["timesteps", device] = steps.to(device)
        return table[t : t + 1] if isinstance(t, int) else table[t.to(device)]

    @cached_property
    def _floats(self) -> dict[str, list[float]]:
        return {name: table.tolist() for name, table in self.constants.items()}

    @cached_property
    def _tables(self) -> dict[tuple[str, torch.device], Tensor]:
        return {}

    def _at(self, name: str, t: Index, x: Images) -> Tensor:
        """The constant at t, ready to multiply x: () for an int, (N, 1, 1, 1) for a tensor; float32 on x's device."""
        table = self._tables.get((name, x.device))
        if table is None:
            table = self._tables[name, x.device] = self.constants[name].float().to(x.device)
        return table[t] if isinstance(t, int) else table[t].view(-1, *[1] * (x.ndim - 1))


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, e^log_variance1) || N(mean2, e^log_variance2)) in nats, element by element."""
    difference = log_variance2 - log_variance1
    return 0.5 * (difference - 1 + torch.exp(-difference) + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of the mass that N(mean, std²) gives to the 1/255-wide bin around each 8-bit value of x in [-1, 1], in nats.

    The bins at -1 and 1 reach to infinity (DDPM, equation 13). The cdf is the tanh approximation that the reference
    uses, so that likelihoods agree with published ones.
    """
    inverse_std = torch.exp(-log_std)
    cdf_above = _normal_cdf((x - mean + 1 / 255) * inverse_std)
    cdf_below = _normal_cdf((x - mean - 1 / 255) * inverse_std)
    mass = torch.where(x < -0.999, cdf_above, torch.where(x > 0.999, 1 - cdf_below, cdf_above - cdf_below))
    return mass.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
