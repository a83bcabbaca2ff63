"""Shared by the tests against guided-diffusion's values: reading tests/openai/, and its flags and parameters.

Flags are read by a plain table, independently of the library's own parser.
"""

from __future__ import annotations

import gzip
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig
from admg.models.unet import EncoderConfig

FOLDER = Path(__file__).parent / "openai"
NETWORKS = {"diffusion": UNet, "upsampler": SuperResUNet, "classifier": NoisyClassifier}


@cache
def table(name: str) -> dict[str, Any]:
    """Return the contents of a .json or .json.gz file of tests/openai."""
    data = (FOLDER / name).read_bytes()
    return json.loads(gzip.decompress(data) if name.endswith(".gz") else data)


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file of tests/openai."""
    with np.load(FOLDER / name) as file:
        return dict(file)


# -- flags -----------------------------------------------------------------------------------------------------------


def parse(flags: str) -> dict[str, str]:
    words = flags.split()
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()


def truth(text: str) -> bool:
    return {"True": True, "False": False}[text]


def network_config(kind: str, flags: str) -> EncoderConfig:
    """Return the network of guided-diffusion's flags, with the defaults of its script_util.py."""
    given = parse(flags)
    size = int(given.get("large_size") or given["image_size"])
    common = {
        "image_size": size,
        "image_channels": int(given.get("image_channels", 3)),  # not a flag there
        "conv_resample": truth(given.get("conv_resample", "True")),  # not a flag there, either
    }
    if kind == "classifier":
        return ClassifierConfig(
            **common,
            channels=int(given["classifier_width"]),
            num_res_blocks=int(given["classifier_depth"]),
            attention_resolutions=numbers(given["classifier_attention_resolutions"]),
            pool=given["classifier_pool"],
            resblock_updown=truth(given["classifier_resblock_updown"]),
            scale_shift_norm=truth(given["classifier_use_scale_shift_norm"]),
            head_channels=64,
        )
    channel_mult = numbers(given.get("channel_mult", ""))
    if kind == "upsampler" and size == 512:
        channel_mult = (1, 1, 2, 2, 4, 4)  # unlike a diffusion model of 512 pixels
    if kind == "upsampler":
        common["small_size"] = int(given.get("small_size", 64))
    return (SuperResConfig if kind == "upsampler" else UNetConfig)(
        **common,
        channel_mult=channel_mult,
        channels=int(given["num_channels"]),
        num_res_blocks=int(given["num_res_blocks"]),
        attention_resolutions=numbers(given["attention_resolutions"]),
        num_heads=int(given.get("num_heads", 4)),
        num_heads_upsample=int(given.get("num_heads_upsample", 0)),
        head_channels=int(given.get("num_head_channels", 0)),
        new_attention_order=truth(given.get("use_new_attention_order", "False")),
        scale_shift_norm=truth(given.get("use_scale_shift_norm", "True")),
        resblock_updown=truth(given.get("resblock_updown", "False")),
        dropout=float(given.get("dropout", 0)),
        num_classes=1000 if truth(given.get("class_cond", "False")) else 0,
        learn_variance=truth(given.get("learn_sigma", "False")),
    )


def diffusion_config(flags: str) -> DiffusionConfig:
    given = parse(flags)
    return DiffusionConfig(
        noise_schedule=given.get("noise_schedule", "linear"),
        diffusion_steps=int(given.get("diffusion_steps", 1000)),
        predict="x0" if truth(given.get("predict_xstart", "False")) else "eps",
        variance="learned_range" if truth(given.get("learn_sigma", "False")) else "fixed_large",
        rescale_timesteps=truth(given.get("rescale_timesteps", "False")),
    )


# -- networks --------------------------------------------------------------------------------------------------------


def build(kind: str, flags: str) -> nn.Module:
    return NETWORKS[kind](network_config(kind, flags))


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def fill(network: nn.Module) -> nn.Module:
    """Fill every parameter as tests/openai/README.md says, and switch to eval mode."""
    state = {}
    for name, value in network.state_dict().items():
        rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        filled = rng.standard_normal(tuple(value.shape)).astype(np.float32) * np.float32(0.05)
        if name.endswith("weight") and value.ndim == 1:
            filled += 1
        state[name] = torch.from_numpy(filled)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def inputs(kind: str, flags: str, size: list[int] | None = None) -> dict[str, Tensor]:
    """Return the arguments of forward, as tests/openai/README.md says.

    size: (height, width), if not the network's own
    """
    config = network_config(kind, flags)
    height, width = size or (config.image_size, config.image_size)
    n, c = 2 if max(height, width) <= 64 else 1, config.image_channels
    rng = np.random.Generator(np.random.PCG64(0))
    x = rng.standard_normal((n, c, height, width))
    low_res = np.clip(rng.standard_normal((n, c, height // 4, width // 4)) * 0.5, -1, 1)
    arguments = {"x": torch.tensor(x, dtype=torch.float32), "timesteps": torch.tensor([17, 803][:n])}
    if kind == "upsampler":
        arguments["low_res"] = torch.tensor(low_res, dtype=torch.float32)
    if getattr(config, "num_classes", 0) and kind != "classifier":
        arguments["y"] = torch.tensor([3, 877][:n])
    return arguments


# -- comparing -------------------------------------------------------------------------------------------------------


def error(actual: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """The largest difference, relative to the largest magnitude expected."""
    actual, expected = (np.asarray(a, dtype=np.float64) for a in (actual, expected))
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def error_by_image(actual: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """The largest error() of any image of a batch, so that a large image hides nothing of a small one."""
    assert len(actual) == len(expected)
    return max(error(a, b) for a, b in zip(actual, expected))
