"""ADM's networks as plain torch modules. They know nothing of diffusion; parameter names equal OpenAI's."""

from .classifier import ClassifierConfig, NoisyClassifier
from .super_resolution import SuperResConfig, SuperResUNet
from .surgery import with_identity_attention, with_replaced
from .unet import UNet, UNetConfig

__all__ = [
    "ClassifierConfig",
    "NoisyClassifier",
    "SuperResConfig",
    "SuperResUNet",
    "UNet",
    "UNetConfig",
    "with_identity_attention",
    "with_replaced",
]
