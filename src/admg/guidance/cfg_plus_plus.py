"""CFG++ (Chung et al. 2024): classifier-free guidance of x_0, with the unconditional ε as the next step's noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

from admg.diffusion.gaussian import Images, Prediction

from .base import Guidance
from .state import State, check_consistent


@dataclass(frozen=True)
class CFGPlusPlus(Guidance):
    """x0 from ε̂ = ε(x) + λ (ε(x, y) - ε(x)), and the noise of the next step from ε(x) (the paper's Algorithm 2).

    Samples stay near the data where ClassifierFreeGuidance extrapolates, so small scales suffice. It needs a sampler
    that combines x0 and eps itself, such as ddim. No other guide may modify the prediction or add a gradient.

    scale: guidance scale λ in [0, 1]; 0 is unconditional

    Raises ValueError if the scale is out of range, the network is not conditioned on labels, or the sampler or
    another guide does not fit.
    """

    scale: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 1:
            raise ValueError(f"the scale of CFG++ must be in [0, 1], got {self.scale}")

    def uses_uncond(self, state: State) -> bool:
        return True

    def modify_prediction(self, state: State) -> Prediction:
        _, uncond = state.both()
        if state.pred is not state.unguided:
            raise ValueError("CFG++ needs the network's own predictions: no guide may modify them before it")
        x0 = state.with_pred(uncond).moved(self.scale, state.pred, uncond).x0
        return SplitPrediction(state.pred, x0.clamp(-1, 1) if state.clip else x0, uncond.eps)


class SplitPrediction(Prediction):
    """A prediction whose x0 and eps come from different sources. It has no mean, and guides cannot modify it."""

    consistent: ClassVar[bool] = False

    def __init__(self, p: Prediction, x0: Images, eps: Images) -> None:
        for name, value in {"x0": x0, "eps": eps, "variance": p.variance, "log_variance": p.log_variance}.items():
            object.__setattr__(self, name, value)  # the class is frozen

    def __repr__(self) -> str:
        return f"SplitPrediction(x0={self.x0}, eps={self.eps})"

    @property
    def mean(self) -> NoReturn:
        check_consistent(self)
        raise AssertionError
