"""`admg import-openai`: convert a checkpoint of OpenAI's code to a native one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from admg.checkpoints import openai
from admg.checkpoints.describe import describe_model
from admg.config import setting

EXAMPLES = """  admg import-openai ema_0.9999_200000.pt --out mine --flags "--image_size 64 --learn_sigma True"
  admg import-openai 64x64_classifier.pt --out classifier"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Convert a checkpoint of guided-diffusion or improved-diffusion to a native one.

    checkpoint: file of weights (.pt, .ckpt, .safetensors, ...) of guided-diffusion or code that derives from it
    flags: flags of OpenAI's scripts, in quotes (default: inferred from the names and shapes of the weights)
    out: folder to write, with model.safetensors and config.json
    float16: store the weights in half precision, which halves the size
    """

    checkpoint: Path = setting(positional=True)
    flags: str | None = setting(None, metavar='"..."', dashes=True)
    out: Path = setting(metavar="DIR")
    float16: bool = False


def run(options: Options) -> None:
    dtype = torch.float16 if options.float16 else None
    model = openai.convert(options.checkpoint, options.out, options.flags, dtype)
    print(f"Saved {options.out}: {describe_model(model).summary}\nflags: {model.training['flags']}")
