"""Training of diffusion models, noisy classifiers and upsamplers, from any data set, with exact resumption.

`train_diffusion`, `train_classifier` and `train_upsampler` build a network for the data and return a `TrainingRun`. For
a network or a loss of your own, construct a `TrainingRun` with a task of `tasks`, or one that you write.
"""

from .augmentation import AugmentConfig
from .config import ObjectiveConfig, TrainConfig
from .distance import EvaluationConfig
from .ema import EMA
from .held_out import ClassifierValidationConfig, ValidationConfig
from .posthoc import reconstruct_ema
from .recipes import TrainingRecipe, recipe
from .start import train_classifier, train_diffusion, train_upsampler
from .tasks import ClassifierTask, DiffusionTask, Task
from .trainer import TrainingRun
from .upsampler import UpsamplerTask

__all__ = [
    "EMA",
    "AugmentConfig",
    "ClassifierTask",
    "ClassifierValidationConfig",
    "DiffusionTask",
    "EvaluationConfig",
    "ObjectiveConfig",
    "Task",
    "TrainConfig",
    "TrainingRecipe",
    "TrainingRun",
    "UpsamplerTask",
    "ValidationConfig",
    "recipe",
    "reconstruct_ema",
    "train_classifier",
    "train_diffusion",
    "train_upsampler",
]
