"""Classifier-free guidance (Ho & Salimans 2022) and autoguidance (Karras et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from admg.config import with_fields
from admg.diffusion.gaussian import Diffusion, Images, Prediction

from .base import Guidance
from .numbers import Scale, check_scale, scale_at
from .state import DiffusionModel, State, check_conditional

FLOAT32 = 2.0**-23
"""Relative error of ᾱ_t per step, where diffusers computes it as a product of t + 1 factors in float32."""


@dataclass(frozen=True)
class ClassifierFreeGuidance(Guidance):
    """ε̂ = ε(x) + w (ε(x, y) - ε(x)), with one network that was trained with label dropout.

    scale: guidance scale w, or a function of the noise level `State.sigma`; 0 is unconditional, 1 conditional (at no
        cost), larger values follow the label more closely and are less diverse. Ho & Salimans write 1 + w for it

    Raises ValueError if the network is not conditioned on labels, or if the scale is not finite.
    """

    scale: Scale = 2.0

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def uses_uncond(self, state: State) -> bool:
        return scale_at(self.scale, state.sigma) != 1

    def modify_prediction(self, state: State) -> Prediction:
        check_conditional(state)
        scale = scale_at(self.scale, state.sigma)
        if scale == 1:
            return state.pred
        _, uncond = state.both()
        return away_from(state, uncond, scale)


@dataclass(frozen=True)
class AutoGuidance(Guidance):
    """ε̂ = ε_bad + w (ε - ε_bad), away from the prediction of a worse version of the model.

    bad_model: model of the same diffusion process that is worse, for example an earlier checkpoint (a dataclass such
        as admg.Model); it is conditioned on the same labels
    scale: guidance scale w, or a function of the noise level `State.sigma`; 1 costs nothing

    Raises ValueError if the scale is not finite, or if the models were trained on different noise schedules.
    """

    bad_model: Any
    scale: Scale = 2.0

    def __post_init__(self) -> None:
        check_scale(self.scale)

    @property
    def reads_labels(self) -> bool:
        return False

    def begin(self) -> Guidance:
        return AutoGuidanceRun(self)

    def modify_prediction(self, state: State) -> Prediction:
        return self.begin().modify_prediction(state)


@dataclass(eq=False)
class AutoGuidanceRun(Guidance):
    """Autoguidance in one run of a sampler, for which the bad model is respaced once.

    guide: settings of the guide
    respaced: bad model at the steps of a diffusion process, one for each process of the run
    """

    guide: AutoGuidance
    respaced: dict[Diffusion, DiffusionModel] = field(default_factory=dict)

    def modify_prediction(self, state: State) -> Prediction:
        scale = scale_at(self.guide.scale, state.sigma)
        if scale == 1:
            return state.pred
        diffusion = state.diffusion
        if diffusion not in self.respaced:
            self.respaced[diffusion] = at_steps_of(diffusion, self.guide.bad_model)
        bad_model: Any = self.respaced[diffusion]
        if getattr(bad_model, "upsamples", False):  # the small images are those of the batch
            bad_model = with_fields(bad_model, given=cast(Any, state.model).given)
        y = state.model_y if getattr(bad_model, "conditional", True) else None
        bad = bad_model.predict(state.x, state.index, y, clip=False)
        return away_from(state, bad, scale)


def away_from(state: State, weak: Prediction, scale: float | Images) -> Prediction:
    """Return ε̂ = ε_weak + w (ε - ε_weak) with the network's own ε. Contributions of other guides to ε are kept."""
    return state.moved(scale - 1, state.unguided, weak)


def at_steps_of(diffusion: Diffusion, model: Any) -> DiffusionModel:
    """Return the model at the steps of a respaced diffusion process.

    Raises ValueError if the model was trained on another noise schedule.
    """
    known = dict(zip(model.diffusion.schedule.timesteps.tolist(), model.diffusion.schedule.alpha_bar.tolist()))
    steps = zip(diffusion.schedule.timesteps.tolist(), diffusion.schedule.alpha_bar.tolist())
    if any(abs(known.get(t, -1.0) - alpha_bar) > 1e-6 + (t + 1) * FLOAT32 * alpha_bar for t, alpha_bar in steps):
        raise ValueError("the other model must have been trained on the same noise schedule")
    respaced: DiffusionModel = with_fields(model, diffusion=model.diffusion.with_schedule(diffusion.schedule))
    return respaced
