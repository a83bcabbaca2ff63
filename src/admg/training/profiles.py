"""Profiles of averages over past steps: exponential decay, or a power of the step (EDM2).

The power-function average of Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
has at step t the profile p(τ) = (γ + 1) τ^γ / t^(γ + 1) over the steps τ. Its shape does not depend on t: the average
covers the same share of every run, however long. The share is the standard deviation of p divided by t, σ_rel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MAX_RELATIVE_LENGTH = 0.28
"""Longest relative length: γ = 0, an equal weight for every step, has a length of 1/√12 = 0.289."""

Spec = str | float
"""An average as an option names it: a decay such as 0.9999, or a length such as "10%"."""


@dataclass(frozen=True)
class Decay:
    """Exponential moving average, over about 1 / (1 - decay) steps.

    decay: final value of β, which starts small to forget the random initial weights
    """

    decay: float

    def beta(self, n: int) -> float:
        """Return β of update n, counted from 0: average = β average + (1 - β) weights."""
        return min(self.decay, (1 + n) / (10 + n)) if n else 0.0

    @property
    def spec(self) -> Spec:
        return self.decay

    @property
    def slug(self) -> str:
        """Name for files."""
        return str(self.decay)

    def __str__(self) -> str:
        return str(self.decay)


@dataclass(frozen=True)
class Power:
    """Power-function average, whose length is a share of the run.

    length: σ_rel, above 0 and at most MAX_RELATIVE_LENGTH
    """

    length: float

    @cached_property
    def gamma(self) -> float:
        return gamma_of(self.length)

    def beta(self, n: int) -> float:
        """Return β of update n, counted from 0: β(t) = (1 - 1/t)^(γ + 1) with t = n + 1 (EDM2, equation 127)."""
        return float((1 - 1 / (n + 1)) ** (self.gamma + 1))

    @property
    def spec(self) -> Spec:
        return f"{100 * self.length:.10g}%"

    @property
    def slug(self) -> str:
        """Name for files."""
        return f"length-{self.length:.10g}"

    def __str__(self) -> str:
        return str(self.spec)


Profile = Decay | Power
DEFAULT = Power(0.10)
SNAPSHOT_PROFILES = (Power(0.05), Power(0.10))
"""The averages that snapshots hold, as in EDM2."""


def gamma_of(length: float) -> float:
    """Return the exponent γ of the power function with this relative length (EDM2, Algorithm 2).

    σ_rel² = (γ + 1) / ((γ + 2)² (γ + 3)) is solved for the larger γ.
    """
    t = length**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())


def parse_profile(spec: Spec) -> Profile:
    """Return the average of a decay such as 0.9999, or of a length such as "10%". Raises ValueError otherwise."""
    text = str(spec).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    if text.endswith("%") and 0 < number <= 100 * MAX_RELATIVE_LENGTH:
        return Power(number / 100)
    if not text.endswith("%") and 0 <= number < 1:
        return Decay(number)
    raise ValueError(
        f"ema must be a decay of at least 0 and below 1 such as 0.9999, or a length of the run above 0% and at most "
        f"{100 * MAX_RELATIVE_LENGTH:g}% such as 10%, got {text!r}"
    )


def parse_profiles(specs: Spec | Sequence[Spec]) -> tuple[Profile, ...]:
    """Return the averages of one decay or length, of a list separated by commas, or of a sequence.

    Raises ValueError if one of them is neither a decay nor a length, or is repeated.
    """
    parts = specs.split(",") if isinstance(specs, str) else [specs] if isinstance(specs, int | float) else [*specs]
    profiles = tuple(parse_profile(part) for part in parts)
    if len(set(profiles)) < len(profiles) or not profiles:
        names = ", ".join(map(str, profiles)) or "none"
        raise ValueError(f"ema must be one average or several distinct ones, got {names}")
    return profiles


def specs_of(profiles: Sequence[Profile]) -> Spec | tuple[Spec, ...]:
    """Return the specs of averages, the inverse of `parse_profiles`: a single spec, or a tuple of several."""
    specs = tuple(profile.spec for profile in profiles)
    return specs[0] if len(specs) == 1 else specs
