"""Guided diffusion for pixel images: *Diffusion Models Beat GANs on Image Synthesis*, in PyTorch.

model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
samples = admg.sample(model, ["sneaker", "coat"], guide=admg.guidance.ClassifierGuidance(classifier, scale=4.0))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data, diffusion, engine, evaluation, generation, guidance, models, samplers, training
    from .checkpoints import export, openai
    from .checkpoints.describe import describe, list_models
    from .checkpoints.labels import Labels
    from .checkpoints.loading import load, load_classifier, load_upsampler
    from .checkpoints.model import Classifier, Model
    from .diffusion import Diffusion, DiffusionConfig, NoiseSchedule, Prediction
    from .evaluation import diagnose, likelihood
    from .evaluation.evaluate import evaluate
    from .evaluation.neighbours import neighbours
    from .evaluation.nll import nll
    from .evaluation.sweep import sweep
    from .generation.edit import edit, encode
    from .generation.generate import generate
    from .generation.interpolate import interpolate
    from .generation.sample import sample
    from .generation.samples import Samples
    from .generation.upsample import upsample
    from .training import TrainConfig, TrainingRun, reconstruct_ema, train_classifier, train_diffusion, train_upsampler
    from .verification import verify

__version__ = "0.1.0"

_WHERE = {
    "Classifier": "checkpoints.model",
    "Diffusion": "diffusion",
    "DiffusionConfig": "diffusion",
    "Labels": "checkpoints.labels",
    "Model": "checkpoints.model",
    "NoiseSchedule": "diffusion",
    "Prediction": "diffusion",
    "Samples": "generation.samples",
    "TrainConfig": "training",
    "TrainingRun": "training",
    "describe": "checkpoints.describe",
    "edit": "generation.edit",
    "encode": "generation.edit",
    "evaluate": "evaluation.evaluate",
    "generate": "generation.generate",
    "interpolate": "generation.interpolate",
    "list_models": "checkpoints.describe",
    "load": "checkpoints.loading",
    "load_classifier": "checkpoints.loading",
    "load_upsampler": "checkpoints.loading",
    "neighbours": "evaluation.neighbours",
    "nll": "evaluation.nll",
    "sweep": "evaluation.sweep",
    "reconstruct_ema": "training",
    "sample": "generation.sample",
    "train_classifier": "training",
    "train_diffusion": "training",
    "train_upsampler": "training",
    "upsample": "generation.upsample",
    "verify": "verification",
}
_MODULES = {
    "data": "data",
    "diagnose": "evaluation.diagnose",
    "diffusion": "diffusion",
    "engine": "engine",
    "evaluation": "evaluation",
    "export": "checkpoints.export",
    "generation": "generation",
    "guidance": "guidance",
    "likelihood": "evaluation.likelihood",
    "models": "models",
    "openai": "checkpoints.openai",
    "samplers": "samplers",
    "training": "training",
}

__all__ = [  # noqa: RUF022 (what people call first, then what it is made of)
    "load",
    "load_classifier",
    "load_upsampler",
    "list_models",
    "describe",
    "sample",
    "generate",
    "edit",
    "encode",
    "interpolate",
    "upsample",
    "verify",
    "train_diffusion",
    "train_classifier",
    "train_upsampler",
    "reconstruct_ema",
    "evaluate",
    "sweep",
    "neighbours",
    "nll",
    "guidance",
    "samplers",
    "openai",
    "export",
    "likelihood",
    "diagnose",
    "Model",
    "Classifier",
    "Samples",
    "Labels",
    "TrainConfig",
    "TrainingRun",
    "Diffusion",
    "DiffusionConfig",
    "NoiseSchedule",
    "Prediction",
    "data",
    "diffusion",
    "engine",
    "evaluation",
    "generation",
    "models",
    "training",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `admg --help` need not wait for torch."""
    if name in _MODULES:
        return import_module(f".{_MODULES[name]}", __name__)
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
