"""Samplers: plain generator functions, one file per algorithm, all called alike: ddpm(model, x_T, y=, guide=, ...)."""

from .ddim import ddim
from .ddpm import ddpm
from .steps import NoiseSampler, Sampler, Step, gaussian_noise

__all__ = ["NoiseSampler", "Sampler", "Step", "ddim", "ddpm", "gaussian_noise"]
