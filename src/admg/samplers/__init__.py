"""Samplers: plain generator functions, one file per algorithm, all called alike: ddpm(model, x_T, y=, guide=, ...)."""

from .ddim import ddim
from .ddpm import ddpm
from .dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from .heun import heun
from .inversion import ddim_inversion, ddim_reverse
from .repaint import repaint
from .steps import NoiseSampler, Sampler, Step, gaussian_noise
from .unipc import unipc

__all__ = [
    "NoiseSampler",
    "Sampler",
    "Step",
    "ddim",
    "ddim_inversion",
    "ddim_reverse",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "gaussian_noise",
    "heun",
    "repaint",
    "unipc",
]
