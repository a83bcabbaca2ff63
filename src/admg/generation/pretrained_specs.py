"""Guides by networks of other libraries, as text: "timm:resnet50.a1_in1k,label=golden retriever", "clip:a red coat"."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from admg.guidance import PretrainedGuidance, from_timm, from_torchvision, from_transformers

CLIP = "openai/clip-vit-base-patch32"
"""Default model of `clip:`."""


def _clip(text: str, model: str = CLIP, **options: Any) -> PretrainedGuidance:
    return from_transformers(model, text, **options)


PRETRAINED: Mapping[str, tuple[Callable[..., PretrainedGuidance], frozenset[str]]] = {
    "timm": (from_timm, frozenset({"label", "scale"})),
    "torchvision": (from_torchvision, frozenset({"label", "scale"})),
    "transformers": (from_transformers, frozenset({"label", "scale"})),
    "clip": (_clip, frozenset({"model", "scale"})),
}
"""Functions by the first word of a text, and their options."""


def is_pretrained(spec: str) -> bool:
    """Return whether a text names a guide of another library."""
    return spec.partition(":")[0] in PRETRAINED


def load_pretrained(spec: str) -> PretrainedGuidance:
    """Return the guide of a text such as "timm:MODEL,label=NAME,scale=S" or "clip:TEXT,model=NAME,scale=S".

    Raises ValueError if an option is unknown or has a bad value, or if the guide cannot be loaded.
    """
    name, _, rest = spec.partition(":")
    make, allowed = PRETRAINED[name]
    first, *given = re.split(rf",(?=(?:{'|'.join(sorted({'label', 'scale', 'model'}))})=)", rest)
    what = "a text" if name == "clip" else "a model"
    if not first.strip():
        raise ValueError(f"guide {spec}: specify {what}, {name}:{'a red coat' if name == 'clip' else 'MODEL'}")
    options: dict[str, Any] = {}
    for part in given:
        key, _, value = part.partition("=")
        if key not in allowed or not value:
            raise ValueError(
                f"guide {spec}: {part!r} is not an option of {name}: expected {', '.join(sorted(allowed))}, each with ="
            )
        options[key] = value
    if "scale" in options:
        try:
            options["scale"] = float(options["scale"])
        except ValueError:
            raise ValueError(f"guide {spec}: scale must be a number, not {options['scale']!r}") from None
    return make(first.strip(), **options)
