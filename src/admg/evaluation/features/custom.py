"""Any torch module as a feature network, given as an object or as file.py:name."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from admg.generation.identity import identity_of
from admg.userfile import errors_of, load_object

from .base import FeatureNetwork, fingerprint


def from_module(module: nn.Module, name: str = "", source: str = "", spec: str = "") -> FeatureNetwork:
    """Return a feature network from a module that maps x (N, C, H, W) in [-1, 1] to features (N, D).

    C is 3 for grey and colour images, and else the number of channels of the images.

    If the module has a method `prepare`, it maps the uint8 images (N, C, H, W) to the input of the module instead.

    name: shown with the metrics; by default the name of the class
    source: anything else that determines the features; it becomes part of the identity, in addition to the weights,
        the source of the module's class and its attributes
    spec: the user's file with the module, `path/to/file.py:name`, for error messages
    Raises ValueError if it is not a module.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"a feature network must be a torch.nn.Module, got {type(module).__name__}")
    prepare = getattr(module, "prepare", None) or to_signed
    name = name or type(module).__name__
    if name.lower().startswith("inception"):  # the names FID and IS are reserved for the published network
        name = f"own-{name}"
    identity = fingerprint(module, name, source, identity_of(module))
    return FeatureNetwork(name, module, prepare, identity, any_channels=True, spec=spec)


def to_signed(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Map values 0..255 to [-1, 1]."""
    return images.float() / 127.5 - 1


def from_file(spec: str) -> tuple[Any, str]:
    """Return the object "file.py:name", called if it is a class or a function, and a checksum of its file.

    Raises ValueError if there is no such file or name, or if the file fails.
    """
    loaded, digest = load_object(spec)
    if isinstance(loaded, nn.Module) or not callable(loaded):
        return loaded, digest
    with errors_of(spec):
        return loaded(), digest
