"""Start a network from the weights of any checkpoint: native, published, or a file of training code."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any, cast

from torch import nn

from admg.models import ClassifierConfig, UNetConfig

from . import loading, native, openai
from .compatibility import Facts, check_pair, facts_from, facts_in
from .networks import Kind
from .openai.families import Family, family_of
from .weights import CheckpointError, check_state


def load_initial(network: nn.Module, name: str | Path, kind: Kind, run: Facts | None = None) -> dict[str, Any]:
    """Fill a network with the weights of a checkpoint, and return what is known of how that one was trained.

    network: a UNet, SuperResUNet or NoisyClassifier
    name: name of a shipped or published model, checkpoint folder, run directory, or file of weights
    run: what is known of the model to be trained, to compare with; None compares nothing

    Raises ValueError if there is no such checkpoint of this kind, or if names, shapes or, where they are known, the
    attention heads differ from those of the network, or if the weights have another meaning; see compatibility.PAIRS.
    """
    published = loading.published(name, kind)
    file = loading.weights_file(name) if published is None else published.fetch()
    if file is None:
        folder = loading.find(name, "classifier" if kind == "classifier" else "diffusion")
        training = native.read_config(folder, kind).get("training", {})
        native.load_weights(folder, network)
        if run is not None:
            check_pair("init", run, facts_in(folder, str(name)))
        return {"model": str(name), **training}
    source, weights = openai.read(file, kind)
    check_state(source, weights.state, network)
    known = _check_attention(source, cast(UNetConfig | ClassifierConfig, network.config), kind)
    if known is not None and run is not None:  # shapes do not tell its labels and image size
        facts = facts_from(known.config.network, known.config.diffusion, kind, str(name))
        check_pair("init", run, dataclasses.replace(facts, labels=None, size=None))
    network.load_state_dict(weights.state)
    return {"model": str(name), **openai.provenance(weights)}


def _check_attention(source: str, network: UNetConfig | ClassifierConfig, kind: Kind) -> Family | None:
    """Return the known model with the shapes of a network, whose attention must be the same; say it if none is known.

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
    return family


def attention(network: UNetConfig | ClassifierConfig) -> str:
    """Return the number of heads at each level with attention, and the order of the rows of qkv, as text."""
    widths = [network.width(level) for level in network.attention_levels]
    heads = ", ".join(f"{network.heads(width)} of {width} channels" for width in widths)
    return f"{heads} in {'new' if network.new_attention_order else 'old'} order"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)
