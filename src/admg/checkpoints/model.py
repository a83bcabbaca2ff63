"""Models: a network together with the diffusion process it was trained on and the labels it knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from admg.config import with_fields
from admg.diffusion.config import DiffusionConfig
from admg.diffusion.gaussian import Diffusion, Images, Index, Prediction
from admg.models import NoisyClassifier, SuperResUNet, UNet, UNetConfig
from admg.warn import warn

from . import native, tuned
from .calling import call_network
from .hub import Pretrained
from .labels import Labels
from .networks import (
    NETWORK_KINDS,
    check_classifier,
    check_labels,
    check_null_label,
    our_networks,
    takes_labels,
    unwrapped,
)
from .provenance import label_dropout

SMALL_BATCH = 16  # images that do not fill a GPU
NOT_KNOWN = (
    "it is not known whether this model was ever trained without labels, which unconditional predictions need "
    "(classifier-free guidance, unconditional=True, images without a label)"
)


@dataclass(repr=False)
class Model(Pretrained):
    """A diffusion model: a network, the diffusion process it was trained on, and its labels.

    network: called as `network(x, timesteps)` or `network(x, timesteps, y=labels)` with x (N, C, H, W), timesteps (N,)
        and labels (N,), returns (N, C or 2C, H, W); a network of ours may get one timestep (1,) for all images
    diffusion: how to interpret the network's output; possibly respaced
    shape: (C, H, W) of the images
    labels: labels of the training images
    config: the DiffusionConfig behind `diffusion`; None for a custom process (then the model cannot be saved)
    training: provenance: data, command, seed, metrics; "label_dropout" is the share of images without their label
    given: further arguments of the network at every step, such as `low_res` of an upsampler
    takes_labels: whether the network is called with `y=labels`; None infers it from the network, see
        networks.takes_labels
    null_label: label that a network of your own takes for an image without a label, such as K if its embedding has
        K + 1 rows, or -1; None: such images are passed without `y`, in a call of their own. Networks of ours need none

    Raises ValueError if the model has labels and it cannot be inferred whether the network takes them, if the network
    contradicts `takes_labels`, if it knows fewer labels than there are, or if `null_label` is one of the labels.
    """

    network: nn.Module
    diffusion: Diffusion
    shape: tuple[int, int, int]
    labels: Labels = field(default_factory=lambda: Labels(0))
    config: DiffusionConfig | None = None
    training: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    takes_labels: bool | None = None
    null_label: int | None = None

    def __post_init__(self) -> None:
        check_labels(self.network, self.takes_labels, self.labels.count if self.conditional else 0)
        check_null_label(self.network, self.null_label, self.labels.count, self.conditional)

    def __repr__(self) -> str:
        channels, height, width = self.shape
        about = [self.kind_name, f"{_channels_text(channels)} images of {height}x{width}", _labels_text(self.labels)]
        about += ["conditional" if self.conditional else "unconditional"]
        return f"Model({', '.join([*about, *_network_text(self.network), _process_text(self)])})"

    @property
    def conditional(self) -> bool:
        """Whether the network takes labels: `takes_labels` if it is given, else inferred from the network."""
        if self.takes_labels is not None:
            return self.takes_labels
        inferred = takes_labels(self.network)
        if inferred is None and self.labels.count:
            raise ValueError(
                f"cannot tell whether {type(self.network).__name__} takes labels: pass takes_labels=True to Model if "
                "it is called as network(x, timesteps, y=labels), or takes_labels=False if it takes none"
            )
        return bool(inferred)

    @property
    def label_dropout(self) -> float | None:
        """Share of images that the network was trained on without their label: 0 for never, None if it is unknown."""
        return label_dropout(self.training)

    def check_unconditional(self) -> None:
        """Check that the network has an unconditional prediction, and warn if this is not known.

        Raises ValueError if the network takes labels and has never been trained without them.
        """
        known = self.label_dropout
        if known or not self.conditional:
            return
        if known is None:
            warn(NOT_KNOWN)
            return
        raise ValueError(
            f"{self.training.get('name') or 'this model'} was never trained without labels, so it has no unconditional "
            "prediction (classifier-free guidance, unconditional=True, images without a label): use label dropout"
        )

    @property
    def upsamples(self) -> bool:
        """Whether the network needs a low-resolution image (`low_res`) to start from."""
        return bool(our_networks(self.network, SuperResUNet))

    @property
    def kind_name(self) -> str:
        """`diffusion model` or `upsampler`, for messages."""
        return NETWORK_KINDS["upsampler" if self.upsamples else "diffusion"].title

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.labels.names

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Model:
        """Move the network to a device, in place, and return the model."""
        self.network.to(device)
        return self

    def respace(self, spec: int | str) -> Model:
        """Return the model with fewer steps and the same network; see NoiseSchedule.respace.

        spec: "tuned5" selects the five steps that `admg tune-steps` found for this model
        """
        return with_fields(self, diffusion=self.diffusion.respace(self.explicit(spec)))

    def explicit(self, spec: int | str) -> int | str:
        """Return the steps found for this model for a respacing such as "tuned5", and any other respacing unchanged.

        Raises ValueError if no such number of steps was found.
        """
        return tuned.explicit(spec, self.training, "upsampler" if self.upsamples else "model")

    def predict(self, x: Images, t: Index, y: Tensor | None = None, clip: bool = True) -> Prediction:
        """Return p(x_{t-1} | x_t = x) at step t of `diffusion`.

        y: (N,) labels, if the network is conditional; -1 for an image without a label
        clip: whether to clip the predicted x_0 to [-1, 1]

        Raises ValueError without y if the network was never trained without labels.
        """
        if y is None:
            self.check_unconditional()
        output = self.output(x, self.diffusion.timestep(t, x.device, x.dtype), y, **self.given)
        return self.diffusion.predict(output, x, t, clip=clip)

    def output(self, x: Images, timesteps: Tensor, y: Tensor | None = None, **given: Any) -> Images:
        """Return the output of the network, (N, C or 2C, H, W); see calling.call_network."""
        return call_network(self.network, x, timesteps, y, self.null_label if self.conditional else None, **given)

    def predict_both(self, x: Images, t: Index, y: Tensor) -> tuple[Prediction, Prediction]:
        """Return the predictions with labels y (N,) and without labels, both with x_0 unclipped.

        They come from one call of the network with 2N images where that is faster than two calls.
        """
        if not (one_call_is_faster(x) and isinstance(unwrapped(self.network), UNet)):
            return self.predict(x, t, y, clip=False), self.predict(x, t, clip=False)
        self.check_unconditional()
        given = {name: torch.cat([value, value]) for name, value in self.given.items()}
        labels = torch.cat([y, torch.full_like(y, -1)])
        output = self.network(torch.cat([x, x]), self.diffusion.timestep(t, x.device, x.dtype), **given, y=labels)
        cond, uncond = (self.diffusion.predict(half, x, t, clip=False) for half in output.chunk(2))
        return cond, uncond

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write a native checkpoint. A float16 checkpoint has half the size; loading always returns float32.

        The network may be inside DDP, DataParallel or `torch.compile`. Raises ValueError if it is not a UNet or
        SuperResUNet, or if `config` is None.
        """
        native.save(folder, ("diffusion", "upsampler"), _parts(self), dtype)

    @classmethod
    def load(cls, folder: Path | str) -> Model:
        """Read a native checkpoint, in float32 and eval mode. Raises CheckpointError if it cannot be used."""
        parts = native.load(folder, "diffusion", "upsampler")
        config = cast(UNet, parts.network).config
        return cls(shape=(config.image_channels, config.image_size, config.image_size), **parts.fields())


