"""ILVR (Choi et al. 2021): samples that share the low frequencies of a reference image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate

from admg.config import with_fields
from admg.diffusion.gaussian import Images, Prediction
from admg.diffusion.signed import check_signed

from .base import Guidance, Guide, begin, gradient_of, modified_prediction, reads_labels, uses_uncond
from .operators import Downsample
from .rows import select_batch_rows
from .state import State


@dataclass(frozen=True, eq=False)
class ILVR(Guidance):
    """x̂0 + φ(y) - φ(x̂0): the prediction takes the low frequencies φ of a reference y and keeps its own high ones.

    The paper replaces φ(x_{t-1}) by φ(y_{t-1}) with y_{t-1} ~ q(y_{t-1} | y). Here the distribution is the same at each
    level, since φ is linear: φ(x_t) is φ(y) plus the noise that the sampler carries from φ(x_T) or draws (in ddpm, for
    Σ = β̃_t, `fixed_small`). ILVR thus works with every sampler, and φ(x_0) = φ(y) at the end.

    reference: image y in [-1, 1], (1, C, H, W) or (N, C, H, W)
    factor: factor N of φ_N, which averages blocks of N x N pixels; larger ones leave more to the model, and so does
        stopping at a noise level with Interval(ILVR(y, 8), low=...)
    guide: another guide; only the high frequencies of its gradient are used. A guide added with + changes the low
        ones, too

    Where x0 is clipped, which happens later, pixels beyond [-1, 1] lose some of the low frequencies.

    Raises ValueError if the factor does not divide the sides, or if the shape or range of the reference is wrong.
    """

    reference: Images
    factor: int
    guide: Guide | None = None

    def __post_init__(self) -> None:
        if self.reference.ndim != 4:
            raise ValueError(f"the reference must have shape (1 or N, C, H, W), got {tuple(self.reference.shape)}")
        check_signed(self.reference, "the reference")
        self.low(self.reference)

    def low(self, x: Images) -> Images:
        """Return the low frequencies φ(x), a projection."""
        return interpolate(Downsample(self.factor)(x), scale_factor=self.factor, mode="nearest")

    def begin(self) -> Guidance:
        return with_fields(self, guide=begin(self.guide))

    @property
    def reads_labels(self) -> bool:
        return self.guide is not None and reads_labels(self.guide)

    def uses_uncond(self, state: State) -> bool:
        return self.guide is not None and uses_uncond(self.guide, state)

    def modify_prediction(self, state: State) -> Prediction:
        if self.guide is not None:
            state = state.with_pred(modified_prediction(self.guide, state))
        x0 = state.pred.x0
        y = select_batch_rows(self.reference, len(x0), "the reference").to(state.x)
        if y.shape[1:] != x0.shape[1:] or len(y) not in (1, len(x0)):
            raise ValueError(f"the reference must have shape {tuple(x0.shape)}, or be one image, got {tuple(y.shape)}")
        return state.with_x0(x0 + self.low(y - x0))

    def __call__(self, state: State) -> Tensor | None:
        gradient = None if self.guide is None else gradient_of(self.guide, state)
        return None if gradient is None else gradient - self.low(gradient)

    @property
    def classifier(self) -> Any:
        """The classifier of the guide, or None. Its labels can be used by name."""
        return getattr(self.guide, "classifier", None)
