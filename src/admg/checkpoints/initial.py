"""The model that a training run starts from: native, published, or a file of training code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, SuperResConfig, UNetConfig

from . import loading, native, openai
from .compatibility import Facts, facts_from
from .diffusers import loading as diffusers
from .labels import Labels
from .model import Classifier, Model
from .networks import NETWORK_KINDS, Kind, kind_of, unwrapped
from .openai import GivenFlags

C = TypeVar("C", UNetConfig, SuperResConfig, ClassifierConfig)
Architecture = UNetConfig | ClassifierConfig

MAY_DIFFER = {"image_size", "image_channels", "num_classes", "learn_variance", "small_size", "augment_noise", "dropout",
              "checkpoint", "num_heads", "num_heads_upsample", "head_channels", "new_attention_order"}  # fmt: skip
"""Fields of an architecture that the shapes of weights do not determine, or that follow from the data; attention heads
and the variance are compared by compatibility.check_pair."""


LOAD: dict[Kind, Callable[[str], Model | Classifier]] = {
    "diffusion": loading.load, "upsampler": loading.load_upsampler, "classifier": loading.load_classifier,
}  # fmt: skip
"""Functions that load models by name."""
OPENAI_LOADERS: dict[Kind, Callable[[Path, GivenFlags | None], Model | Classifier]] = {
    "diffusion": openai.load_diffusion, "upsampler": openai.load_upsampler, "classifier": openai.load_classifier,
}  # fmt: skip
"""Functions that load files in OpenAI's format."""


@dataclass(frozen=True)
class Initial:
    """A model to start training from.

    name: name for messages and for the record
    architecture, diffusion, labels: from its config.json or its flags
    training: provenance
    state: its weights
    is_known: whether its attention heads and its process are known; the shapes of a file do not determine them
    by_number: whether labels without a common name are assumed to be in the same order, if there are equally many,
        since their names are unknown
    """

    name: str
    architecture: Architecture
    diffusion: DiffusionConfig
    labels: Labels
    training: Mapping[str, Any]
    state: Mapping[str, Tensor] = field(default_factory=dict)
    is_known: bool = True
    by_number: bool = False

    @property
    def takes_labels(self) -> bool:
        """Whether the network has weights for each label."""
        return self.architecture.num_classes > 0

    def facts(self, kind: Kind) -> Facts:
        """Return the facts that must agree with a run that starts here, without unknown ones."""
        facts = facts_from(self.architecture, self.diffusion, kind, self.name)
        if self.is_known:
            return facts
        return dataclasses.replace(facts, schedule=None, predict=None, variance=None, attention=None)


def load_initial(init: str | Path | Model | Classifier, kind: Kind, flags: GivenFlags | None = None) -> Initial:
    """Load the model to start from.

    init: name of a shipped or published model, checkpoint folder, run directory, file of weights, or a loaded model
    flags: flags of OpenAI's scripts for a file in their format; None infers them, see openai.load

    Raises ValueError if there is no such model of this kind or it cannot be used, OSError if it cannot be downloaded.
    """
    if isinstance(init, Model | Classifier):
        return _of_model(init, kind, str(init.training.get("name", "the given model")))
    name = str(init)
    published = loading.published(name, kind)
    file = None if published else loading.weights_file(name)
    if flags is not None and file is None:
        raise ValueError(f"init_flags applies only to files in OpenAI's format: the architecture of {name} is known")
    if published:
        return _of_model(LOAD[kind](name), kind, name)
    if file:
        return _of_file(file, kind, name, flags)
    folder = loading.find(name, "classifier" if kind == "classifier" else "diffusion")
    if diffusers.is_folder(folder):
        return _of_model(diffusers.load(folder), kind, name)
    parts = native.load(folder, kind)
    assert parts.config is not None
    config, state = cast(Architecture, parts.network.config), parts.network.state_dict()
    return Initial(name, config, parts.config, parts.labels, parts.training, state)


def _of_file(file: Path, kind: Kind, name: str, flags: GivenFlags | None) -> Initial:
    found = _of_model(OPENAI_LOADERS[kind](file, flags), kind, name)
    config = openai.OpenAIConfig(kind, found.architecture, openai.shapes.default_process(found.architecture))
    is_known = flags is not None or openai.families.family_of(config) is not None
    return dataclasses.replace(found, is_known=is_known, by_number=True)


def _of_model(model: Model | Classifier, kind: Kind, name: str) -> Initial:
    network = unwrapped(model.network)
    own = kind_of(network)
    if own is None or own.name != kind or model.config is None:
        raise ValueError(f"cannot start from {name}: it is not a {NETWORK_KINDS[kind].title} with a DiffusionConfig")
    config = cast(Architecture, network.config)
    return Initial(name, config, model.config, model.labels, model.training, network.state_dict())


def initial_of_run(folder: Path, kind: Kind, name: str) -> Initial:
    """Return the description of the model in a run directory, for resuming the run. It has no weights."""
    about = native.read_about(folder, kind)
    return Initial(name, cast(Architecture, about.network), about.diffusion, about.labels, about.training)


# -- the architecture of a run ---------------------------------------------------------------------------------------


def inherited(initial: Initial, kind: type[C], given: Mapping[str, Any], derived: Mapping[str, Any]) -> C:
    """Return the architecture of a model, updated with the given fields and those that follow from the data.

    Attention stays at the levels where the model has it, whatever the image size.

    Raises ValueError for a given field that contradicts the weights.
    """
    theirs, size = initial.architecture, derived["image_size"]
    attended = [level for level in range(theirs.levels) if theirs.attends(level)]
    fields = dataclasses.asdict(theirs) | {"attention_resolutions": tuple(size >> level for level in attended)}
    for name, value in given.items():
        own = fields.get(name)
        if name == "attention_resolutions":
            typed = dataclasses.replace(theirs, image_size=size, attention_resolutions=tuple(value))
            agrees = [level for level in range(theirs.levels) if typed.attends(level)] == attended
        elif name == "channel_mult":
            agrees = tuple(value) in ((), own)  # () is the default
        else:
            agrees = name in MAY_DIFFER or value == own
        if not agrees:
            raise ValueError(f"network: {name} must be {_text(own)}, as in {initial.name}, got {_text(value)}")
    return kind(**{**fields, **{name: given[name] for name in given if name in MAY_DIFFER}, **derived})


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
