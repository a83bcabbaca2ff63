"""Identities of models, guides and samplers in JSON types, which determine whether a run may be continued.

Networks are identified by a fingerprint of their weights, dataclasses by their fields, and functions and classes by
their qualified name; users' own functions and classes also by their source and the values that their code captures.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import re
import secrets
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.networks import hooks_of, is_as_configured, unwrapped
from admg.checkpoints.weights import digest_of
from admg.diffusion import Diffusion

from .guide_specs import UserGuide
from .run_record import UNIDENTIFIED
from .sampler_specs import SAMPLERS, UserSampler, Watched

OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes that every torch module has."""
INSTALLED = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib"))


_LENIENT: ContextVar[bool] = ContextVar("_LENIENT", default=False)
"""Whether objects whose state cannot be read are described by their type instead of raising UnidentifiedError."""


@contextmanager
def _leniently() -> Iterator[None]:
    token = _LENIENT.set(True)
    try:
        yield
    finally:
        _LENIENT.reset(token)


class UnidentifiedError(ValueError):
    """The object cannot be identified: a later run could not check that it is the same."""


def identify(value: Any) -> Any:
    """Return the identity of a guide, a sampler or a part of one, in JSON types.

    Equal identities mean equal images. Raises UnidentifiedError for objects whose state cannot be read.

    >>> from admg import guidance
    >>> identify(guidance.ClassifierFreeGuidance(3.0))
    {'type': 'ClassifierFreeGuidance', 'scale': 3.0}
    """
    return _identify(value, ())


def identify_or_mark(value: Any) -> Any:
    """Return identify(value), or a unique mark if it cannot be identified: a run with it can never be continued."""
    try:
        return identify(value)
    except UnidentifiedError as error:
        return {UNIDENTIFIED: f"it holds {error} (begun as {secrets.token_hex(4)})"}


def identity_of(value: Any) -> str:
    """Return identify(value) as text, to use as the key of a cache.

    It is the same in every process: parts whose state cannot be read are described by their type alone.
    """
    with _leniently():
        return json.dumps(identify(value), sort_keys=True)


def identify_sampler(sampler: Any) -> Any:
    """Return the name of a sampler of admg without its options, and identify(sampler) for any other."""
    if isinstance(sampler, str):
        return sampler
    if isinstance(sampler, functools.partial) and not sampler.args:
        return identify_sampler(sampler.func)
    if isinstance(sampler, Watched):  # watching does not change images
        return identify_sampler(sampler.sampler)
    name = next((name for name, function in SAMPLERS.items() if function is sampler), None)
    return name or identify_or_mark(sampler)


def network_record(part: Model | Classifier, name: str = "") -> dict[str, Any]:
    """Return the readable name of a model, the fingerprint of its weights, and its deviations from its config.

    These are a network that its config does not describe, a diffusion process other than that of its DiffusionConfig,
    conditioning arguments, and the class and the fields of a user's own kind of model.
    """
    record: dict[str, Any] = {"loaded_as": name or part.training.get("name"), "weights": fingerprint(part)}
    record |= _network(part.network)
    if not is_ours(type(part)):
        known = {field.name for kind in (Model, Classifier) for field in dataclasses.fields(kind)}
        own = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.name not in known}
        record["class"] = _named(type(part)) | identify(own)
    process = _process(part.diffusion)
    if part.config is None or process != _process(part.config.build()):
        record["process"] = process
    if (null_label := getattr(part, "null_label", None)) is not None:
        record["null_label"] = null_label
    if given := getattr(part, "given", None):
        record["given"] = identify(given)
    return record


def _process(diffusion: Diffusion) -> dict[str, Any]:
    schedule = diffusion.schedule
    arrays = {"betas": identify(schedule.betas), "timesteps": identify(schedule.timesteps)}
    return {"predicts": diffusion.predicts, "variance": diffusion.variance, **arrays}


def fingerprint(part: Model | Classifier | nn.Module) -> str:
    """Return a checksum of the architecture and of all weights."""
    network = part if isinstance(part, nn.Module) else part.network
    config = None if isinstance(part, nn.Module) else part.config
    weights = digest_of(network) if isinstance(network, nn.Module) else ""
    return _checksum(repr((config, getattr(network, "config", None), weights)).encode())


