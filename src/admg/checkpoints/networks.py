"""The three kinds of network that a checkpoint can hold, and how to recognise them inside wrappers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from admg.engine.acceleration import Accelerated
from admg.guidance.logits import check_arguments
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig
from admg.models.surgery import is_setting
from admg.models.unet import EncoderConfig

from .weights import compare, on_meta, shapes_in

Kind = Literal["diffusion", "upsampler", "classifier"]
NOT_COMPARED = frozenset({"checkpoint", "p", "inplace"})
"""Settings of modules that do not affect the outputs of a trained network."""


@dataclass(frozen=True)
class NetworkKind:
    """A kind of network: its name in `config.json`, its name in messages, its class and the class of its config."""

    name: Kind
    title: str
    network: type[nn.Module]
    config: type[EncoderConfig]


NETWORK_KINDS: dict[Kind, NetworkKind] = {
    "diffusion": NetworkKind("diffusion", "diffusion model", UNet, UNetConfig),
    "upsampler": NetworkKind("upsampler", "upsampler", SuperResUNet, SuperResConfig),
    "classifier": NetworkKind("classifier", "noisy classifier", NoisyClassifier, ClassifierConfig),
}


def kind_of(network: nn.Module) -> NetworkKind | None:
    """Return the kind of a network, or None if it is not an instance of exactly one of our classes."""
    network = network.plain if isinstance(network, Accelerated) else network
    return next((kind for kind in NETWORK_KINDS.values() if type(network) is kind.network), None)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, DataParallel, `torch.compile` or accelerate(), or itself.

    Only wrappers that leave the output unchanged are removed: a module of the user's own is returned as it is.
    """
    while True:
        inner = getattr(network, "_orig_mod", None)
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = network.module
        if isinstance(network, Accelerated):
            inner = network.plain
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def our_networks(network: nn.Module, kind: type[nn.Module] = UNet) -> list[Any]:
    """Return every network of this class of ours in a module: the module itself, or what it wraps."""
    own = unwrapped(network)
    return [own] if isinstance(own, kind) else [part for part in network.modules() if isinstance(part, kind)]


def takes_labels(network: Callable[..., Any]) -> bool | None:
    """Return whether a network is conditioned on labels, called as `network(x, timesteps, y=labels)`.

    A network whose `config` has `num_classes`, plain or inside DDP, DataParallel or `torch.compile`, is conditional if
    that is not 0. Any other module is conditional if its `forward` has a parameter `y`, or passes all keywords on to a
    conditional network of ours inside it. Return None if the answer cannot be known: `forward` takes any keyword and
    there is no network of ours inside, or `forward` and that network disagree.
    """
    network = network.plain if isinstance(network, Accelerated) else network
    inner: set[bool] = set()
    if isinstance(network, nn.Module):
        classes = num_classes(network)
        if classes is not None:
            return classes > 0
        inner = {unet.config.num_classes > 0 for unet in our_networks(network)}
    accepted = _accepts_y(network.forward if isinstance(network, nn.Module) else network)
    if len(inner) == 1:
        (conditional,) = inner
        return conditional if accepted in (None, conditional) else None
    return accepted


