"""Samplers: plain generator functions, one file per algorithm, all called as `ddpm(model, x_T, y=, guide=, ...)`.

`GuidedModel`, `guided_model`, `Step`, `Level` and `level` are for samplers of your own.
"""

from .base import GuidedModel, NoiseSampler, Sampler, Step, gaussian_noise, guided_model
from .ddim import ddim
from .ddpm import ddpm
from .dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from .heun import heun
from .inversion import ddim_inversion, ddim_reverse
from .levels import Level, level
from .repaint import repaint
from .unipc import unipc

__all__ = [
    "GuidedModel",
    "Level",
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
    "guided_model",
    "heun",
    "level",
    "repaint",
    "unipc",
]
