"""Find the weights of a network in checkpoints of training code: nested dictionaries, prefixes, averages, buffers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from admg.checkpoints import pickles
from admg.checkpoints.weights import CheckpointError, Shapes, shapes_in

DEPTH = 5  # of nested dictionaries that are searched
FIRST = "input_blocks.0.0.weight"
"""A parameter that each of our networks has. What stands before it is the prefix."""
WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts of names that torch.compile, DDP, FSDP and activation checkpointing add anywhere."""
BUFFERS = re.compile(
    r"(log_|sqrt_)?((recip|recipm1|one_minus)_)?(betas|alphas)(_cumprod)?(_prev|_next)?|posterior_\w+|lvlb_weights|"
    r"logvar|(p2_)?loss_weights?|snr|scale_factor|num_timesteps|timestep_map|n_averaged|decay|num_updates|initted|step"
)
"""Buffers of processes and averages: of latent-diffusion, denoising-diffusion-pytorch and torch.optim.swa_utils."""
AVERAGE = re.compile(r"(?<![a-z])(ema|swa|avg|average|averaged|shadow)(?![a-z])|EMA|(?<=[a-z])Ema(?![a-z])")
RAW = re.compile(r"(?<![a-z])online(?![a-z])")  # denoising-diffusion-pytorch has online_model beside ema_model
RATE = re.compile(r"(?<!\d)0\.\d+|(?<=_)\.\d+")
"""The rate of an average in its key, as in ema_0.9999; not a position in a list, as in ema.1."""
LATENT = "first_stage_model."


@dataclass(frozen=True)
class Weights:
    """The weights of one network in a checkpoint.

    state: tensors by the network's own names
    where: keys and prefix of their position; empty if the checkpoint holds nothing else
    average: whether they are an average over training (EMA)
    betas: β_t of the process, if the checkpoint holds them
    instead_of: where other weights of the same network are, to which these were preferred
    unread: where an average is that could not be read
    """

    state: dict[str, Tensor]
    where: str = ""
    average: bool = False
    betas: Tensor | None = None
    instead_of: tuple[str, ...] = ()
    unread: str = ""


def find(content: Any, fits: Callable[[Shapes], bool] = lambda shapes: True) -> Weights | None:
    """Return the weights of a network, or None if there are none.

    fits: function of shapes that chooses among the weights of several networks

    Averaged weights are preferred to others, and of several averages the one with the highest rate in its name.

    Raises CheckpointError if several weights differ and none is preferred, or if the network denoises latents.
    """
    candidates = [weights for where, node in _dictionaries(content) for weights in _in_dictionary(where, node)]
    candidates += [average for weights in candidates for average in _without_names(content, weights)]
    if len(candidates) > 1:
        candidates = [weights for weights in candidates if fits(shapes_in(weights.state))] or candidates
    if not candidates:
        return None
    best = max(map(_rank, candidates))
    chosen, *others = (weights for weights in candidates if _rank(weights) == best)
    if any(not _same(chosen.state, other.state) for other in others):
        listed = ", ".join(repr(weights.where) for weights in (chosen, *others))
        raise CheckpointError(f"holds the weights of several networks, under {listed}: save one of them alone")
    instead_of = tuple(dict.fromkeys(weights.where for weights in candidates if _rank(weights) != best))
    return replace(chosen, instead_of=instead_of, unread="" if chosen.average else _unread_average(content))


def python_objects(content: Any) -> list[str]:
    """Return the names of the classes and functions that the content holds an Inert for."""
    return list(dict.fromkeys(pickles.qualified_name(v) for _, v in _values(content) if isinstance(v, pickles.Inert)))


def is_average(where: str) -> bool:
    """Return whether keys or a prefix name averaged weights: ema, model_ema, params_ema, ema_state_dict, ..."""
    return bool(AVERAGE.search(where)) and not RAW.search(where)


def _rank(weights: Weights) -> tuple[bool, float]:
    """Return a sort key: averages are preferred, and high rates to low ones."""
    rates = RATE.findall(weights.where) if weights.average else []
    return weights.average, float(rates[-1]) if rates else 0.0


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- walking through the content --------------------------------------------------------------------------------------


