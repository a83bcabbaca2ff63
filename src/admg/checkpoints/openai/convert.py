"""Convert OpenAI's checkpoints to native ones."""

from __future__ import annotations

from pathlib import Path

import torch

from admg.checkpoints import native
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.weights import CheckpointError
from admg.files import check_output_folder

from .loading import Source, load
from .pasted import GivenFlags


def convert(
    source: Source, out: Path | str, flags: GivenFlags | None = None, dtype: torch.dtype | None = None
) -> Model | Classifier:
    """Write a native checkpoint from OpenAI's weights, and return the model.

    source: .pt file of guided-diffusion or improved-diffusion, or its state dict
    out: folder to write; an imported checkpoint is replaced, anything else is not
    flags: flags of OpenAI's scripts; None infers them, see load
    dtype: data type of the stored weights; None for float32

    Raises CheckpointError if the checkpoint cannot be used or `out` holds something else, ValueError for wrong flags,
    and OSError if `out` cannot be written.
    """
    if isinstance(source, str | Path) and native.is_part(source):
        raise CheckpointError(f"{source} belongs to a checkpoint of admg, {Path(source).parent}: use that as it is")
    native.check_target(out)
    if (Path(out) / native.CONFIG).exists() and "flags" not in native.read_config(out).get("training", {}):
        raise CheckpointError(f"{out} holds a model that was not imported, and is kept: choose another folder")
    check_output_folder(Path(out).parent)
    model = load(source, flags)
    model.save(out, dtype)
    return model
