"""Noise schedules: q(x_t | x_0) = N(sqrt(ᾱ_t) x_0, (1 - ᾱ_t) I) for t = 0 .. T-1, in float64, and their respacing."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index

import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The variances β_t of the forward process, and the timestep given to the network at each step.

    betas: β_t in (0, 1], float64 (T,)
    timesteps: timesteps given to the network, (T,); int64, or float64 for networks trained on rescaled timesteps
    origin: the full schedule that this one was respaced from, or None
    """

    betas: Float64[Tensor, " T"]
    timesteps: Tensor
    origin: NoiseSchedule | None = None

    @classmethod
    def linear(cls, steps: int = 1000) -> NoiseSchedule:
        """Return DDPM's schedule, with β from 1e-4 to 0.02, scaled by 1000/T for any number of steps T from 20.

        With 20 steps the last β is 1, and nothing is left of the image. Raises ValueError for fewer.
        """
        _check_steps(steps)
        if steps < 20:
            raise ValueError(
                f"the linear noise schedule takes at least 21 diffusion_steps, or 20 without predicting eps, got "
                f"{steps}: its last β, 20/{steps}, would be above 1 (the cosine schedule takes any number)"
            )
        scale = 1000 / steps
        return cls.from_betas(torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64))

    @classmethod
    def cosine(cls, steps: int = 1000) -> NoiseSchedule:
        """Return Improved DDPM's ᾱ(t) = cos²(π/2 (t/T + 0.008) / 1.008) (equation 17), with β at most 0.999."""
        _check_steps(steps)
        alpha_bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        return cls.from_betas([min(1 - after / before, 0.999) for before, after in itertools.pairwise(alpha_bar)])

    @classmethod
    def from_betas(
        cls, betas: Sequence[float] | Tensor, timesteps: Tensor | None = None, origin: NoiseSchedule | None = None
    ) -> NoiseSchedule:
        """Return the schedule of any β_t in (0, 1].

        timesteps: (T,) given to the network; 0 .. T-1 by default
        origin: full schedule that these steps were taken from, if any

        Raises ValueError if betas is empty or out of range, or if the shapes differ.
        """
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) == 0 or not ((betas > 0) & (betas <= 1)).all():
            raise ValueError("betas must be a non-empty list of numbers above 0 and at most 1")
        if timesteps is not None and timesteps.shape != betas.shape:
            raise ValueError(f"timesteps must have shape ({len(betas)},), one per beta, got {tuple(timesteps.shape)}")
        return cls(betas, torch.arange(len(betas)) if timesteps is None else timesteps, origin)

    @classmethod
    def from_alpha_bar(
        cls, alpha_bar: Float64[Tensor, " T"], timesteps: Tensor, origin: NoiseSchedule | None = None
    ) -> NoiseSchedule:
        """Return the schedule with ᾱ_t (T,), which must decrease: β_t = 1 - ᾱ_t / ᾱ_{t-1}.

        timesteps: (T,) given to the network
        origin: full schedule that these steps were taken from, if any

        Raises ValueError if alpha_bar is empty, does not decrease or leaves [0, 1), or if the shapes differ.
        """
        alpha_bar = torch.as_tensor(alpha_bar, dtype=torch.float64)
        if alpha_bar.ndim != 1 or len(alpha_bar) == 0 or not (alpha_bar.diff() < 0).all():
            raise ValueError("alpha_bar must be a non-empty list of decreasing numbers")
        if not 0 <= alpha_bar[-1] <= alpha_bar[0] < 1:
            raise ValueError(f"alpha_bar must be in [0, 1), got {alpha_bar[0]:g} to {alpha_bar[-1]:g}")
        alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        return cls.from_betas(1 - alpha_bar / alpha_bar_prev, timesteps, origin)

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    @torch.inference_mode(False)
    def alpha_bar(self) -> Float64[Tensor, " T"]:
        """ᾱ_t = Π_{s <= t} (1 - β_s)."""
        return torch.cumprod(1 - self.betas, dim=0)

    @cached_property
    @torch.inference_mode(False)
    def alpha_bar_prev(self) -> Float64[Tensor, " T"]:
        """ᾱ_{t-1}, which is 1 at t = 0."""
        return torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    @cached_property
    @torch.inference_mode(False)
    def snr(self) -> Float64[Tensor, " T"]:
        """Signal-to-noise ratio ᾱ_t / (1 - ᾱ_t), which is 0 at pure noise."""
        return self.alpha_bar / (1 - self.alpha_bar)

    def sigma(self, index: int) -> float:
        """Return the noise level σ = sqrt((1 - ᾱ) / ᾱ): the noise's standard deviation relative to the image (EDM)."""
        alpha_bar = self.alpha_bar[index].item()
        return ((1 - alpha_bar) / alpha_bar) ** 0.5 if alpha_bar else math.inf

    def is_pure_noise(self, index: int) -> bool:
        """Whether nothing of the image is left at this index: ᾱ = 0 (a zero terminal signal-to-noise ratio)."""
        return self.alpha_bar[index].item() == 0

    def rescaled(self) -> NoiseSchedule:
        """Return the same process with timesteps t·1000/T (the flag --rescale_timesteps of guided-diffusion).

        T is the number of steps of the process that this one was respaced from, if it was. Raises ValueError if the
        timesteps are rescaled already.
        """
        if self.timesteps.is_floating_point():
            raise ValueError("the timesteps of this schedule are rescaled already")
        origin = None if self.origin is None else self.origin.rescaled()
        return NoiseSchedule(self.betas, self.timesteps.double() * (1000 / len(self.origin or self)), origin)

    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """Return the process with sqrt(ᾱ) shifted and scaled to end at 0, pure noise (Lin et al. 2023, algorithm 1).

        The first step keeps its ᾱ. Raises ValueError if there is only one step.
        """
        if len(self) < 2:
            raise ValueError("zero_terminal_snr needs at least 2 diffusion_steps, since the first keeps its noise")
        root = self.alpha_bar.sqrt()
        first, last = root[0], root[-1]
        alpha_bar = ((root - last) * first / (first - last)).square()
        return NoiseSchedule.from_alpha_bar(alpha_bar, self.timesteps)

    def respace(self, spec: int | str | Sequence[int]) -> NoiseSchedule:
        """Return the same process with fewer steps. The network is still given the original timesteps.

        spec: "ddim25" keeps every k-th step from 0, 25 in total (DDIM's rule), and "trailing25" those from the last
            downwards (Lin et al. 2023, table 2). 25, "25" or [25] keeps 25 evenly spaced steps, including the first and
            the last (Improved DDPM's rule; 1 keeps the first alone). "10,15,20" keeps as many steps in each third of
            the process. See spaced_indices for "uniform25", "quad25", "logsnr25" and "karras25". "at20+310+999" keeps
            these steps.

        Raises ValueError if spec has another form or asks for more steps than there are.
        """
        return self.keep(torch.tensor(self.indices(spec)))

    def indices(self, spec: int | str | Sequence[int]) -> list[int]:
        """Return the increasing indices of the steps that `respace` keeps. Raises ValueError as it does."""
        text = spec.strip() if isinstance(spec, str) else ""
        if named := re.fullmatch(rf"({'|'.join(SPACINGS)})0*([1-9]\d*)", text):
            return spaced_indices(self.alpha_bar, named[1], int(named[2]))
        if re.fullmatch(r"at\d+(\+\d+)*", text, re.ASCII):
            return listed_indices(len(self), text)
        return respaced_indices(len(self), spec)

    def keep(self, kept: Tensor) -> NoiseSchedule:
        """Return the same process at some of its steps, given as increasing indices (S,)."""
        return NoiseSchedule.from_alpha_bar(self.alpha_bar[kept], self.timesteps[kept], self.origin or self)


