"""Training of diffusion models and noisy classifiers."""

from .config import TrainConfig
from .loop import train
from .tasks import LearnClassifier, LearnDiffusion

__all__ = ["LearnClassifier", "LearnDiffusion", "TrainConfig", "train"]
