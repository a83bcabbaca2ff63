"""Fill a network with the weights of another one that has other labels, channels or image sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from admg.models import ClassifierConfig, UNetConfig
from admg.warn import warn

from .initial import Architecture, Initial
from .labels import Labels
from .weights import CheckpointError, difference, shapes_in

FIRST, LAST = "input_blocks.0.0.weight", ("out.2.weight", "out.2.bias")
LABELS, LEVEL, POSITIONS = "label_emb.weight", "level_embed.", "out.2.positional_embedding"
HEADS = {"attention": "out.2.c_proj", "adaptive": "out.3", "spatial": "out.2", "spatial_v2": "out.3"}
"""Last layer of a classifier, with a row for each label, by its pool."""


@dataclass
class Transfer:
    """The result of a transfer of weights.

    kept: number of unchanged tensors
    remade: how each of the others was made
    dropped: tensors without a counterpart in the network
    """

    kept: int = 0
    remade: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the result in JSON types."""
        return {"kept": self.kept, "remade": self.remade, "dropped": self.dropped}


def initialisation_text(init: Mapping[str, Any]) -> str:
    """Return one line about the transfer to a run, from the entry "init" of its provenance; "" if that has none."""
    start = init.get("start")
    if not start:
        return ""
    remade = "; ".join(f"{name} ({how})" for name, how in start["remade"].items())
    dropped = ", ".join(start["dropped"])
    return f"started from {init['model']}: kept {start['kept']} tensors, remade {remade or 'none'}, dropped " + (
        dropped or "none"
    )


def transfer(initial: Initial, network: nn.Module, labels: Labels) -> Transfer:
    """Fill a network with the weights of a model of the same kind, and return a record of the transfer.

    Rows of labels are matched by name. Labels without a match start from the mean of all rows, or from 0 if the model
    has no labels. Between 1 and C channels, a grey image is treated as the mean of the C channels: from 1 to C, the
    first layer gives each channel 1/C of its weight and the last layer repeats its channel; from C to 1, the first
    layer adds its weights over the channels and the last layer averages its channels. For any other change of the
    number of channels, both layers are new.

    Raises CheckpointError if names or shapes differ in another way.
    """
    ours, theirs, done = network.state_dict(), initial.state, Transfer()
    config = cast(Architecture, network.config)
    rows = matched(labels, initial.labels)
    if rows and initial.takes_labels and not any(row is not None for row in rows) and in_order(labels, initial):
        rows = list(range(labels.count))
        numbers = [int(name) for name in labels.names if name.isdecimal()]
        note = f" ({', '.join(labels.names[:4])}, ...)" if numbers != sorted(numbers) else ""
        warn(f"assuming that the labels of {initial.name} are those of this run, in the same order{note}")
    new: dict[str, Tensor] = {}
    for name, value in ours.items():
        how = _remake(name, config, initial.architecture, rows)
        old = theirs.get(name)
        if how is not None and (found := how(value, None if old is None else old.to(value))) is not None:
            new[name], done.remade[name] = found
        elif old is not None and old.shape == value.shape:
            new[name] = old.to(value)
            done.kept += 1
        else:
            raise _misfit(initial, ours)
    done.dropped = [name for name in theirs if name not in ours]
    if any(name != LABELS and not name.startswith(LEVEL) for name in done.dropped):
        raise _misfit(initial, ours)
    network.load_state_dict(new)
    return done


def _misfit(initial: Initial, ours: Mapping[str, Tensor]) -> CheckpointError:
    differs = difference(shapes_in(dict(ours)), shapes_in(dict(initial.state)))
    return CheckpointError(f"{initial.name} does not fit this network: {differs}")


Remake = Callable[[Tensor, Tensor | None], tuple[Tensor, str] | None]
"""(new tensor at random, old tensor) -> the tensor and how it was made; None to keep the old one."""


