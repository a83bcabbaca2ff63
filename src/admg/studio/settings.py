"""The settings of a job, checked against the limits, and the recipe that they describe."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from admg import samplers
from admg.config import check_value, options, setting
from admg.engine.precision import resolve
from admg.generation import GuideSet, Recipe
from admg.generation.guide_specs import guide_kinds, parse_guide
from admg.generation.labels import choose_labels
from admg.generation.sampler_specs import SAMPLERS

from .catalog import Entry
from .limits import Limits

NO_GUIDANCE, CLASSIFIER = "none", "classifier"
SPACINGS = ("even", "ddim", "trailing", "uniform", "quad", "logsnr", "karras", "tuned")
MAX_SEED = 2**32 - 1


def guidance_choices() -> list[str]:
    """Return the available kinds of guidance."""
    return [NO_GUIDANCE, CLASSIFIER, *guide_kinds()]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that determine the images of a job. `read` creates them from the values of a page.

    model: name of a model in the catalog
    labels: names of labels, which get equal numbers of images; () for the default labels
    num: number of images
    guidance: one of guidance_choices()
    scale: guidance scale
    low: noise level σ below which there is no guidance
    high: noise level σ above which there is no guidance; 0 for no limit
    sampler: name of a sampler
    steps: number of steps
    spacing: spacing of the steps over the noise levels
    eta: η of DDIM, from 0 (deterministic) to 1
    unconditional: if True, only the guide uses the labels
    seed: seed of the noise
    """

    model: str
    labels: tuple[str, ...] = ()
    num: int = 8
    guidance: str = setting(CLASSIFIER)
    scale: float = setting(4.0, min=-100, max=1000)
    low: float = setting(0.0, min=0, max=10_000)
    high: float = setting(0.0, min=0, max=10_000)
    sampler: str = setting("ddim", choices=sorted(SAMPLERS))
    steps: int = 25
    spacing: str = setting("even", choices=SPACINGS)
    eta: float = setting(0.0, min=0, max=1)
    unconditional: bool = False
    seed: int = setting(0, min=0, max=MAX_SEED)

    @property
    def spec(self) -> str:
        """The steps as a respacing of the schedule."""
        return f"{'' if self.spacing == 'even' else self.spacing}{self.steps}"

    @property
    def interval(self) -> tuple[float, float] | None:
        """The range of noise levels with guidance, or None for all."""
        if self.guidance == NO_GUIDANCE or not (self.low or self.high):
            return None
        return self.low, self.high or math.inf

    @property
    def guide_spec(self) -> str:
        """The guide as an argument of `--guide`."""
        return f"{self.guidance}:{number(self.scale)}"

    @property
    def needs_classifier(self) -> bool:
        """Whether the guidance uses the classifier."""
        kind = guide_kinds().get(self.guidance)
        return self.guidance == CLASSIFIER or "classifier" in getattr(kind, "__dataclass_fields__", {})

    def guides(self, entry: Entry) -> GuideSet:
        """Return the guides. Raises ValueError for guidance that needs a classifier if the model has none."""
        if self.guidance == NO_GUIDANCE:
            return GuideSet()
        if self.needs_classifier and entry.classifier is None:
            raise ValueError(f"{entry.name} has no classifier: choose another kind of guidance, or none")
        if self.guidance == CLASSIFIER:
            return GuideSet(entry.classifier, self.scale, interval=self.interval)
        if self.guidance == "classifier-free":
            return GuideSet(cfg=self.scale, interval=self.interval)
        return GuideSet(others=(parse_guide(self.guide_spec, entry.classifier),), interval=self.interval)

    def recipe(self, entry: Entry) -> Recipe:
        """Return the recipe for the images."""
        sampler: Any = self.sampler
        if self.eta:
            sampler = functools.partial(samplers.ddim, eta=self.eta)
        return Recipe(
            guide=self.guides(entry).build(), sampler=sampler, steps=self.spec, seed=self.seed,
            unconditional=self.unconditional, precision=resolve("auto", entry.model.device),
        )  # fmt: skip

    def numbers(self, entry: Entry) -> list[int | None]:
        """Return the number of each image's label. Without `labels`, `admg sample`'s defaults are used.

        Raises ValueError for an unknown label, or for labels that would have no effect.
        """
        chosen, _ = choose_labels(
            entry.model, self.guides(entry).build(), self.typed(entry), self.num, unconditional=self.unconditional,
            seed=self.seed,
        )  # fmt: skip
        return chosen

    def typed(self, entry: Entry) -> list[int | str | None] | None:
        """Return the number of each label of `labels`, None without labels. Raises ValueError for an unknown one."""
        return [entry.labels.parse(name) for name in self.labels] or None


def read(values: Mapping[str, Any], limits: Limits) -> Settings:
    """Return the settings from the values of a page.

    values: values by field name. Whole numbers may be floats, as browsers send them.
    Raises ValueError for other values, with a message that names the setting and what is allowed.
    """
    result: dict[str, Any] = {}
    for option in options(Settings):
        if option.name not in values:
            continue
        value = values[option.name]
        result[option.name] = _labels(value) if option.name == "labels" else _converted(option.name, value, option.type)
        check_value(option.name, result[option.name], option.declared, option.type)
    settings = Settings(**result)
    if settings.guidance not in guidance_choices():
        raise ValueError(f"guidance must be one of {', '.join(guidance_choices())}, got {settings.guidance[:80]!r}")
    if settings.high and settings.low > settings.high:
        raise ValueError(
            f"the lowest noise level of guidance, {settings.low:g}, is above the highest, {settings.high:g}"
        )
    if settings.eta and settings.sampler != "ddim":
        raise ValueError(f"eta applies only to the sampler ddim, not to {settings.sampler}: set it to 0")
    limits.check_images(settings.num)
    limits.check_steps(settings.steps)
    return settings


def whole_number(name: str, value: Any) -> int:
    """Convert a value of a page to an integer. Raises ValueError if it is not a whole number."""
    converted: int = _converted(name, value, int)
    return converted


def real_number(name: str, value: Any) -> float:
    """Convert a value of a page to a float. Raises ValueError if it is not a finite number."""
    converted: float = _converted(name, value, float)
    return converted


def number(value: float) -> str:
    """Format a number as a user would type it.

    >>> number(4.0), number(0.25), number(1e-05)
    ('4', '0.25', '1e-05')
    """
    return repr(float(value)).removesuffix(".0")


def _converted(name: str, value: Any, kind: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"{name} must be on or off, got {_short(value)}")
    if kind is str:
        if isinstance(value, str):
            return value
        raise ValueError(f"{name} must be chosen, got {_short(value)}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a number, got {_short(value)}")
    if kind is int:
        if value != int(value):
            raise ValueError(f"{name} must be a whole number, got {_short(value)}")
        return int(value)
    return float(value)


def _labels(value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value or []
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"labels must be names of labels, got {_short(value)}")
    if len(items) > 1000:
        raise ValueError(f"at most 1,000 labels can be chosen, got {len(items):,}")
    return tuple(items)


def _short(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:80]
