"""Start a network from the weights of any checkpoint: native, published, or a file of training code."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any, cast

from admg.models import ClassifierConfig, UNetConfig

from . import loading, native, openai
from .compatibility import check_pair, facts_from, facts_in, facts_of
from .model import Classifier, Model
from .networks import Kind
from .openai.families import Family, family_of
from .weights import CheckpointError, check_state


def load_initial(part: Model | Classifier, name: str | Path, kind: Kind) -> dict[str, Any]:
    """Fill a model's network with the weights of a checkpoint, and return what is known of how that one was trained.

    part: model or classifier to be trained, whose network is a UNet, SuperResUNet or NoisyClassifier
    name: name of a shipped or published model, checkpoint folder, run directory, or file of weights

    Raises ValueError if there is no such checkpoint of this kind, or if names, shapes or, where they are known, the
    attention heads differ from those of the network, or if the weights have another meaning; see compatibility.PAIRS.
    """
    network, own = part.network, facts_of(part, "this run")
    published = loading.published(name, kind)
    file = loading.weights_file(name) if published is None else published.fetch()
    if file is None:
        folder = loading.find(name, "classifier" if kind == "classifier" else "diffusion")
        training = native.read_config(folder, kind).get("training", {})
        native.load_weights(folder, network)
        check_pair("init", own, facts_in(folder, str(name)))
        return {"model": str(name), **training}
    source, weights = openai.read(file, kind)
    check_state(source, weights.state, network)
    known = _check_attention(source, cast(UNetConfig | ClassifierConfig, network.config), kind)
    if known is not None:  # shapes do not tell its labels and image size
        facts = facts_from(known.config.network, known.config.diffusion, kind, str(name))
        check_pair("init", own, dataclasses.replace(facts, labels=None, size=None))
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
    last = len(network.channel_mult) - 1
    levels = [level for level in range(last + 1) if network.attends(level) or level == last]
    heads = ", ".join(f"{network.heads(network.width(level))} of {network.width(level)} channels" for level in levels)
    return f"{heads} in {'new' if network.new_attention_order else 'old'} order"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)
