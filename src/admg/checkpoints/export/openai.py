"""A `.pt` file that OpenAI's guided-diffusion loads, and the flags and patches that it needs to do so.

The state dict has the reference's names and shapes by construction. What a network predicts as v, or the logarithm of
its variance as such, the reference would load without a word and sample noise from: those are refused.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from admg.checkpoints.model import KINDS, Classifier, DiffusionConfig, Model
from admg.checkpoints.openai.flags import OpenAIConfig, extra_flags, flags_of, values_of
from admg.checkpoints.openai.known import Kind
from admg.files import atomic
from admg.models import ClassifierConfig, UNetConfig

from .exported import Exported

SCRIPT = "guided_diffusion/script_util.py"
BUILDERS = {"diffusion": "create_model", "upsampler": "sr_create_model", "classifier": "create_classifier"}
"""Where that file builds the network, by kind."""
CALLS = {"diffusion": "UNetModel", "upsampler": "SuperResModel", "classifier": "EncoderUNetModel"}
"""What it calls there."""


def to_openai(part: Model | Classifier, path: Path | str) -> Exported:
    """Write the network's weights in float32 as a state dict for OpenAI's code; `flags` of the result build it there.

    What its scripts have no flag for is among those flags too, for `admg.openai.load`; the notes say which patch of the
    reference each of them stands for.
    ValueError: no DiffusionConfig, or a prediction (v) or variance (learned) that the reference does not know.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the file to write, such as {path / 'model.pt'}")
    if path.exists() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} exists and is no .pt file, so it is not replaced: name another")
    config = openai_config(part)
    flags, told = flags_of(config), notes(part, config)
    with atomic(path) as temporary:
        torch.save(weights(part.network), temporary)
    return Exported(path, told, flags)


def openai_config(part: Model | Classifier) -> OpenAIConfig:
    """What the flags are to say. ValueError: not one of the three networks, or `config` is not known."""
    kind = cast("Kind | None", next((kind for kind, (cls, _) in KINDS.items() if type(part.network) is cls), None))
    if kind is None:
        raise ValueError(f"guided-diffusion has no counterpart of a {type(part.network).__name__}")
    if part.config is None:
        raise ValueError("only a model with its DiffusionConfig can be exported to openai")
    diffusion = part.config
    if kind == "classifier":  # it knows noise alone: not what a network would predict of it
        default = DiffusionConfig()
        diffusion = dataclasses.replace(diffusion, predict=default.predict, variance=default.variance)
    return OpenAIConfig(kind, cast(UNetConfig | ClassifierConfig, part.network.config), diffusion)


def weights(network: nn.Module) -> OrderedDict[str, Tensor]:
    """The state dict on the CPU, in float32, each tensor the whole of its storage, since that is what is written."""
    state = OrderedDict()
    for name, value in network.state_dict().items():
        value = value.detach().to("cpu", torch.float32).contiguous()
        state[name] = value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
    return state


def notes(part: Model | Classifier, config: OpenAIConfig) -> tuple[str, ...]:
    """A sentence for each patch that the reference needs, and for what it cannot do."""
    told = [
        f"--{name} is no flag of guided-diffusion: leave it out there, and {patch(name, config)}"
        for name in extra_flags(config)
        if not known(name, config)
    ]
    if isinstance(part, Model) and part.conditional:
        told.append("guided-diffusion always needs a label: dropping it (y = -1, or no y) has no counterpart there")
    if part.labels.names:
        told.append("label names are not kept")
    return tuple(told)


def known(flag: str, config: OpenAIConfig) -> bool:
    """Whether guided-diffusion's script has this flag, for these values, after all."""
    whole = all(m == int(m) for m in config.network.channel_mult)
    return flag == "channel_mult" and config.kind == "diffusion" and whole


def patch(flag: str, config: OpenAIConfig) -> str:
    """What to change in the reference instead of giving it this flag."""
    n, builder, call = config.network, BUILDERS[config.kind], CALLS[config.kind]
    if flag == "num_classes":
        where = f"out_channels={n.num_classes} in {builder}" if config.kind == "classifier" else ""
        return f"set NUM_CLASSES = {n.num_classes}{' and ' + where if where else ''} in {SCRIPT}"
    if flag == "image_channels":
        out = f" and out_channels={output_channels(config)}" if config.kind != "classifier" else ""
        return f"give {call} in_channels={n.image_channels}{out} in {builder} of {SCRIPT}"
    if flag == "sigma_small":
        return f"give create_gaussian_diffusion sigma_small=True in {SCRIPT} (improved-diffusion has the flag)"
    argument = flag.removeprefix("classifier_")
    return f"give {call} {argument}={getattr(values_of(config), flag)} in {builder} of {SCRIPT}"


def output_channels(config: OpenAIConfig) -> int:
    return config.network.image_channels * (2 if getattr(config.network, "learn_variance", False) else 1)
