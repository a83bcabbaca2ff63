"""Checkpoints of OpenAI's guided-diffusion and improved-diffusion: `.pt` file and flags in, model out.

model = admg.openai.load_diffusion("256x256_diffusion.pt", "--attention_resolutions 32,16,8 --class_cond True ...")
"""

from .flags import OpenAIConfig, flags_of, parse
from .known import KNOWN, Known
from .loading import assumed, load, load_classifier, load_diffusion, load_upsampler
from .pt import read_state
from .shapes import infer

__all__ = [
    "KNOWN",
    "Known",
    "OpenAIConfig",
    "assumed",
    "flags_of",
    "infer",
    "load",
    "load_classifier",
    "load_diffusion",
    "load_upsampler",
    "parse",
    "read_state",
]
