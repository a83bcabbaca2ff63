"""ADM's networks as plain torch modules. They know nothing of diffusion; parameter names equal OpenAI's."""

from .classifier import ClassifierConfig, NoisyClassifier
from .unet import SuperResConfig, SuperResUNet, UNet, UNetConfig

__all__ = ["ClassifierConfig", "NoisyClassifier", "SuperResConfig", "SuperResUNet", "UNet", "UNetConfig"]
