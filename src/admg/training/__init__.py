"""Training of diffusion models and noisy classifiers."""

from .loop import TrainConfig, train
from .tasks import LearnClassifier, LearnDiffusion

__all__ = ["LearnClassifier", "LearnDiffusion", "TrainConfig", "train"]