SPACINGS = ("uniform", "quad", "logsnr", "karras")
MAX_SIGMA = 160.0
"""Noise level σ above which an image in [-1, 1] is indistinguishable from noise: about the last one of the linear
schedule, twice EDM's. The cosine schedule ends at 20,000."""


def spaced_indices(alpha_bar: Float64[Tensor, " T"], spacing: str, count: int) -> list[int]:
    """Return `count` distinct, increasing indices in [0, T), ending at T-1; the first is 0 if there are two or more.

    spacing: `uniform` is even in t, `quad` in sqrt(t) (DDIM, appendix D), `logsnr` in the log signal-to-noise ratio
        (DPM-Solver), and `karras` in σ^(1/7) with σ = sqrt((1 - ᾱ)/ᾱ) (EDM, equation 5)

    `logsnr` and `karras` are spaced up to MAX_SIGMA; of the steps above it, only the last one is taken. Positions
    are rounded to the nearest step (in log SNR for `logsnr` and `karras`). A step that would be chosen twice is moved
    to the next free one, upwards, or downwards at the end.

    Raises ValueError if there are fewer than `count` steps.
    """
    steps = len(alpha_bar)
    if count > steps:
        raise ValueError(f"steps '{spacing}{count}': cannot take {count} steps from {steps}")
    ramp = [1.0] if count == 1 else [i / (count - 1) for i in range(count)]
    if spacing in ("uniform", "quad"):
        return _distinct([round((steps - 1) * r ** (2 if spacing == "quad" else 1)) for r in ramp], steps)
    log_sigma = (1 / alpha_bar - 1).log() / 2
    low, high = log_sigma[0].item(), min(log_sigma[-1].item(), math.log(MAX_SIGMA))
    if spacing == "logsnr":
        targets = [low + r * (high - low) for r in ramp]
    else:
        low, high = math.exp(low / 7), math.exp(high / 7)
        targets = [7 * math.log(low + r * (high - low)) for r in ramp]
    nearest = [int((log_sigma - w).abs().argmin()) for w in targets]
    return _distinct([*nearest[:-1], steps - 1], steps)


