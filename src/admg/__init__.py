"""Guided diffusion for pixel images: *Diffusion Models Beat GANs on Image Synthesis*, in PyTorch.

model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
samples = admg.sample(model, ["sneaker", "coat"], guide=admg.guidance.Classifier(classifier, scale=4.0))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, diagnose, editing, export, guidance, likelihood, losses, nn, openai, samplers, training
    from .diffusion import Diffusion, Prediction
    from .editing import edit, encode, interpolate
    from .model import Classifier, DiffusionConfig, Labels, Model
    from .presets import load, load_classifier, load_upsampler
    from .sampling import Samples, sample
    from .schedule import NoiseSchedule

__version__ = "0.1.0"

_WHERE = {
    "Classifier": "model",
    "Diffusion": "diffusion",
    "DiffusionConfig": "model",
    "Labels": "model",
    "Model": "model",
    "NoiseSchedule": "schedule",
    "Prediction": "diffusion",
    "Samples": "sampling",
    "edit": "editing",
    "encode": "editing",
    "interpolate": "editing",
    "load": "presets",
    "load_classifier": "presets",
    "load_upsampler": "presets",
    "sample": "sampling",
}
_MODULES = (
    "data",
    "diagnose",
    "editing",
    "export",
    "guidance",
    "likelihood",
    "losses",
    "nn",
    "openai",
    "samplers",
    "training",
)

__all__ = [  # noqa: RUF022 (what people call first, then what it is made of)
    "load",
    "load_classifier",
    "load_upsampler",
    "sample",
    "edit",
    "encode",
    "interpolate",
    "guidance",
    "samplers",
    "openai",
    "export",
    "likelihood",
    "diagnose",
    "editing",
    "Model",
    "Classifier",
    "Samples",
    "Labels",
    "Diffusion",
    "DiffusionConfig",
    "NoiseSchedule",
    "Prediction",
    "data",
    "losses",
    "nn",
    "training",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `admg --help` need not wait for torch."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
