"""A network with all that is needed to use it: what its output means, and the names of its labels."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from admg.diffusion.gaussian import Diffusion, Images, Index, Predict, Prediction, Variance
from admg.diffusion.schedule import NoiseSchedule
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig
from admg.models.unet import EncoderConfig

from . import imagenet, native
from .weights import CheckpointError, build_network

KINDS: dict[str, tuple[type[nn.Module], type[EncoderConfig]]] = {
    "diffusion": (UNet, UNetConfig),
    "upsampler": (SuperResUNet, SuperResConfig),
    "classifier": (NoisyClassifier, ClassifierConfig),
}
"""Of native checkpoints: what the kind is called, its network and the network's architecture."""
KIND_NAMES = {"diffusion": "diffusion model", "upsampler": "upsampler", "classifier": "noisy classifier"}
"""For people."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The diffusion process that a network was trained on.

    noise_schedule: linear (DDPM) or cosine (Improved DDPM)
    diffusion_steps: T, the number of steps of the process
    predict: what the network tells: eps, x0 or v
    variance: learned_range, learned, fixed_small or fixed_large
    rescale_timesteps: tell the network t*1000/T instead of t
    """

    noise_schedule: str = "linear"
    diffusion_steps: int = 1000
    predict: Predict = "eps"
    variance: Variance = "learned_range"
    rescale_timesteps: bool = False

    def build(self) -> Diffusion:
        schedules = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}
        if self.noise_schedule not in schedules:
            raise ValueError(f"unknown noise schedule {self.noise_schedule!r}: {' or '.join(schedules)}")
        schedule = schedules[self.noise_schedule](self.diffusion_steps)
        return Diffusion(schedule.rescaled() if self.rescale_timesteps else schedule, self.predict, self.variance)


def one_call_pays(x: Images) -> bool:
    """Whether one call of twice as many images takes less time than two: for a few, which do not fill a GPU."""
    return x.is_cuda and len(x) <= 16


def file_name(label: str) -> str:
    """The label without what a file name cannot hold, nor the underscore that ends it."""
    return re.sub(r"[^\w.-]|_", "-", label) or "sample"


class Labels:
    """The names of labels 0 .. K-1, or only their number.

    names: one for each label, to show and to ask for; aliases: what else each may be asked for by, in any case
    """

    def __init__(self, count: int, names: Sequence[str] = (), aliases: Sequence[Sequence[str]] = ()):
        if names and len(names) != count:
            raise ValueError(f"{len(names)} label names for {count} labels")
        if aliases and len(aliases) != count:
            raise ValueError(f"{len(aliases)} tuples of aliases for {count} labels")
        self.count = count
        self.names = tuple(names)
        self.aliases = tuple(tuple(alias.lower() for alias in listed) for listed in aliases)

    @classmethod
    def imagenet(cls) -> Labels:
        """Those of ImageNet-1k, with WordNet's synonyms."""
        return cls(1000, imagenet.names(), imagenet.synonyms())

    @classmethod
    def of(cls, names: Sequence[str]) -> Labels:
        """Labels of these names; where they are ImageNet's, with its synonyms."""
        return cls.imagenet() if tuple(names) == imagenet.names() else cls(len(names), names)

    def name(self, label: int) -> str:
        return self.names[label] if self.names else str(label)

    def number(self, label: int | str) -> int:
        """The label of a name or alias (in any case) or number.

        ValueError: there is none, and the message lists near ones; or several have this alias, and it lists them.
        """
        text = str(label).strip()
        found = self._named(text)
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"label {text!r} is ambiguous: {self._listed(found)}")
        if text.isdecimal() and int(text) < self.count:
            return int(text)
        if self.count == 0:
            raise ValueError(f"label {text!r}: this model has no labels")
        near = self._near(text.lower())
        hint = f"did you mean {self._listed(near)}? " if near else ""
        listed = ": " + ", ".join(self.names) if 0 < len(self.names) <= 20 else ""
        raise ValueError(f"unknown label {text!r}: {hint}labels are 0 to {self.count - 1}{listed}")

    def _named(self, text: str) -> list[int]:
        """The labels of this very name, else of this name in another case, else with this alias."""
        exact = [i for i, name in enumerate(self.names) if name == text]
        folded = [i for i, name in enumerate(self.names) if name.lower() == text.lower()]
        return exact or folded or [i for i, listed in enumerate(self.aliases) if text.lower() in listed]

    def _near(self, text: str) -> list[int]:
        """Up to three labels with a name or alias that has the text as a word, is close to it, or contains it."""
        if not text or text.isdecimal():
            return []
        by_term: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            for term in (name.lower(), *(self.aliases[i] if self.aliases else ())):
                by_term.setdefault(term, []).append(i)
        near = [term for term in by_term if text in term.split()]
        near += difflib.get_close_matches(text, by_term, n=5, cutoff=0.5)
        near += [term for term in by_term if text in term]
        return list(dict.fromkeys(i for term in near for i in by_term[term]))[:3]

    def _listed(self, labels: Sequence[int]) -> str:
        """`'crane (wading bird)' (134) or 'crane (lifting device)' (517)`"""
        return " or ".join(f"{self.name(i)!r} ({i})" for i in labels)