def listed_indices(steps: int, spec: str) -> list[int]:
    """Return the indices listed in a text such as "at20+310+999".

    Raises ValueError unless they increase and are below `steps`.
    """
    kept = [int(part) for part in spec.removeprefix("at").split("+")]
    if any(before >= after for before, after in itertools.pairwise(kept)) or kept[-1] >= steps:
        raise ValueError(f"steps {spec!r}: the steps must increase, from 0 to {steps - 1} at most")
    return kept


def _distinct(indices: list[int], steps: int) -> list[int]:
    """Return non-decreasing indices in [0, steps), shifted just enough to be strictly increasing."""
    for i in range(1, len(indices)):
        indices[i] = max(indices[i], indices[i - 1] + 1)
    return [min(index, steps - len(indices) + i) for i, index in enumerate(indices)]


def respaced_indices(steps: int, spec: int | str | Sequence[int]) -> list[int]:
    """Return the increasing indices in [0, steps) that `spec` keeps, the same ones as in guided-diffusion.

    guided-diffusion does not have "trailingN"; it is that of diffusers, up to rounding.
    """
    counts = _section_counts(spec)
    if isinstance(counts, str) and counts.startswith("trailing"):
        count = int(counts.removeprefix("trailing"))
        if count > steps:
            raise ValueError(f"steps {spec!r}: cannot take {count} steps from {steps}")
        return [round(steps - i * steps / count) - 1 for i in reversed(range(count))]
    if isinstance(counts, str):  # ddimN
        count = int(counts.removeprefix("ddim"))
        for stride in range(1, steps + 1):
            if len(range(0, steps, stride)) == count:
                return list(range(0, steps, stride))
        raise ValueError(f"steps {spec!r}: no integer stride through {steps} steps gives exactly {count} of them")
    size, extra = divmod(steps, len(counts))
    kept, start = [], 0
    for section, count in enumerate(counts):
        length = size + (section < extra)
        if count > length:
            where = f"{steps} timesteps" if len(counts) == 1 else f"a section of {length} timesteps"
            raise ValueError(f"steps {spec!r}: cannot take {count} steps from {where}")
        spacing = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0  # summed, not multiplied, to round as guided-diffusion does
        for _ in range(count):
            kept.append(start + round(position))
            position += spacing
        start += length
    return kept


def _section_counts(spec: int | str | Sequence[int]) -> list[int] | str:
    """Return the number of steps per section, or the text "ddimN" or "trailingN"."""
    text = spec.strip() if isinstance(spec, str) else ""
    if re.fullmatch(r"(ddim|trailing)0*[1-9]\d*", text, re.ASCII):
        return text
    try:
        if isinstance(spec, str):
            counts = [int(part) for part in spec.split(",")]
        else:
            counts = [index(part) for part in (spec if isinstance(spec, Iterable) else [spec])]
    except (TypeError, ValueError):
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(
            f"steps {spec!r}: expected a number of steps such as 25, or 'ddim25', '10,15,20', 'trailing25', "
            f"'at20+310+999' or {', '.join(f'{name}25' for name in SPACINGS)}"
        )
    return counts


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a noise schedule must have at least 1 step, got {steps}")
    if steps > 1_000_000:
        raise ValueError(f"a noise schedule must have at most 1,000,000 steps, got {steps}")
