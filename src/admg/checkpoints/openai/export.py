"""Export to OpenAI's format: a `.pt` file for guided-diffusion, and the flags and patches that it needs.

The state dict has guided-diffusion's names and shapes by construction. A network that predicts v or the log variance
itself would load there without an error but sample noise, so such networks are refused.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from admg.checkpoints.exported import Exported
from admg.checkpoints.model import Classifier, Model, check_process, check_shape
from admg.checkpoints.networks import check_as_configured, kind_of, unwrapped
from admg.checkpoints.weights import check_values
from admg.diffusion.config import DiffusionConfig
from admg.files import atomic
from admg.models import ClassifierConfig, UNetConfig

from .enclosed import enclose
from .flags import OpenAIConfig, extra_flags, flags_of, values_of

SCRIPT = "guided_diffusion/script_util.py"
BUILDERS = {"diffusion": "create_model", "upsampler": "sr_create_model", "classifier": "create_classifier"}
"""Function of that file that builds the network, by kind."""
NETWORK_CLASSES = {"diffusion": "UNetModel", "upsampler": "SuperResModel", "classifier": "EncoderUNetModel"}
"""Class that the function instantiates, by kind."""


def to_openai(model: Model | Classifier, path: Path | str) -> Exported:
    """Write the network's weights as a float32 state dict for guided-diffusion.

    `flags` of the result build the network there. Flags that guided-diffusion does not have are included, because
    `admg.openai.load` needs them; the notes say how to patch guided-diffusion for each. The file also holds the flags
    and the names of the labels, which torch.load ignores and `admg.openai.load` uses.

    Raises ValueError if the model has no DiffusionConfig, if guided-diffusion does not support its prediction (v) or
    variance (learned), or if another file would be replaced.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder: pass the name of a file, such as {path / 'model.pt'}")
    if path.exists() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} exists and is not a .pt file, so it is not replaced: choose another name")
    config = openai_config(model)
    flags, remarks = flags_of(config), notes(model, config)
    with atomic(path) as temporary:
        torch.save(weights(unwrapped(model.network)), temporary)
        enclose(temporary, flags, model.label_names)
    return Exported(path, remarks, flags)


def openai_config(model: Model | Classifier) -> OpenAIConfig:
    """Return the configuration that the flags describe.

    Raises ValueError if the network is not one of ours or has no counterpart, or if the model has no DiffusionConfig.
    """
    network = unwrapped(model.network)
    kind = kind_of(network)
    if kind is None:
        raise ValueError(f"guided-diffusion has no counterpart of {type(network).__name__}")
    if model.config is None:
        raise ValueError("only a model with its DiffusionConfig can be exported to openai")
    check_as_configured(network, "the network to export")
    check_shape(model)
    check_process(model)
    if getattr(network.config, "augment_noise", 0):
        raise ValueError("guided-diffusion has no upsampler that is conditioned on noise of the low-resolution images")
    if getattr(network.config, "ddpm_layers", False):
        raise ValueError("guided-diffusion has no counterpart of ddpm_layers, the details of DDPM's own network")
    diffusion = model.config
    if kind.name == "classifier":  # it predicts neither x_0 nor a variance
        default = DiffusionConfig()
        diffusion = dataclasses.replace(diffusion, predict=default.predict, variance=default.variance)
    return OpenAIConfig(kind.name, cast(UNetConfig | ClassifierConfig, network.config), diffusion)


def weights(network: nn.Module) -> OrderedDict[str, Tensor]:
    """Return the state dict on the CPU in float32. Each tensor owns its whole storage, since torch.save writes that."""
    check_values("the network to export", network.state_dict())
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, value in network.state_dict().items():
        value = value.detach().to("cpu", torch.float32).contiguous()
        state[name] = value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
    return state


def notes(model: Model | Classifier, config: OpenAIConfig) -> tuple[str, ...]:
    """Return one sentence for each patch that guided-diffusion needs, and for each feature that it lacks."""
    lines = [
        f"guided-diffusion has no flag --{name}: leave it out there, and {patch(name, config)}"
        for name in extra_flags(config)
        if not has_flag(name, config)
    ]
    if isinstance(model, Model) and model.conditional:
        lines.append("guided-diffusion always needs a label: sampling without labels (y = -1, or no y) is not possible")
    return tuple(lines)


def has_flag(name: str, config: OpenAIConfig) -> bool:
    """Return whether guided-diffusion's script has this extra flag after all, for the values of this configuration."""
    integers = all(m == int(m) for m in config.network.channel_mult)
    return name == "channel_mult" and config.kind == "diffusion" and integers


def patch(flag: str, config: OpenAIConfig) -> str:
    """Return the change of guided-diffusion that replaces this flag."""
    n, builder, network = config.network, BUILDERS[config.kind], NETWORK_CLASSES[config.kind]
    if flag == "num_classes":
        where = f"out_channels={n.num_classes} in {builder}" if config.kind == "classifier" else ""
        return f"set NUM_CLASSES = {n.num_classes}{' and ' + where if where else ''} in {SCRIPT}"
    if flag == "image_channels":
        out = f" and out_channels={output_channels(config)}" if config.kind != "classifier" else ""
        return f"pass {network} in_channels={n.image_channels}{out} in {builder} of {SCRIPT}"
    if flag == "sigma_small":
        return f"pass create_gaussian_diffusion sigma_small=True in {SCRIPT} (improved-diffusion has the flag)"
    argument = flag.removeprefix("classifier_")
    return f"pass {network} {argument}={getattr(values_of(config), flag)} in {builder} of {SCRIPT}"


def output_channels(config: OpenAIConfig) -> int:
    """Return the number of output channels of a U-Net."""
    return config.network.image_channels * (2 if getattr(config.network, "learn_variance", False) else 1)
