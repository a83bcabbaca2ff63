"""The diffusion process of a checkpoint, as it is written in `config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from .gaussian import Diffusion, Predict, Variance
from .schedule import NoiseSchedule

ScheduleName = Literal["linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The diffusion process that a network is trained on.

    noise_schedule: noise schedule: linear (DDPM) or cosine (Improved DDPM)
    diffusion_steps: number of diffusion steps, T
    predict: quantity that the network predicts: eps, x0 or v
    variance: variance of the reverse process: learned_range, learned, fixed_small or fixed_large
    rescale_timesteps: give the network t*1000/T instead of t
    zero_terminal_snr: rescale the schedule such that its last step is pure noise, where sampling begins; requires
        predict v or x0
    """

    noise_schedule: ScheduleName = "linear"
    diffusion_steps: int = 1000
    predict: Predict = "eps"
    variance: Variance = "learned_range"
    rescale_timesteps: bool = False
    zero_terminal_snr: bool = False

    @property
    def schedule_name(self) -> str:
        """Readable name of the noise schedule, such as "linear" or "linear zero-terminal-SNR"."""
        return f"{self.noise_schedule} zero-terminal-SNR" if self.zero_terminal_snr else self.noise_schedule

    def build(self) -> Diffusion:
        """Return the diffusion process.

        Raises ValueError if a field has an unknown value, or if eps is predicted and the schedule ends in pure noise.
        """
        schedule = self.schedule()
        if self.predict == "eps" and schedule.is_pure_noise(-1):
            cause = f"the {self.noise_schedule} noise schedule with {self.diffusion_steps} diffusion_steps ends"
            cause = "zero_terminal_snr ends the noise schedule" if self.zero_terminal_snr else cause
            remedy = "predict v or x0" if self.zero_terminal_snr else "choose more steps, or predict v or x0"
            raise ValueError(f"{cause} in pure noise, where eps does not determine the image: {remedy}")
        return Diffusion(schedule, self.predict, self.variance)

    def describes(self, diffusion: Diffusion) -> bool:
        """Whether a process equals this one, with all its steps or respaced."""
        own, schedule = self.build(), diffusion.schedule.origin or diffusion.schedule
        if (own.predicts, own.variance, len(own)) != (diffusion.predicts, diffusion.variance, len(schedule)):
            return False
        pairs = (own.schedule.betas, schedule.betas), (own.schedule.timesteps, schedule.timesteps)
        return all(torch.allclose(a.double(), b.double(), rtol=1e-6, atol=0) for a, b in pairs)

    def schedule(self) -> NoiseSchedule:
        """Return the noise schedule. Raises ValueError if it is unknown or does not allow this number of steps."""
        schedules = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}
        if self.noise_schedule not in schedules:
            raise ValueError(f"unknown noise schedule {self.noise_schedule!r}: {' or '.join(get_args(ScheduleName))}")
        schedule = schedules[self.noise_schedule](self.diffusion_steps)
        schedule = schedule.with_zero_terminal_snr() if self.zero_terminal_snr else schedule
        return schedule.rescaled() if self.rescale_timesteps else schedule
