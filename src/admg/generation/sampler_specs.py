"""Samplers by name or by file: "ddim", "unipc", "my_sampler.py:name", and their options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admg import samplers
from admg.config import did_you_mean
from admg.diffusion.gaussian import Images
from admg.samplers import Sampler, Step
from admg.userfile import errors_of, load_object

SAMPLERS: dict[str, Sampler] = {
    name: function for name, function in vars(samplers).items() if inspect.isgeneratorfunction(function)
}
"""The samplers of admg.samplers by name."""
OF_RUN = ("model", "x_T", "y", "guide", "noise_sampler", "unconditional")
"""Arguments that every run passes to its sampler."""


def find_sampler(sampler: str | Sampler) -> Sampler:
    """Return the sampler of a name or of `path/to/file.py:name`; a function is returned as it is.

    Raises ValueError if there is no such sampler.

    >>> find_sampler("ddim").__name__
    'ddim'
    """
    if not isinstance(sampler, str):
        check_set_options(sampler)
        return sampler
    if ".py:" in sampler:
        return load_sampler(sampler)
    if sampler not in SAMPLERS:
        hint = did_you_mean(sampler, SAMPLERS)
        known = f"{', '.join(sorted(SAMPLERS))}, or path/to/file.py:name"
        raise ValueError(f"unknown sampler {sampler!r}: {hint + ' ' if hint else ''}{known}")
    return SAMPLERS[sampler]


def sampler_options(sampler: str | Sampler) -> dict[str, Any]:
    """Return the options that this sampler has and ddpm does not, with their defaults.

    >>> sampler_options("ddim")
    {'eta': 0.0}
    """
    function = find_sampler(sampler)
    if isinstance(function, Watched):
        return sampler_options(function.sampler)
    function = function.function if isinstance(function, UserSampler) else function
    parameters = inspect.signature(function).parameters.values()
    common = inspect.signature(samplers.ddpm).parameters
    return {
        p.name: p.default
        for p in parameters
        if p.name not in common and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }


def parse_sampler_options(sampler: str | Sampler, given: Sequence[str]) -> dict[str, Any]:
    """Return options such as `order=3` by name, with values of the type of the default.

    Raises ValueError if the sampler does not have the option, or if the value has another type.
    """
    known, options = sampler_options(sampler), {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise ValueError(f"sampler option {text}: {sampler} has no option {name!r} (available: {allowed})")
        if name in options:
            raise ValueError(f"sampler option {text}: {name} is given twice")
        kind = type(known[name])
        try:
            options[name] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            expected = {bool: "true or false", int: "a whole number"}.get(kind, "a number")
            raise ValueError(f"sampler option {text}: {name} must be {expected}") from None
    return options


def with_options(sampler: str | Sampler, options: Mapping[str, Any]) -> Sampler:
    """Return the sampler with these options set.

    >>> sampler = with_options("ddim", {"eta": 1.0})
    """
    function = find_sampler(sampler)
    return functools.partial(function, **options) if options else function


def sampler_name(sampler: str | Sampler) -> str:
    """Return the name of a sampler, without its options, as titles show it."""
    if isinstance(sampler, str):
        return sampler
    if isinstance(sampler, functools.partial):
        return sampler_name(sampler.func)
    if isinstance(sampler, Watched):
        return sampler_name(sampler.sampler)
    if isinstance(sampler, UserSampler):
        return sampler.name
    return str(getattr(sampler, "__name__", type(sampler).__name__))


def is_users(sampler: str | Sampler) -> bool:
    """Whether a sampler is a user's own, and not one of admg, apart from its options."""
    if isinstance(sampler, functools.partial):
        return is_users(sampler.func)
    if isinstance(sampler, Watched):
        return is_users(sampler.sampler)
    if isinstance(sampler, str):
        return ".py:" in sampler
    return isinstance(sampler, UserSampler) or not str(getattr(sampler, "__module__", "")).startswith("admg.")


def set_options(sampler: str | Sampler) -> dict[str, Any]:
    """Return the options that functools.partial has set on a sampler."""
    if isinstance(sampler, Watched):
        return set_options(sampler.sampler)
    if not isinstance(sampler, functools.partial):
        return {}
    return {**set_options(sampler.func), **sampler.keywords}


def check_set_options(sampler: Sampler) -> None:
    """Raise ValueError if functools.partial has set an argument of the run on a sampler, which each run replaces."""
    if replaced := [name for name in set_options(sampler) if name in OF_RUN]:
        raise ValueError(
            f"{replaced[0]} cannot be set on a sampler by functools.partial: pass it to sample(), or call the sampler "
            f"yourself"
        )


@dataclass(frozen=True)
class UserSampler:
    """A sampler from a user's file, whose errors name the file and the line.

    function: called as admg.samplers.ddpm is
    digest: checksum of the file
    """

    function: Sampler
    path: Path
    name: str
    digest: str

    def __call__(self, model: Any, x_T: Images, **options: Any) -> Iterator[Step]:
        with errors_of(f"{self.path}:{self.name}"):
            yield from self.function(model, x_T, **options)


@dataclass(eq=False)
class Watched:
    """A sampler that calls a function with each step of another one: to show, record or stop the sampling.

    sampler: name of a sampler, or a sampler
    on_step: called as on_step(step, images) after each step, where images is the range of the batch's indices in this
        call; an exception that it raises ends the sampling. The tensors of a step may be overwritten later: copy those
        that you keep
    done: number of finished images; the next batch begins there. Use a new object for each call
    Raises ValueError for an unknown sampler.

    >>> import admg
    >>> watched = Watched("ddim", lambda step, images: print(step.t, tuple(step.x0.shape), images))
    >>> samples = admg.sample("fashion-mnist", "coat", num=2, sampler=watched, steps=2, progress=False)
    999 (2, 1, 32, 32) range(0, 2)
    0 (2, 1, 32, 32) range(0, 2)
    """

    sampler: str | Sampler
    on_step: Callable[[Step, range], Any]
    done: int = 0

    def __post_init__(self) -> None:
        find_sampler(self.sampler)

    def __call__(self, model: Any, x_T: Images, **options: Any) -> Iterator[Step]:
        images = range(self.done, self.done + len(x_T))
        for step in find_sampler(self.sampler)(model, x_T, **options):
            self.on_step(step, images)
            yield step
        self.done = images.stop  # only now: a batch that ran out of memory is repeated in halves


def load_sampler(spec: str) -> UserSampler:
    """Return the sampler called `name` in `path/to/file.py:name`. Raises ValueError if it cannot be loaded."""
    function, digest = load_object(spec)
    path, _, name = spec.rpartition(":")
    if isinstance(function, type) or not callable(function):
        raise ValueError(f"{spec} is not a sampler: expected a function (model, x_T, **options) that yields Steps")
    return UserSampler(function, Path(path).expanduser(), name, digest)