def _identify(value: Any, path: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in path:  # an object that refers to itself
        return "recursive"
    path = (*path, id(value))
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _array(value)
    if isinstance(value, Model | Classifier):
        return network_record(value)
    if isinstance(value, nn.Module):
        return _module(value, path)
    if isinstance(value, UserGuide | UserSampler):
        return {"file": f"{value.path.name}:{value.name}", "checksum": value.digest}
    if isinstance(value, Mapping):
        return {str(key): _identify(item, path) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_identify(item, path) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_identify(item, path) for item in value), key=repr)
    if isinstance(value, Path | torch.dtype | torch.device | range | complex | slice | re.Pattern | np.dtype):
        return str(value)
    if isinstance(value, bytes):
        return {"bytes": _checksum(value)}
    if _qualified(type(value)) in ("types.SimpleNamespace", "argparse.Namespace"):
        return {"namespace": {key: _identify(item, path) for key, item in vars(value).items()}}
    if isinstance(value, functools.partial):
        return {"partial": [_identify(part, path) for part in (value.func, value.args, value.keywords)]}
    if isinstance(value, MethodType):
        return {"method": value.__name__, "of": _identify(value.__self__, path)}
    if isinstance(value, FunctionType):
        return _function(value, path)
    if isinstance(value, type):
        return _named(value, path[:-1])
    if not hasattr(value, "__dict__") and inspect.isroutine(value):  # written in C
        return {"function": _qualified(value)}
    return _instance(value, path)


def _array(value: Any) -> dict[str, Any]:
    array = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    data = array.contiguous().flatten().view(torch.uint8) if array.numel() else array
    return {"array": _checksum(data.numpy().tobytes()), "shape": list(array.shape), "dtype": str(array.dtype)}


def _instance(value: Any, path: tuple[int, ...]) -> dict[str, Any]:
    """Identify an object by its class and by its fields, or by its attributes if it is not a dataclass.

    Objects of installed classes that are not callable, such as open files, have state that attributes do not show.
    """
    kind = _named(type(value), path)
    users = not is_ours(type(value)) and not is_installed(type(value))
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        fields |= attributes_of(value) if users else {}
    elif users or (callable(value) and hasattr(value, "__dict__")):
        fields = attributes_of(value)
    elif _LENIENT.get():
        return kind
    else:
        raise UnidentifiedError(f"an object of type {type(value).__qualname__}")
    return kind | {name: _identify(item, path) for name, item in fields.items()}


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object by name, except values that it has cached."""
    kept = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                kept[name] = getattr(value, name)
    cached = functools.cached_property
    return {k: v for k, v in kept.items() if not isinstance(inspect.getattr_static(type(value), k, None), cached)}


def _module(module: nn.Module, path: tuple[int, ...]) -> dict[str, Any]:
    """Identify a network by its class, its weights, and what else determines its outputs."""
    return {"type": type(module).__qualname__, "weights": fingerprint(module)} | _network(module, path)


def _network(network: Any, path: tuple[int, ...] = ()) -> dict[str, Any]:
    """Return what determines the outputs of a network besides its weights; {} for one of ours that matches its config.

    parts: code and attributes of the modules of users' own classes
    layers: checksum of the classes and settings of all other modules, and of all hooks
    """
    if not isinstance(network, nn.Module):
        return {"function": identify_or_mark(network)}
    network = unwrapped(network)
    if is_as_configured(network):
        return {}
    parts: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    for name, part in network.named_modules():
        settings = {key: value for key, value in vars(part).items() if key not in OF_MODULES}
        with _leniently():
            found = _named(type(part), path) | {key: _identify(value, path) for key, value in settings.items()}
            hooks = [_identify(hook, path) for hook in hooks_of(part)]
        own = not is_ours(type(part)) and not is_installed(type(part))
        (parts if own else layers)[name or "network"] = found | ({"hooks": hooks} if hooks else {})
    identity = {"layers": _checksum(json.dumps(layers, sort_keys=True).encode())}
    return identity | ({"parts": parts} if parts else {})


def _named(kind: type, path: tuple[int, ...] = ()) -> dict[str, Any]:
    """Describe a class by its name, a user's own also by its source, its captured values and its bases."""
    if is_ours(kind):
        return {"type": kind.__qualname__}
    if is_installed(kind):
        return {"type": _qualified(kind)}
    identity = {"type": kind.__qualname__, "source": _checksum(_source(kind).encode())}
    if id(kind) in path:  # its code names the class itself
        return identity
    path = (*path, id(kind))
    bases = [_named(base, path) for base in kind.__bases__ if not is_ours(base) and not is_installed(base)]
    values: dict[str, Any] = {}
    with _leniently():
        for name, method in methods_of(kind):
            if own := {key: _identify(value, path) for key, value in captured(method)}:
                values[name] = own
        values |= {name: _identify(value, path) for name, value in class_values(kind)}
    return identity | ({"bases": bases} if bases else {}) | ({"captured": values} if values else {})


