"""The Gaussian diffusion process and the meaning of a network's output, as in DDPM and Improved DDPM.

In every function t is an index into the noise schedule, either an int for the whole batch or a tensor (N,). The
network is given `schedule.timesteps[t]`. Images are float32; float64 images are computed in float64 throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, Literal, get_args

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
    """A model's prediction of the step p(x_{t-1} | x_t) = N(mean, variance).

    x0: predicted image (N, C, H, W)
    eps: predicted noise (N, C, H, W), with x_t = sqrt(ᾱ_t) x0 + sqrt(1 - ᾱ_t) eps
    mean: mean of x_{t-1}, (N, C, H, W)
    variance: variance of x_{t-1}, broadcastable to (N, C, H, W)
    log_variance: logarithm of the variance
    """

    consistent: ClassVar[bool] = True  # whether eps and mean follow from x0

    x0: Images
    eps: Images
    mean: Images
    variance: Images
    log_variance: Images


class Diffusion:
    """The Gaussian diffusion process of a noise schedule, and how to read the output of a network trained on it.

    schedule: noise schedule, possibly respaced
    predict: what the network predicts: the noise `eps`, the image `x0`, or v = sqrt(ᾱ) eps - sqrt(1 - ᾱ) x0
    variance: variance of p(x_{t-1} | x_t): `learned_range` (Improved DDPM, equation 15), `learned` (the network
        predicts the log variance), `fixed_small` (β̃_t) or `fixed_large` (β_t). The learned ones need 2C output channels

    Raises ValueError if `predict` or `variance` is unknown.
    """

    def __init__(self, schedule: NoiseSchedule, predict: Predict = "eps", variance: Variance = "learned_range") -> None:
        if predict not in get_args(Predict):
            raise ValueError(f"unknown prediction {predict!r}: {', '.join(get_args(Predict))}")
        if variance not in get_args(Variance):
            raise ValueError(f"unknown variance {variance!r}: {', '.join(get_args(Variance))}")
        self._schedule = schedule
        self.predicts: Predict = predict
        self.variance: Variance = variance

    def __len__(self) -> int:
        return len(self.schedule)

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule; see `with_schedule` for another one."""
        return self._schedule

    def respace(self, spec: int | str) -> Diffusion:
        """Return the same process with fewer steps; see NoiseSchedule.respace."""
        return self.with_schedule(self.schedule.respace(spec))

    def with_schedule(self, schedule: NoiseSchedule) -> Diffusion:
        """Return a process that reads the network's output in the same way, with another noise schedule."""
        return Diffusion(schedule, self.predicts, self.variance)

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts the variance, in C additional output channels."""
        return self.variance.startswith("learned")

    # -- the forward process -------------------------------------------------------------------------------------

    def q_sample(self, x0: Images, t: Index, noise: Images) -> Images:
        """Return x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) noise (DDPM, equation 4)."""
        c = self._constants_for(x0)
        return _at(c.sqrt_alpha_bar, t) * x0 + _at(c.sqrt_one_minus_alpha_bar, t) * noise

    def posterior(self, x0: Images, x: Images, t: Index) -> tuple[Images, Tensor, Tensor]:
        """Return mean, variance and log variance of q(x_{t-1} | x_t, x_0) (DDPM, equations 6 and 7).

        At t = 0 the variance is 0; the log variance of t = 1 is returned there.
        """
        c = self._constants_for(x)
        mean = _at(c.posterior_mean_x0, t) * x0 + _at(c.posterior_mean_xt, t) * x
        return mean, _at(c.posterior_variance, t), _at(c.posterior_log_variance, t)

    def x0_from_eps(self, x: Images, t: Index, eps: Images) -> Images:
        """Return x_0 = (x_t - sqrt(1 - ᾱ_t) eps) / sqrt(ᾱ_t). Raises ValueError if ᾱ_t is 0."""
        if self._ends_in_pure_noise and bool((self.schedule.alpha_bar[torch.as_tensor(t).cpu()] == 0).any()):
            raise ValueError(
                "this noise schedule ends in pure noise (ᾱ = 0), where eps does not determine the image: "
                "the network must predict x0 or v there, and guides must modify x0"
            )
        c = self._constants_for(x)
        return _at(c.sqrt_recip_alpha_bar, t) * x - _at(c.sqrt_recip_alpha_bar_minus_one, t) * eps

    def eps_from_x0(self, x: Images, t: Index, x0: Images) -> Images:
        """Return eps = (x_t - sqrt(ᾱ_t) x_0) / sqrt(1 - ᾱ_t)."""
        c = self._constants_for(x)
        return (x - _at(c.sqrt_alpha_bar, t) * x0) / _at(c.sqrt_one_minus_alpha_bar, t)  # defined for ᾱ = 0 too

    # -- the reverse process -------------------------------------------------------------------------------------

    def predict(self, network_output: Tensor, x: Images, t: Index, clip: bool = True) -> Prediction:
        """Return p(x_{t-1} | x_t = x) from the network's output, in float32 (float64 if x is float64).

        network_output: (N, C or 2C, H, W)
        clip: whether x0 is clipped to [-1, 1] before eps and the mean are derived from it

        Raises ValueError if the number of output channels does not fit the kind of variance, if the output has another
        shape than x otherwise, or if the network predicts eps and ᾱ_t is 0.
        """
        dtype = working_dtype(x)
        x, output, channels = x.to(dtype), network_output.to(dtype), x.shape[1]
        needed = channels * (2 if self.learns_variance else 1)
        if output.shape[1] != needed:
            raise ValueError(
                f"variance {self.variance!r} needs {needed} output channels for {channels} image channels, "
                f"got {output.shape[1]}"
            )
        if (output.shape[0], output.shape[2:]) != (x.shape[0], x.shape[2:]):
            sizes = f"{tuple(x.shape)}, got {tuple(output.shape)}"
            raise ValueError(f"the network's output must have the shape of x, {sizes}")
        output, v = output[:, :channels], output[:, channels:]
        c = self._constants_for(x)

        if self.predicts == "eps":
            x0 = self.x0_from_eps(x, t, output)
        elif self.predicts == "x0":
            x0 = output
        else:  # x_0 = sqrt(ᾱ) x_t - sqrt(1 - ᾱ) v (Salimans & Ho 2022)
            x0 = _at(c.sqrt_alpha_bar, t) * x - _at(c.sqrt_one_minus_alpha_bar, t) * output
        x0 = x0.clamp(-1, 1) if clip else x0

        if self.variance == "learned_range":  # Σ = exp(v log β_t + (1 - v) log β̃_t), v mapped to [0, 1]
            low, high = _at(c.posterior_log_variance, t), _at(c.log_beta, t)
            log_variance = low + (v + 1) / 2 * (high - low)
            variance = log_variance.exp()
        elif self.variance == "learned":
            log_variance, variance = v, v.exp()
        elif self.variance == "fixed_small":
            log_variance, variance = _at(c.posterior_log_variance, t), _at(c.posterior_variance, t)
        else:
            log_variance, variance = _at(c.fixed_large_log_variance, t), _at(c.fixed_large_variance, t)
        mean, _, _ = self.posterior(x0, x, t)
        return Prediction(x0, self.eps_from_x0(x, t, x0), mean, variance, log_variance)

    def clip_x0(self, p: Prediction, x: Images, t: Index) -> Prediction:
        """Return the prediction with x0 clipped to [-1, 1]; eps and mean follow from the clipped x0."""
        return self.with_x0(p, x, t, p.x0.clamp(-1, 1))

    def with_x0(self, p: Prediction, x: Images, t: Index, x0: Images) -> Prediction:
        """Return the prediction with another x0, from which eps and mean follow. The variance stays."""
        mean, _, _ = self.posterior(x0, x, t)
        return Prediction(x0, self.eps_from_x0(x, t, x0), mean, p.variance, p.log_variance)

    def with_eps(self, p: Prediction, x: Images, t: Index, eps: Images) -> Prediction:
        """Return the prediction with another eps, from which x0 (not clipped) and mean follow. The variance stays."""
        x0 = self.x0_from_eps(x, t, eps)
        mean, _, _ = self.posterior(x0, x, t)
        return Prediction(x0, eps, mean, p.variance, p.log_variance)

    # -- constants -----------------------------------------------------------------------------------------------

    def timestep(
        self, t: Index, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return the timestep given to the network at index t: (1,) for an int, (N,) for a tensor.

        dtype: dtype of the images; fractional timesteps are float64 for float64 images, and float32 otherwise
        """
        key = torch.device(device or "cpu"), torch.float64 if dtype == torch.float64 else torch.float32
        table = self._timesteps.get(key)
        if table is None:
            with torch.inference_mode(False):  # later gradients need the table, too
                steps = self.schedule.timesteps.clone()
                steps = steps.to(key[1]) if steps.is_floating_point() else steps
                table = self._timesteps[key] = steps.to(key[0])
        return table[t.to(device)] if isinstance(t, Tensor) else table[t : t + 1]

    @cached_property
    @torch.inference_mode(False)
    def constants(self) -> Constants:
        """The constants of the process as float64 tables (T,) over t."""
        return Constants.of(self.schedule)

    @cached_property
    def _ends_in_pure_noise(self) -> bool:
        return self.schedule.is_pure_noise(-1)

    @cached_property
    def _constants(self) -> dict[tuple[torch.device, torch.dtype], Constants]:
        return {}

    @cached_property
    def _timesteps(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    def _constants_for(self, x: Tensor) -> Constants:
        """Return the constants on the device of x, in the dtype that x is computed in."""
        key = x.device, working_dtype(x)
        if key not in self._constants:
            with torch.inference_mode(False):
                self._constants[key] = self.constants.to(*key)
        return self._constants[key]


@dataclass(frozen=True)
class Constants:
    """Coefficients of the Gaussian process, each a table (T,) over t."""

    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor
    sqrt_recip_alpha_bar: Tensor
    sqrt_recip_alpha_bar_minus_one: Tensor
    log_beta: Tensor
    posterior_mean_x0: Tensor
    posterior_mean_xt: Tensor
    posterior_variance: Tensor
    posterior_log_variance: Tensor
    fixed_large_variance: Tensor
    fixed_large_log_variance: Tensor

    @classmethod
    def of(cls, schedule: NoiseSchedule) -> Constants:
        """Return the constants of a noise schedule in float64."""
        beta, alpha_bar, alpha_bar_prev = schedule.betas, schedule.alpha_bar, schedule.alpha_bar_prev
        posterior_variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
        # β̃_0 = 0 has no logarithm. guided-diffusion uses β̃_1 there; with a single step there is none, so use β_0.
        first = posterior_variance[1:2] if len(beta) > 1 else beta
        fixed_large_variance = torch.cat([first, beta[1:]])
        return cls(
            sqrt_alpha_bar=alpha_bar.sqrt(),
            sqrt_one_minus_alpha_bar=(1 - alpha_bar).sqrt(),
            sqrt_recip_alpha_bar=alpha_bar.rsqrt(),
            sqrt_recip_alpha_bar_minus_one=(1 / alpha_bar - 1).sqrt(),
            log_beta=beta.log(),
            posterior_mean_x0=beta * alpha_bar_prev.sqrt() / (1 - alpha_bar),
            posterior_mean_xt=(1 - alpha_bar_prev) * (1 - beta).sqrt() / (1 - alpha_bar),
            posterior_variance=posterior_variance,
            posterior_log_variance=torch.cat([first, posterior_variance[1:]]).log(),
            fixed_large_variance=fixed_large_variance,
            fixed_large_log_variance=fixed_large_variance.log(),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Constants:
        """Return the constants on another device and in another dtype."""
        return Constants(*(getattr(self, field.name).to(dtype).to(device) for field in fields(self)))


def _at(table: Tensor, t: Index) -> Tensor:
    """Return the constant at t, ready to multiply images: () for an int, (N, 1, 1, 1) for a tensor."""
    return table[t].view(-1, 1, 1, 1) if isinstance(t, Tensor) else table[t]


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to compute with x in: float64 if x is float64, and float32 otherwise."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """Return the element-wise KL(N(mean1, e^log_variance1) || N(mean2, e^log_variance2)) in nats."""
    difference = log_variance2 - log_variance1
    return 0.5 * (difference - 1 + torch.exp(-difference) + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log-likelihood in nats of 8-bit values x, scaled to [-1, 1], under N(mean, std²) (DDPM, equation 13).

    Each value has the mass of a bin of width 2/255 around it; the bins at -1 and 1 extend to infinity. The cdf is
    guided-diffusion's tanh approximation, so that likelihoods agree with published ones.
    """
    inverse_std = torch.exp(-log_std)
    cdf_above = _normal_cdf((x - mean + 1 / 255) * inverse_std)
    cdf_below = _normal_cdf((x - mean - 1 / 255) * inverse_std)
    mass = torch.where(x < -0.999, cdf_above, torch.where(x > 0.999, 1 - cdf_below, cdf_above - cdf_below))
    return mass.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
