"""The denoising error: noise is added to real images at several levels, and the network predicts the images.

The levels are signal-to-noise ratios ᾱ / (1 - ᾱ): candidates with different schedules see the same noisy images, and
differ in the timestep that is given to the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from admg.checkpoints.model import Model
from admg.diffusion.config import DiffusionConfig
from admg.diffusion.gaussian import Images, Predict
from admg.diffusion.losses import vb_bpd
from admg.diffusion.noise import SeededNoise

LEVELS = (14.0, 7.0, 2.0, -3.0, -14.0)
"""Signal-to-noise ratios in dB, for images in [-1, 1] and noise of unit variance."""

MAX_ERROR = 1e6
"""Upper limit of errors; also used for errors that are NaN."""


@dataclass(frozen=True)
class Probe:
    """N real images at L noise levels.

    x0: images (N, C, H, W) in [-1, 1]
    noise, x_t: noise and noisy images (L, N, C, H, W)
    y: labels (N,), or None
    low_res: small images, for an upsampling model
    levels, alpha_bar: signal-to-noise ratios in dB, and ᾱ (L,)
    spread: variance of the pixels of all images
    """

    x0: Images
    noise: Tensor
    x_t: Tensor
    y: Tensor | None
    low_res: Images | None
    levels: tuple[float, ...]
    alpha_bar: Float[Tensor, " l"]
    spread: float

    def images(self, chosen: slice) -> Probe:
        """Return some of the images, with the variance of all."""
        y, low_res = (None if v is None else v[chosen] for v in (self.y, self.low_res))
        parts = self.noise[:, chosen], self.x_t[:, chosen], y, low_res
        return Probe(self.x0[chosen], *parts, self.levels, self.alpha_bar, self.spread)

    def conditioning(self) -> dict[str, Tensor]:
        """Return the labels and small images, if there are any, by argument name."""
        given = {"y": self.y, "low_res": self.low_res}
        return {name: value for name, value in given.items() if value is not None}


def make_probe(model: Model, x0: Images, y: Tensor | None, levels: Sequence[float], seed: int) -> Probe:
    """Add noise to images at these levels.

    Raises ValueError if there are no images or levels, if the images do not fit the model, or if they have no contrast.
    """
    if x0.ndim != 4 or len(x0) == 0 or tuple(x0.shape[1:]) != model.shape:
        raise ValueError(
            f"images must have shape (N, {', '.join(map(str, model.shape))}) with N > 0, got {tuple(x0.shape)}"
        )
    if not levels:
        raise ValueError("at least one noise level is needed")
    spread = float(x0.double().var(correction=0))
    if spread < 1e-4:
        raise ValueError("the images have no contrast: real images are needed to measure how well they are denoised")
    drawn = SeededNoise(seed, range(len(x0)))
    noise = torch.stack([drawn.draw(x0.shape[1:]) for _ in levels])
    snr = 10 ** (torch.tensor(levels, dtype=torch.float64) / 10)
    alpha_bar = snr / (1 + snr)
    x_t = _column(alpha_bar.sqrt()) * x0 + _column((1 - alpha_bar).sqrt()) * noise
    low_res = None
    if model.upsamples:
        side = getattr(model.network.config, "small_size", 0) or x0.shape[-1] // 4
        low_res = F.interpolate(x0, (side, side), mode="area")  # as in training
    x0, noise, x_t = (v.to(model.device, torch.float32) for v in (x0, noise, x_t))
    y, low_res = (None if v is None else v.to(model.device) for v in (y, low_res))
    return Probe(x0, noise, x_t, y, low_res, tuple(levels), alpha_bar, spread)


def timesteps(process: DiffusionConfig, levels: Sequence[float]) -> Float[Tensor, " l"]:
    """Return the timesteps at which the process has these levels, as given to the network, fractions included."""
    schedule = process.schedule()
    return torch.from_numpy(_interpolated(schedule.alpha_bar, schedule.timesteps, levels)).float()


def step(process: DiffusionConfig, level: float) -> int:
    """Return the index of the step whose noise level is nearest."""
    schedule = process.schedule()
    at = _interpolated(schedule.alpha_bar, torch.arange(len(schedule)), [level])
    return round(float(at[0]))


@torch.no_grad()
def outputs(model: Model, process: DiffusionConfig, probe: Probe) -> Tensor:
    """Return the network's output for the timesteps of the process, (L, N, C or 2C, H, W)."""
    ts = timesteps(process, probe.levels).to(probe.x_t.device)
    given = probe.conditioning()
    return torch.stack([model.network(x, t[None], **given).float() for x, t in zip(probe.x_t, ts)])


def relative_errors(output: Tensor, predict: Predict, probe: Probe) -> Float[Tensor, "n l"]:
    """Return the squared error of x_0, divided by that of the best guess from only the mean and variance of the pixels.

    The error of that guess is spread / (1 + SNR spread). A value of 1 means that the network knows nothing about the
    images, and 0 that it knows them exactly. x_0 is not clipped, which makes the ratio the same for x_0, eps and v.
    """
    output = output[:, :, : probe.x0.shape[1]]
    sqrt_alpha_bar, sqrt_noise = _column(probe.alpha_bar.sqrt()), _column((1 - probe.alpha_bar).sqrt())
    sqrt_alpha_bar, sqrt_noise = (v.float().to(output.device) for v in (sqrt_alpha_bar, sqrt_noise))
    if predict == "eps":
        x0 = (probe.x_t - sqrt_noise * output) / sqrt_alpha_bar
    elif predict == "x0":
        x0 = output
    else:
        x0 = sqrt_alpha_bar * probe.x_t - sqrt_noise * output
    errors = (x0 - probe.x0).square().flatten(2).mean(2).T.double().cpu()
    snr = probe.alpha_bar / (1 - probe.alpha_bar)
    relative = errors * (1 + snr * probe.spread) / probe.spread
    return relative.nan_to_num(MAX_ERROR, posinf=MAX_ERROR).clamp(1e-12, MAX_ERROR)


def variance_bits(output: Tensor, process: DiffusionConfig, probe: Probe) -> float:
    """Return the mean of the bound's terms at these levels in bits per dimension, small for the right variance."""
    diffusion, channels = process.build(), probe.x0.shape[1]
    output = output if diffusion.learns_variance else output[:, :, :channels]
    terms = []
    for level, out, x_t in zip(probe.levels, output, probe.x_t):
        t = torch.full((len(probe.x0),), max(1, step(process, level)), device=x_t.device)
        terms.append(vb_bpd(diffusion, out, probe.x0, x_t, t, clip=True))
    return float(torch.stack(terms).mean())


def _interpolated(alpha_bar: Tensor, values: Tensor, levels: Sequence[float]) -> np.ndarray:
    log_snr = 10 * (alpha_bar / (1 - alpha_bar)).log10().numpy()
    found = np.interp([-level for level in levels], -log_snr, values.double().numpy())  # -log SNR rises with t
    return np.asarray(found)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)