def class_values(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the attributes in the body of a class that are values, which a program may change."""
    for name, value in vars(kind).items():
        described = hasattr(type(value), "__get__")  # methods, properties, slots
        if not (name.startswith(("__", "_abc_")) or described or isinstance(value, type)):
            yield name, value


def methods_of(kind: type) -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions defined in the body of a class, including those of properties and static methods."""
    for name, value in vars(kind).items():
        for function in (value, *(getattr(value, key, None) for key in ("__func__", "fget", "func"))):
            written = inspect.unwrap(function) if isinstance(function, FunctionType) else None
            if isinstance(written, FunctionType) and written.__code__.co_filename != "<string>":  # dataclass's
                yield name, written


def _function(function: FunctionType, path: tuple[int, ...]) -> dict[str, Any]:
    """Describe a function by name, a user's own also by its source, its defaults and its captured values."""
    if is_ours(function) or is_installed(function):
        return {"function": _qualified(function)}
    values = {name: _identify(value, path) for name, value in captured(function)}
    return {"function": function.__qualname__, "source": _checksum(_source(function).encode())} | (
        {"captured": values} if values else {}
    )


def captured(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the closure, the defaults, and the global variables that a function uses, except loggers.

    Of a user's module, they are the variables that the function may use: settings.scale, but not those of torch.
    """
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        yield name, cell.cell_contents
    yield from enumerate_defaults(function)
    names = sorted(_names(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType):
            users = value.__name__.partition(".")[0] != "admg" and not is_installed(value)
            inner = [key for key in names if users and key in vars(value)]
            yield from ((f"{name}.{key}", vars(value)[key]) for key in inner if not _is_plain(vars(value)[key]))
        elif value is not None and not isinstance(value, logging.Logger):
            yield name, value


def _is_plain(value: Any) -> bool:
    """Whether a variable of a module is of no interest: a module or a logger."""
    return isinstance(value, ModuleType | logging.Logger)


def enumerate_defaults(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the default values of a function's parameters by name."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is not parameter.empty:
            yield name, parameter.default


def _names(code: CodeType) -> set[str]:
    """Return the names of global variables and attributes in the code and in the functions within it."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _source(thing: Any) -> str:
    """Return the source of a class or function, or the bytecode of a function typed into an interpreter."""
    try:
        source = textwrap.dedent(inspect.getsource(thing))
        several = source.count("lambda") > 1 and isinstance(thing, FunctionType) and thing.__name__ == "<lambda>"
        return source + (_bytecode(thing.__code__) if several else "")  # getsource returns all lambdas of a line
    except (OSError, TypeError):
        if isinstance(thing, FunctionType):
            return _bytecode(thing.__code__)
        if _LENIENT.get():
            return ""
        raise UnidentifiedError(f"{thing.__qualname__}, whose source cannot be read") from None


def _bytecode(code: CodeType) -> str:
    constants = [_bytecode(part) if isinstance(part, CodeType) else repr(part) for part in code.co_consts]
    return f"{code.co_code.hex()} {constants} {code.co_names}"


def is_ours(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").partition(".")[0] == "admg"


def is_installed(thing: Any) -> bool:
    """Whether a class or function belongs to Python or to an installed package."""
    try:
        file = inspect.getsourcefile(thing) or ""
    except TypeError:  # built in
        return True
    return file.startswith(INSTALLED) or file.startswith("<frozen")


def _qualified(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', getattr(thing, '__name__', ''))}"


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
