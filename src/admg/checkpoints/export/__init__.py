"""Models for other libraries: diffusers' UNet2DModel, and the state dicts of OpenAI's guided-diffusion."""

from .diffusers import to_diffusers
from .exported import Exported
from .openai import to_openai

__all__ = ["Exported", "to_diffusers", "to_openai"]
