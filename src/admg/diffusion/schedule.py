"""The forward process as numbers: q(x_t | x_0) = N(sqrt(ᾱ_t) x_0, (1 - ᾱ_t) I), for t = 0 .. T-1. All in float64."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index

import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Variances of the forward process, and the timestep that the network is told at each of its steps.

    betas: (T,) float64, β_t in (0, 1]
    timesteps: (T,) int64, or float64 where the network was trained on rescaled ones
    origin: the schedule with every step of training, if this one has fewer of them
    """

    betas: Float64[Tensor, " T"]
    timesteps: Tensor
    origin: NoiseSchedule | None = None

    @classmethod
    def linear(cls, steps: int = 1000) -> NoiseSchedule:
        """DDPM's linear β from 1e-4 to 0.02, scaled by 1000/T for any number of steps T."""
        _check_steps(steps)
        scale = 1000 / steps
        return cls.from_betas(torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64))

    @classmethod
    def cosine(cls, steps: int = 1000) -> NoiseSchedule:
        """Improved DDPM's ᾱ(t) = cos²(π/2 (t/T + 0.008) / 1.008), equation 17, with β at most 0.999."""
        _check_steps(steps)
        alpha_bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        return cls.from_betas([min(1 - after / before, 0.999) for before, after in itertools.pairwise(alpha_bar)])

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor, timesteps: Tensor | None = None) -> NoiseSchedule:
        """Any β_t in (0, 1]. The network is told 0 .. T-1 unless `timesteps` (T,) say otherwise."""
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) == 0 or not ((betas > 0) & (betas <= 1)).all():
            raise ValueError("betas must be a non-empty list of numbers above 0 and at most 1")
        if timesteps is not None and timesteps.shape != betas.shape:
            raise ValueError(f"timesteps of shape {tuple(timesteps.shape)} for {len(betas)} betas")
        return cls(betas, torch.arange(len(betas)) if timesteps is None else timesteps)

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def alphas_cumprod(self) -> Float64[Tensor, " T"]:
        """ᾱ_t = Π (1 - β)."""
        return torch.cumprod(1 - self.betas, dim=0)

    def rescaled(self) -> NoiseSchedule:
        """The same process, but the network is told t·1000/T, fractions included (the flag --rescale_timesteps)."""
        return NoiseSchedule(self.betas, self.timesteps.double() * (1000 / len(self)))

    def respace(self, spec: int | str | Sequence[int]) -> NoiseSchedule:
        """Fewer steps of the same process; the network is still told the original timesteps.

        spec: "ddim25": every k-th step from 0, 25 in all (DDIM's rule). 25, "25" or [25]: 25 steps spread evenly,
            first and last included (Improved DDPM's rule). "10,15,20": as many in each third of the process.
            "uniform25", "quad25", "logsnr25", "karras25": see spaced_timesteps.
        ValueError: a spec of another form, or more steps than there are.
        """
        named = re.fullmatch(rf"\s*({'|'.join(SPACINGS)})0*([1-9]\d*)\s*", spec) if isinstance(spec, str) else None
        if named is None:
            kept = torch.tensor(respaced_timesteps(len(self), spec))
        else:
            kept = torch.tensor(spaced_timesteps(self.alphas_cumprod, named[1], int(named[2])))
        return self.keep(kept)

    def keep(self, kept: Tensor) -> NoiseSchedule:
        """The same process at these of its steps alone, increasing indices (S,)."""
        alpha_bar = self.alphas_cumprod[kept]
        before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        return NoiseSchedule(1 - alpha_bar / before, self.timesteps[kept], self.origin or self)


SPACINGS = ("uniform", "quad", "logsnr", "karras")


def spaced_timesteps(alphas_cumprod: Float64[Tensor, " T"], spacing: str, count: int) -> list[int]:
    """`count` distinct indices in [0, T), increasing, up to the highest; the first is 0 where there are two or more.

    uniform: even in t; quad: even in sqrt(t) (DDIM, appendix D); logsnr: even in log SNR (DPM-Solver);
    karras: even in σ^(1/7), σ = sqrt((1 - ᾱ)/ᾱ) (EDM, equation 5). Each is rounded to the nearest one, in log SNR for
    the last two, and where that gives one twice, moved to the next one up (near the end: down).
    ValueError: more than there are.
    """
    steps = len(alphas_cumprod)
    if count > steps:
        raise ValueError(f"respacing '{spacing}{count}': cannot take {count} steps from {steps}")
    if alphas_cumprod[-1] == 0:  # pure noise has no log SNR to space by
        below = spaced_timesteps(alphas_cumprod[:-1], spacing, count - 1) if count > 1 else []
        return [*below, steps - 1]
    ramp = [1.0] if count == 1 else [i / (count - 1) for i in range(count)]
    if spacing in ("uniform", "quad"):
        return _distinct([round((steps - 1) * r ** (2 if spacing == "quad" else 1)) for r in ramp], steps)
    log_sigma = (1 / alphas_cumprod - 1).log() / 2
    low, high = log_sigma[0].item(), log_sigma[-1].item()
    if spacing == "logsnr":
        wanted = [low + r * (high - low) for r in ramp]
    else:
        low, high = math.exp(low / 7), math.exp(high / 7)
        wanted = [7 * math.log(low + r * (high - low)) for r in ramp]
    return _distinct([int((log_sigma - w).abs().argmin()) for w in wanted], steps)


def _distinct(indices: list[int], steps: int) -> list[int]:
    """Non-decreasing indices in [0, steps), moved as little as makes them increase."""
    for i in range(1, len(indices)):
        indices[i] = max(indices[i], indices[i - 1] + 1)
    return [min(index, steps - len(indices) + i) for i, index in enumerate(indices)]


def respaced_timesteps(steps: int, spec: int | str | Sequence[int]) -> list[int]:
    """The increasing indices in [0, steps) that `spec` keeps, exactly as the reference chooses them."""
    counts = _section_counts(spec)
    if isinstance(counts, str):  # ddimN
        count = int(counts.removeprefix("ddim"))
        for stride in range(1, steps + 1):
            if len(range(0, steps, stride)) == count:
                return list(range(0, steps, stride))
        raise ValueError(f"respacing {spec!r}: no whole stride through {steps} steps gives exactly {count} of them")
    size, extra = divmod(steps, len(counts))
    kept, start = [], 0
    for section, count in enumerate(counts):
        length = size + (section < extra)
        if count > length:
            raise ValueError(f"respacing {spec!r}: cannot take {count} steps from a section of {length}")
        spacing = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0  # summed up, not multiplied: the reference's rounding
        for _ in range(count):
            kept.append(start + round(position))
            position += spacing
        start += length
    return kept


def _section_counts(spec: int | str | Sequence[int]) -> list[int] | str:
    """Steps per section, or the text "ddimN"."""
    text = spec.strip() if isinstance(spec, str) else ""
    if text.startswith("ddim") and text[4:].isdecimal() and int(text[4:]) > 0:
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
            f"respacing {spec!r} is not a number of steps such as 25, nor 'ddim25', nor '10,15,20', "
            f"nor one of {', '.join(f'{name}25' for name in SPACINGS)}"
        )
    return counts


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a noise schedule needs at least 1 step, got {steps}")
