"""The diffusion process of a checkpoint, as it is written in `config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

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
    """

    noise_schedule: ScheduleName = "linear"
    diffusion_steps: int = 1000
    predict: Predict = "eps"
    variance: Variance = "learned_range"
    rescale_timesteps: bool = False

    def build(self) -> Diffusion:
        """Return the diffusion process.

        Raises ValueError if a field has an unknown value, or if eps is predicted where nothing of the image is left.
        """
        schedules = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}
        if self.noise_schedule not in schedules:
            raise ValueError(f"unknown noise schedule {self.noise_schedule!r}: {' or '.join(get_args(ScheduleName))}")
        schedule = schedules[self.noise_schedule](self.diffusion_steps)
        if self.predict == "eps" and schedule.is_pure_noise(-1):
            raise ValueError(
                f"the {self.noise_schedule} noise schedule with {self.diffusion_steps} diffusion_steps ends in pure "
                "noise, where the image does not follow from eps: choose more steps, or predict v or x0"
            )
        return Diffusion(schedule.rescaled() if self.rescale_timesteps else schedule, self.predict, self.variance)