def _values(
    content: Any, where: str = "", depth: int = DEPTH, seen: set[int] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield every value with the keys that lead to it. Each container is visited once; optimizers are left out."""
    seen = set() if seen is None else seen
    yield where, content
    if depth == 0 or id(content) in seen or not isinstance(content, dict | list | tuple):
        return
    seen.add(id(content))
    for key, value in dict.items(content) if isinstance(content, dict) else enumerate(content):
        if not isinstance(value, Tensor) and not str(key).startswith("optim"):
            yield from _values(value, _joined(where, str(key)), depth - 1, seen)


def _joined(*parts: str) -> str:
    return ".".join(part.removesuffix(".") for part in parts if part)


def _dictionaries(content: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the tensors of every dictionary by their names."""
    for where, value in _values(content):
        if isinstance(value, dict):
            yield where, tensors_in(value)


def _in_dictionary(where: str, tensors: dict[str, Tensor]) -> Iterator[Weights]:
    """Yield the weights of each network among these tensors: those of each prefix, and averages beside them."""
    prefixes = sorted({name[: name.index("input_blocks.")] for name in tensors if _plain(name).endswith(FIRST)})
    if prefixes and any(name.startswith(LATENT) for name in tensors):
        raise CheckpointError(
            f"is a latent diffusion model: its network denoises the latents of an autoencoder ({LATENT}*), not pixels"
        )
    betas = next((v for name, v in tensors.items() if name.rpartition(".")[2] == "betas" and v.ndim == 1), None)
    for prefix in prefixes:
        inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        own = {name: v for name, v in tensors.items() if name.startswith(prefix) and not name.startswith(inner)}
        state = {_plain(name.removeprefix(prefix)): value for name, value in own.items() if not _is_buffer(name)}
        path = _joined(where, prefix)
        average = is_average(path) or f"{prefix.removesuffix('module.')}n_averaged" in tensors
        yield Weights(state, path, average, betas)
        yield from _without_dots(where, tensors, prefix, state, betas)


def tensors_in(content: dict[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a dictionary by their names, without gradients and without attributes that a file set."""
    named = ((name, value) for name, value in dict.items(content) if isinstance(name, str))
    return {name: Tensor.detach(value) for name, value in named if isinstance(value, Tensor)}


def _plain(name: str) -> str:
    """Return the name without the parts that wrappers add, at its beginning and within."""
    for part in WRAPPERS:
        name = name.replace(f".{part}", ".").removeprefix(part)
    return name


def _is_buffer(name: str) -> bool:
    """Return whether this is a buffer of a diffusion process or an average, and not a parameter of our networks."""
    return BUFFERS.fullmatch(name.rpartition(".")[2]) is not None


# -- averages in other forms -------------------------------------------------------------------------------------------


def _without_dots(
    where: str, tensors: dict[str, Tensor], prefix: str, state: dict[str, Tensor], betas: Tensor | None
) -> Iterator[Weights]:
    """Yield the average that latent-diffusion's LitEma stores beside weights, in names without dots.

    LitEma(model) keeps `diffusion_model.out.0.weight` as `model_ema.diffusion_modelout0weight`.
    """
    parts = prefix.split(".")[:-1]
    for outer in {
        name[: name.index(".") + 1] for name in tensors if "." in name and AVERAGE.search(name.split(".")[0])
    }:
        for i in range(len(parts) + 1):
            stored = {name: f"{outer}{''.join(parts[i:])}{name.replace('.', '')}" for name in state}
            if len(set(stored.values())) == len(state) and tensors.keys() >= set(stored.values()):
                average = {name: tensors[other] for name, other in stored.items()}
                yield Weights(average, _joined(where, outer), True, betas)
                break


def _without_names(content: Any, weights: Weights) -> Iterator[Weights]:
    """Yield averages that are lists of tensors in the order of the weights (`shadow_params` of torch_ema)."""
    for where, value in _values(content):
        if is_average(where) and _is_list_of_tensors(value):
            state = dict(zip(weights.state, map(Tensor.detach, value)))
            if len(value) == len(weights.state) and shapes_in(state) == shapes_in(weights.state):
                yield Weights(state, where, True, weights.betas)


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, Tensor) for v in value)


def _unread_average(content: Any) -> str:
    """Return the position of an average of an unsupported form in the content, or ""."""
    for where, value in _values(content):
        if is_average(where) and (_is_list_of_tensors(value) or isinstance(value, pickles.Inert)):
            return where
    return ""