def _remake(name: str, config: Architecture, theirs: Architecture, rows: Sequence[int | None]) -> Remake | None:
    """Return how a tensor is remade, None for one that is kept."""
    if name == LABELS or (isinstance(config, ClassifierConfig) and name.startswith(HEADS[config.pool] + ".")):
        return lambda new, old: _relabelled(new, old, rows)
    if name.startswith(LEVEL):
        return lambda new, old: (new, "new") if old is None else None
    if name == POSITIONS:
        return _resized
    channels = theirs.image_channels, config.image_channels
    if channels[0] == channels[1]:
        return None
    if name == FIRST:
        return lambda new, old: _with_inputs(new, old, *channels)
    same = isinstance(config, UNetConfig) and isinstance(theirs, UNetConfig)
    if same and name in LAST and config.learn_variance == theirs.learn_variance:  # type: ignore[union-attr]
        return lambda new, old: _with_outputs(new, old, *channels)
    return None


# -- labels ----------------------------------------------------------------------------------------------------------


def matched(ours: Labels, theirs: Labels) -> list[int | None]:
    """Return for each of our labels the number of the other's label with this name, or None.

    A name is matched exactly, or else in another case or as an alias, if that is one label only.
    """
    exact = _unambiguous((name,) for name in theirs.names)
    folded = _unambiguous((name.lower(),) for name in theirs.names)
    aliases = _unambiguous(theirs.aliases)
    names = ours.names or ("",) * ours.count
    return [exact.get(name, folded.get(name.lower(), aliases.get(name.lower()))) for name in names]


def _unambiguous(texts: Iterable[Iterable[str]]) -> dict[str, int]:
    """Return the number of the label that has a text, for texts of one label only."""
    listed = [(text, number) for number, own in enumerate(texts) for text in set(own)]
    counts = Counter(text for text, _ in listed)
    return {text: number for text, number in listed if counts[text] == 1}


def in_order(labels: Labels, initial: Initial) -> bool:
    """Whether labels without a common name may be equal: equally many, and not known by name in both."""
    unnamed = initial.by_number or not (labels.names and initial.labels.names)
    return unnamed and labels.count == initial.labels.count


def _relabelled(new: Tensor, old: Tensor | None, rows: Sequence[int | None]) -> tuple[Tensor, str] | None:
    if old is None or not len(old):
        return torch.zeros_like(new), f"{len(new)} new labels from 0"
    if list(rows) == list(range(len(old))):
        return None
    mean = old.mean(0)
    matched = sum(row is not None for row in rows)
    text = f"{matched} of {len(rows)} labels by name" + ("" if matched == len(rows) else ", the others from the mean")
    return torch.stack([mean if row is None else old[row] for row in rows]), text


# -- images ----------------------------------------------------------------------------------------------------------


def _resized(new: Tensor, old: Tensor | None) -> tuple[Tensor, str] | None:
    """Resize the positions of an attention pool (C, 1 + S²), the first of which is the mean's."""
    if old is None or old.shape == new.shape:
        return None
    sides = [round((tensor.shape[1] - 1) ** 0.5) for tensor in (old, new)]
    grid = F.interpolate(old[None, :, 1:].reshape(1, -1, sides[0], sides[0]), sides[1], mode="bilinear")
    return torch.cat([old[:, :1], grid[0].flatten(1)], dim=1), f"{sides[0]} to {sides[1]} positions"


def _with_inputs(new: Tensor, old: Tensor | None, channels: int, wanted: int) -> tuple[Tensor, str] | None:
    """Remake the weight (K, G·C, 3, 3) of the first layer, for G images of C channels."""
    if old is None:
        return None
    images = old.reshape(len(old), -1, channels, *old.shape[2:])
    if channels == 1:
        images = (images / wanted).expand(-1, -1, wanted, -1, -1)
    elif wanted == 1:
        images = images.sum(2, keepdim=True)
    else:
        return new, f"new for {wanted} channels"
    return images.flatten(1, 2), f"{channels} to {wanted} channels"


def _with_outputs(new: Tensor, old: Tensor | None, channels: int, wanted: int) -> tuple[Tensor, str] | None:
    """Remake the weight (G·C, K, 3, 3) or the bias (G·C,) of the last layer, of a prediction and a variance."""
    if old is None:
        return None
    images = old.reshape(-1, channels, *old.shape[1:])
    if channels == 1:
        images = images.expand(-1, wanted, *[-1] * (old.ndim - 1))
    elif wanted == 1:
        images = images.mean(1, keepdim=True)
    else:
        return new, f"new for {wanted} channels"
    return images.flatten(0, 1), f"{channels} to {wanted} channels"