def _accepts_y(function: Callable[..., Any]) -> bool | None:
    """Return whether a function has a parameter `y`, or None if it takes any keyword or has no signature."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    if "y" in parameters and parameters["y"].kind is not inspect.Parameter.POSITIONAL_ONLY:
        return True
    return None if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()) else False


# -- checks ----------------------------------------------------------------------------------------------------------


def check_as_configured(network: nn.Module, title: str) -> None:
    """Check that a network of ours is the one that its config describes, since only the config and weights are stored.

    The names and shapes of parameters, the types of modules and their plain attributes (padding_mode, eps, ...) are
    compared; hooks are not.

    title: name of the network in messages about its parameters

    Raises ValueError if they differ.
    """
    expected = on_meta(type(network), cast(Any, network).config)
    compare(title, shapes_in(expected.state_dict()), shapes_in(network.state_dict()))
    layers, known = dict(network.named_modules()), dict(expected.named_modules())
    if unknown := sorted(layers.keys() ^ known.keys()):
        verb = "is not" if unknown[0] in layers else "is"
        raise ValueError(f"the network cannot be stored: the layer {unknown[0]!r} {verb} part of its config")
    for name, layer in known.items():
        found, attributes = vars(layers[name]), vars(layer)
        where = f"the network cannot be stored: its layer {name!r}" if name else "the network cannot be stored: it"
        if type(layers[name]) is not type(layer):
            kinds = type(layers[name]).__name__, type(layer).__name__
            raise ValueError(f"{where} is a {kinds[0]}, and a {kinds[1]} in its config")
        if "forward" in found:
            raise ValueError(f"{where} has a forward function of its own")
        for key, value in attributes.items():
            if is_setting(key, value) and key not in NOT_COMPARED and found.get(key) != value:
                raise ValueError(f"{where} has {key}={found.get(key)!r}, and its config {value!r}")


def is_as_configured(network: nn.Module) -> bool:
    """Whether a network is one of ours that its config and weights describe completely, without hooks."""
    if kind_of(network) is None or any(hooks_of(part) for part in network.modules()):
        return False
    try:
        check_as_configured(network, "network")
    except ValueError:
        return False
    return True


def hooks_of(module: nn.Module) -> list[Callable[..., Any]]:
    """Return the functions that run before or after the module's forward or backward pass."""
    tables = "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"
    return [hook for table in tables for hook in getattr(module, table, {}).values()]


def check_labels(network: Callable[..., Any], stated: bool | None, count: int) -> None:
    """Check that a network takes labels as stated, and has as many labels as are used.

    stated: whether the network takes labels according to the user; None if not stated
    count: number of labels that it is conditioned on; 0 for none

    Raises ValueError if the network contradicts it.
    """
    classes = num_classes(network)
    if stated is not None and classes is not None and stated != bool(classes):
        has = f"is conditioned on {classes} labels" if classes else "takes no labels"
        raise ValueError(f"takes_labels={stated} contradicts the network: this {_name(network)} {has}")
    if stated and takes_labels(network) is False:
        raise ValueError(f"takes_labels=True contradicts the network: {_name(network)}.forward has no parameter y")
    if classes and count > classes:
        raise ValueError(f"the network is conditioned on {classes} labels, but there are {count}")
    if getattr(getattr(network, "config", None), "num_class_embeds", None) and not takes_labels(network):
        raise ValueError(
            f"{_name(network)} takes labels as class_labels: pass a module with forward(x, timesteps, y) that calls it"
        )


def check_null_label(network: Callable[..., Any], null_label: int | None, count: int, conditional: bool) -> None:
    """Check the label that a network of the user's own takes for none. Raises ValueError if it does not fit."""
    if null_label is None:
        return
    if isinstance(network, nn.Module) and our_networks(network):
        raise ValueError("null_label is for networks of your own: those of admg take -1 for an image without a label")
    if not conditional:
        raise ValueError(f"null_label={null_label} contradicts the network, which takes no labels")
    if 0 <= null_label < count:
        raise ValueError(f"null_label must not be one of the {count} labels, got {null_label}")


def check_classifier(network: Callable[..., Any], count: int) -> None:
    """Check that a network is called as `network(x, timesteps)` and has a class for each of `count` labels.

    Raises ValueError if it is known not to.
    """
    check_arguments(network, "x", "timesteps")
    classes = num_classes(network)
    if classes is not None and count > classes:
        raise ValueError(f"the classifier has {classes} classes, but there are {count} labels")


def num_classes(network: Callable[..., Any]) -> int | None:
    """Return the number of labels that a network's config names, None without one."""
    own = unwrapped(network) if isinstance(network, nn.Module) else network
    classes = getattr(getattr(own, "config", None), "num_classes", None)
    return classes if isinstance(classes, int) else None


def _name(network: Callable[..., Any]) -> str:
    own = unwrapped(network) if isinstance(network, nn.Module) else network
    return type(own).__name__
