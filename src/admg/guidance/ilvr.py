"""ILVR (Choi et al. 2021): samples that keep the low frequencies of a reference image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from admg.diffusion.gaussian import Images, Prediction

from .base import Guidance, Guide, State, changed
from .operators import Downsample


@dataclass(frozen=True, eq=False)
class ILVR(Guidance):
    """x̂0 + φ(y) - φ(x̂0): the prediction takes the low frequencies φ of a reference y, and keeps its own high ones.

    The paper exchanges those of x_{t-1} for φ(y_{t-1}), y_{t-1} ~ q(y_{t-1} | y). Here they have the same distribution
    at each level, since φ is linear: φ(x_t) is φ(y) noised, with the noise of φ(x_T) that the sampler carries on, or
    draws (in ddpm where Σ = β̃_t, fixed_small). So every sampler can do it, and φ(x_0) = φ(y) in the end.

    reference: y (1, C, H, W), or one for each image; in [-1, 1]
    factor: N of φ_N, the mean of each block of N x N pixels; larger leaves more to the model, and so does to stop at a
        noise level, Interval(ILVR(y, 8), low=...)
    guide: what else steers; of its scores, the high frequencies alone. Beside it in a sum, it moves the low ones again.
    Where x0 is clipped, which comes after, pixels beyond [-1, 1] lose some of it.
    ValueError: a factor that does not divide the sides; a reference of another shape.
    """

    reference: Images
    factor: int
    guide: Guide | None = None

    def __post_init__(self):
        if self.reference.ndim != 4:
            raise ValueError(f"a reference has shape (1 or N, C, H, W), not {tuple(self.reference.shape)}")
        self.low(self.reference)

    def low(self, x: Images) -> Images:
        """φ(x), a projection."""
        return interpolate(Downsample(self.factor)(x), scale_factor=self.factor, mode="nearest")

    def change(self, state: State) -> Prediction:
        if self.guide is not None:
            state = replace(state, raw=changed(self.guide, state), own=state.unguided)
        y, x0 = self.reference.to(state.x), state.raw.x0
        if y.shape[1:] != x0.shape[1:] or len(y) not in (1, len(x0)):
            raise ValueError(f"a reference of shape {tuple(y.shape)} for images {tuple(x0.shape)}")
        return state.with_x0(x0 + self.low(y - x0))

    def __call__(self, state: State) -> Tensor | None:
        score = None if self.guide is None else self.guide(state)
        return None if score is None else score - self.low(score)

    @property
    def classifier(self) -> Any:
        """The guide's, if it has one: its labels may be asked for by name."""
        return getattr(self.guide, "classifier", None)
