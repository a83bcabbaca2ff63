"""Start a network from the weights of any checkpoint: native, published, or a file of training code."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

from torch import nn

from admg.models import ClassifierConfig, UNetConfig

from . import loading, native, openai
from .networks import Kind
from .openai.families import family_of
from .weights import CheckpointError, check_state


def load_initial(network: nn.Module, name: str | Path, kind: Kind) -> dict[str, Any]:
    """Fill a network with the weights of a checkpoint, and return what is known of how that one was trained.

    network: a UNet, SuperResUNet or NoisyClassifier
    name: name of a shipped or published model, checkpoint folder, run directory, or file of weights

    Raises ValueError if there is no such checkpoint of this kind, or if names, shapes or, where they are known, the
    attention heads differ from those of the network.
    """
    published = loading.published(name, kind)
    file = loading.weights_file(name) if published is None else published.fetch()
    if file is None:
        folder = loading.find(name, "classifier" if kind == "classifier" else "diffusion")
        training = native.read_config(folder, kind).get("training", {})
        native.load_weights(folder, network)
        return {"model": str(name), **training}
    source, weights = openai.read(file, kind)
    check_state(source, weights.state, network)
    _check_attention(source, cast(UNetConfig | ClassifierConfig, network.config), kind)
    network.load_state_dict(weights.state)
    return {"model": str(name), **openai.provenance(weights)}


def _check_attention(source: str, network: UNetConfig | ClassifierConfig, kind: Kind) -> None:
    """Check that the attention of a network is that of the known model with its shapes; say it if none is known.

    Raises CheckpointError if the heads or the order of the rows of qkv differ.
    """
    own = openai.OpenAIConfig(kind, network, openai.shapes.default_process(network))
    family = family_of(own)
    if family is None:
        _warn(f"{source}: its attention heads are not known and taken to be those of this run: {attention(network)}")
    elif attention(family.config.network) != attention(network):
        raise CheckpointError(
            f"{source} has the shapes of {family.name}, whose attention is {attention(family.config.network)}; that of "
            f"this run is {attention(network)}: choose the same"
        )


def attention(network: UNetConfig | ClassifierConfig) -> str:
    """Return the number of heads at each level with attention, and the order of the rows of qkv, as text."""
    last = len(network.channel_mult) - 1
    levels = [level for level in range(last + 1) if network.attends(level) or level == last]
    heads = ", ".join(f"{network.heads(network.width(level))} of {network.width(level)} channels" for level in levels)
    return f"{heads} in {'new' if network.new_attention_order else 'old'} order"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)