@dataclass(repr=False)
class Classifier(Pretrained):
    """A noisy classifier p(y | x_t, t): a network, the diffusion process it was trained on, and its labels.

    It is called as `classifier(x, timesteps)` and returns logits (N, K), as any function used for guidance does. Its
    network gets a timestep for each image, (N,); one of ours may get one for all images, (1,).

    Raises ValueError if the network does not take a timestep, or has fewer classes than there are labels.
    """

    network: nn.Module
    diffusion: Diffusion
    labels: Labels
    config: DiffusionConfig | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_classifier(self.network, self.labels.count)

    def __repr__(self) -> str:
        config = getattr(unwrapped(self.network), "config", None)
        about = [self.kind_name]
        if config is not None:
            about += [f"{_channels_text(config.image_channels)} images of {config.image_size}x{config.image_size}"]
        about += [_labels_text(self.labels), *_network_text(self.network), _process_text(self)]
        return f"Classifier({', '.join(about)})"

    @property
    def kind_name(self) -> str:
        """`noisy classifier`, for messages."""
        return NETWORK_KINDS["classifier"].title

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.labels.names

    def __call__(self, x: Images, timesteps: Tensor) -> Tensor:
        ours = not isinstance(self.network, nn.Module) or our_networks(self.network, NoisyClassifier)
        return cast(Tensor, self.network(x, timesteps if ours else timesteps.expand(len(x))))

    def to(self, device: torch.device | str) -> Classifier:
        """Move the network to a device, in place, and return the classifier."""
        self.network.to(device)
        return self

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write a native checkpoint, as Model.save does."""
        native.save(folder, ("classifier",), _parts(self), dtype)

    @classmethod
    def load(cls, folder: Path | str) -> Classifier:
        """Read a native checkpoint, as Model.load does."""
        return cls(**native.load(folder, "classifier").fields())


def one_call_is_faster(x: Images) -> bool:
    """Return whether one network call with twice the images is faster than two: for a small batch on a GPU."""
    return x.is_cuda and len(x) <= SMALL_BATCH


def content_of(model: Model | Classifier) -> dict[str, Any]:
    """Return the content of config.json for a model, without checksums. Raises ValueError if it cannot be saved."""
    return native.with_format(native.content_of(tuple(NETWORK_KINDS), _parts(model)))


def check_shape(model: Model | Classifier) -> None:
    """Raise ValueError unless a model's images have the shape of its network's, since only the latter is stored."""
    config = getattr(unwrapped(model.network), "config", None)
    if isinstance(model, Model) and isinstance(config, UNetConfig):
        own = config.image_channels, config.image_size, config.image_size
        if tuple(model.shape) != own:
            raise ValueError(f"the shape of a model to be stored must be that of its network, {own}, got {model.shape}")


def check_process(model: Model | Classifier) -> None:
    """Raise ValueError unless the process is the one of the model's DiffusionConfig, if any: the latter is stored."""
    if model.config is not None and not model.config.describes(model.diffusion):
        raise ValueError("the model's diffusion process is not the one of its DiffusionConfig, which would be saved")


def _parts(model: Model | Classifier) -> native.Parts:
    check_shape(model)
    check_process(model)
    return native.Parts(unwrapped(model.network), model.diffusion, model.labels, model.config, model.training)


# -- text for repr ----------------------------------------------------------------------------------------------------


def _channels_text(channels: int) -> str:
    return {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")


def _labels_text(labels: Labels) -> str:
    return f"{labels.count} labels" if labels.count else "no labels"


def _network_text(network: nn.Module) -> list[str]:
    """Return the number of parameters, if the network is a module."""
    if not isinstance(network, nn.Module):
        return []
    return [f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters"]


def _process_text(model: Model | Classifier) -> str:
    steps, name = len(model.diffusion), "custom"
    if model.config is not None:
        name = model.config.schedule_name
        if steps != model.config.diffusion_steps:
            return f"{name} schedule, {steps} of {model.config.diffusion_steps} steps"
    return f"{name} schedule, {steps} steps"
