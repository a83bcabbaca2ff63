"""Load checkpoints of OpenAI's guided-diffusion and improved-diffusion from a `.pt` file and flags.

model = admg.openai.load_diffusion("256x256_diffusion.pt", "--attention_resolutions 32,16,8 --class_cond True ...")
"""

from . import shapes
from .convert import convert
from .flags import OpenAIConfig, flags_of, parse
from .loading import assumed, load, load_classifier, load_diffusion, load_upsampler, provenance, read
from .pasted import GivenFlags
from .pt import read_state
from .published_flags import PUBLISHED_FLAGS, PublishedFlags
from .shapes import infer

__all__ = [
    "PUBLISHED_FLAGS",
    "GivenFlags",
    "OpenAIConfig",
    "PublishedFlags",
    "assumed",
    "convert",
    "flags_of",
    "infer",
    "load",
    "load_classifier",
    "load_diffusion",
    "load_upsampler",
    "parse",
    "provenance",
    "read",
    "read_state",
    "shapes",
]
