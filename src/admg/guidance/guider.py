"""Guides as a guider of diffusers' modular pipelines."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from admg.diffusion.gaussian import Images

from .base import Guide
from .scheduler import SchedulerGuidance


def diffusers_guider(
    guide: Guide, scheduler: Any, *, y: Tensor | None = None, start: float = 0.0, stop: float = 1.0
) -> Any:
    """Return a guider for diffusers' modular pipelines that applies a guide to the denoiser's predictions.

    pipeline.update_components(guider=diffusers_guider(guide, pipeline.scheduler, y=labels))

    The guide sees the input of the denoiser: images, or the latents of a latent model. A guider of diffusers receives
    only predictions, so this one reads x_t and t from the call of the denoiser, by a hook that is removed afterwards.

    scheduler: scheduler of the pipeline
    y: target labels (N,) of the guide
    start, stop: fractions of the steps at which guidance starts and stops

    Raises ValueError if diffusers is not installed, and as SchedulerGuidance does.
    """
    try:
        from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
    except ImportError:
        raise ValueError("guiders need diffusers with modular pipelines: pip install 'diffusers>=0.36'") from None

    class Guider(BaseGuidance):  # type: ignore[misc]
        """Guidance by a guide of admg."""

        _input_predictions = ["pred_cond"]  # noqa: RUF012 (as in the classes of diffusers)

        def __init__(self) -> None:
            super().__init__(start, stop)
            self.call: tuple[nn.Module, tuple[Any, ...], dict[str, Any]] | None = None
            self.handle: Any = None
            self.guided = SchedulerGuidance(guide, scheduler, self._denoise, y=y, conditional=False)
            self.prediction: Tensor | None = None

        def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
            return [self._prepare_batch(data, 0, "pred_cond")]

        def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
            return [self._prepare_batch_from_block_state(input_fields, data, 0, "pred_cond")]

        def prepare_models(self, denoiser: nn.Module) -> None:
            super().prepare_models(denoiser)

            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self.call = module, args, kwargs

            self.handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)

        def cleanup_models(self, denoiser: nn.Module) -> None:
            self.handle.remove()

        def forward(self, pred_cond: Tensor) -> Any:
            guided = pred_cond
            if self._follows():
                assert self.call is not None
                _, args, kwargs = self.call
                x, t = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("sample", "timestep")))
                self.prediction = pred_cond
                guided = self.guided(x, t)
            return GuiderOutput(pred=guided, pred_cond=pred_cond, pred_uncond=None)

        def _denoise(self, x: Images, t: Tensor, labels: Tensor | None) -> Tensor:
            """Return the output of the denoiser: the known one first, then that of a call with the same conditions."""
            if self.prediction is not None:
                known, self.prediction = self.prediction, None
                return known
            assert self.call is not None
            module, args, kwargs = self.call
            kwargs = {
                name: value for name, value in kwargs.items() if name not in ("sample", "timestep", "return_dict")
            }
            output: Tensor = module(x, t, *args[2:], **kwargs, return_dict=False)[0]
            return output

        def _follows(self) -> bool:
            if not self._enabled or self._num_inference_steps is None:
                return bool(self._enabled)
            first, last = (int(share * self._num_inference_steps) for share in (self._start, self._stop))
            return bool(first <= self._step < last)

        @property
        def is_conditional(self) -> bool:
            return True

        @property
        def num_conditions(self) -> int:
            return 1

    return Guider()