@dataclass
class Model:
    """A diffusion model: a network, the diffusion it was trained on, and its labels.

    network: called as network(x, timesteps) or network(x, timesteps, y=labels) -> (N, C or 2C, H, W)
    diffusion: the meaning of its output, possibly respaced
    shape: (C, H, W) of its images
    labels: that the network can be told, or that its training images had
    config: the DiffusionConfig behind `diffusion`, None if made by hand (then it cannot be saved)
    training: provenance: data, command, seed, figures
    given: further arguments of the network at every step, such as low_res of an upsampling one
    """

    network: nn.Module
    diffusion: Diffusion
    shape: tuple[int, int, int]
    labels: Labels = field(default_factory=lambda: Labels(0))
    config: DiffusionConfig | None = None
    training: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)

    @property
    def conditional(self) -> bool:
        """Whether the network takes labels."""
        return bool(getattr(getattr(self.network, "config", None), "num_classes", 0))

    @property
    def upsamples(self) -> bool:
        """Whether the network needs a low-resolution image (`low_res`) to start from."""
        return isinstance(self.network, SuperResUNet)

    @property
    def kind_name(self) -> str:
        return KIND_NAMES["upsampler" if self.upsamples else "diffusion"]

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.labels.names

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Model:
        self.network.to(device)
        return self

    def respace(self, spec: int | str) -> Model:
        """The same network with fewer steps, see NoiseSchedule.respace."""
        return dataclasses.replace(self, diffusion=self.diffusion.respace(spec))

    def predict(self, x: Images, t: Index, y: Tensor | None = None, clip: bool = True) -> Prediction:
        """p(x_{t-1} | x_t = x) at step t of `diffusion`, given labels y (N,) if the network takes them."""
        conditioning = self.given if y is None else {**self.given, "y": y}
        output = self.network(x, self.diffusion.timestep(t, x.device), **conditioning)
        return self.diffusion.predict(output, x, t, clip=clip)

    def predict_both(self, x: Images, t: Index, y: Tensor) -> tuple[Prediction, Prediction]:
        """Given labels y (N,), and given none; not clipped. In one call of the network where that pays."""
        if not (one_call_pays(x) and isinstance(self.network, UNet)):
            return self.predict(x, t, y, clip=False), self.predict(x, t, clip=False)
        given = {name: torch.cat([value, value]) for name, value in self.given.items()}
        labels = torch.cat([y, torch.full_like(y, -1)])
        output = self.network(torch.cat([x, x]), self.diffusion.timestep(t, x.device), **given, y=labels)
        told, untold = (self.diffusion.predict(half, x, t, clip=False) for half in output.chunk(2))
        return told, untold

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write a native checkpoint; float16 halves its size, and loading always gives float32.

        ValueError: the network is not a UNet or SuperResUNet, or `config` is not known.
        """
        _save(folder, ("diffusion", "upsampler"), self, dtype)

    @classmethod
    def load(cls, folder: Path | str) -> Model:
        """Read a native checkpoint, in float32 and eval mode. CheckpointError (a ValueError) if it is not usable."""
        parts = _load(folder, "diffusion", "upsampler")
        config = parts["network"].config
        return cls(shape=(config.image_channels, config.image_size, config.image_size), **parts)


@dataclass
class Classifier:
    """A noisy classifier p(y | x_t, t): a network, the diffusion whose noise it knows, and its labels.

    Called as classifier(x, timesteps) -> logits (N, K), so guidance takes it as it takes any such function.
    """

    network: nn.Module
    diffusion: Diffusion
    labels: Labels
    config: DiffusionConfig | None = None
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def kind_name(self) -> str:
        return KIND_NAMES["classifier"]

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.labels.names

    def __call__(self, x: Images, timesteps: Tensor) -> Tensor:
        return self.network(x, timesteps)

    def to(self, device: torch.device | str) -> Classifier:
        self.network.to(device)
        return self

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write a native checkpoint, as Model.save does."""
        _save(folder, ("classifier",), self, dtype)

    @classmethod
    def load(cls, folder: Path | str) -> Classifier:
        """Read a native checkpoint, as Model.load does."""
        return cls(**_load(folder, "classifier"))


def _save(folder: Path | str, kinds: tuple[str, ...], part: Model | Classifier, dtype: torch.dtype | None) -> None:
    kind = next((kind for kind in kinds if type(part.network) is KINDS[kind][0]), None)
    if kind is None:
        allowed = " or ".join(KINDS[kind][0].__name__ for kind in kinds)
        raise ValueError(f"only a {allowed} can be saved as a native checkpoint, not a {type(part.network).__name__}")
    if part.config is None:
        raise ValueError("only a model with its DiffusionConfig can be saved as a native checkpoint")
    config = {
        "kind": kind,
        "network": dataclasses.asdict(cast(EncoderConfig, part.network.config)),
        "diffusion": dataclasses.asdict(part.config),
        "labels": part.labels.names or part.labels.count,
        "training": part.training,
    }
    native.write(folder, config, part.network, dtype)


def _load(folder: Path | str, *kinds: str) -> dict[str, Any]:
    """All that Model and Classifier have in common, by field."""
    content = native.read_config(folder, *kinds)
    network_type, config_type = KINDS[content["kind"]]
    config = _config(DiffusionConfig, content, "diffusion", folder)
    architecture = _config(config_type, content, "network", folder)
    return {
        "network": build_network(network_type, architecture, native.read_state(folder), folder),
        "diffusion": config.build(),
        "labels": _labels(content),
        "config": config,
        "training": content.get("training", {}),
    }


def _config(kind: type, config: dict[str, Any], key: str, folder: Path | str) -> Any:
    try:
        return kind(**config[key])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{Path(folder) / 'config.json'}: bad {key!r}: {error}") from None


def _labels(config: dict[str, Any]) -> Labels:
    labels = config.get("labels", 0)
    return Labels(labels) if isinstance(labels, int) else Labels.of(labels)
