"""The cells of a sweep: combinations of samplers, steps and guides."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from admg import guidance
from admg.checkpoints import loading
from admg.checkpoints.model import Classifier, Model
from admg.generation.guide_specs import GuideSet, guide_title, load_guides, parse_interval
from admg.generation.sampler_specs import find_sampler, sampler_name, set_options
from admg.guidance import Guide
from admg.samplers import Sampler

from .report import MetricValue

SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
STEPS = "25"


@dataclass(frozen=True)
class Cell:
    """One combination of a sweep.

    sampler, steps: name of the sampler, and the respacing of the schedule
    scale: guidance scale of the classifier, or None if it is not an axis of the sweep
    cfg: guidance scale of classifier-free guidance, or None if it is not an axis of the sweep
    guide: name of the guide, or "" if guides differ only in scale and cfg
    """

    sampler: str
    steps: str
    scale: float | None = None
    cfg: float | None = None
    guide: str = ""

    @property
    def name(self) -> str:
        """The name of its folder: `ddim-25-scale-4`."""
        parts = [self.sampler, self.steps, *(f"{key}-{number(value)}" for key, value in self.scales.items())]
        return "-".join(parts + ([re.sub(r"[^\w.+-]+", "-", self.guide)] if self.guide else []))

    @property
    def title(self) -> str:
        """The cell in words: `ddim 25, scale 4`."""
        scales = (f"{key} {number(value)}" for key, value in self.scales.items())
        return ", ".join([f"{self.sampler} {self.steps}", *scales, *([self.guide] if self.guide else [])])

    @property
    def scales(self) -> dict[str, float]:
        """The guidance scales of the axes, by name."""
        return {key: value for key, value in (("scale", self.scale), ("cfg", self.cfg)) if value is not None}


@dataclass(frozen=True)
class Row:
    """The result of a cell.

    cell: the cell
    guidance: kinds of guidance, such as "classifier + classifier-free"
    num: number of samples
    values: values of the metrics
    seconds: seconds per image, or None if unknown
    """

    cell: Cell
    guidance: str
    num: int
    values: Sequence[MetricValue]
    seconds: float | None = None

    def get(self, metric: str) -> MetricValue | None:
        """Return the value of a metric, or None."""
        return next((value for value in self.values if value.metric == metric), None)

    def __getitem__(self, metric: str) -> float:
        """Return the value of a metric as a number. Raises KeyError if it is missing."""
        value = self.get(metric)
        if value is None:
            raise KeyError(metric)
        return value.value


@dataclass(frozen=True)
class SweepGuide:
    """A guide of a sweep with its position on the axes; see Cell."""

    guide: Guide | None
    scale: float | None = None
    cfg: float | None = None
    name: str = ""


def number(value: float) -> str:
    """Return the shortest text that distinguishes a number from all others."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def named_guides(guides: Sequence[Guide | None] | Mapping[str, Guide | None]) -> list[SweepGuide]:
    """Return guides with names: the keys, or else short descriptions. Raises ValueError if two have the same name."""
    pairs = guides.items() if isinstance(guides, Mapping) else [(guide_title(g) or "unguided", g) for g in guides]
    found = [SweepGuide(guide, name=name) for name, guide in pairs]
    names = [guide.name for guide in found]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two guides have the name {repeated!r}: pass a dictionary with a name for each")
    return found


def guides_over(
    model: Model,
    *,
    scales: Iterable[float] | None = None,
    cfgs: Iterable[float] | None = None,
    classifier: Classifier | str | Path | None = None,
    specs: Sequence[str] = (),
    interval: str | None = None,
    reuse: int = 1,
) -> list[SweepGuide]:
    """Return the guides for all combinations of guidance scales.

    scales: guidance scales of the classifier; by default SCALES if there is a classifier and no other kind of guidance
    cfgs: guidance scales of classifier-free guidance
    classifier: a classifier, its name or its folder; by default the model's own
    specs, interval, reuse: see `load_guides`
    Raises ValueError as `load_guides` does, or if an axis is empty.
    """
    default = loading.default_classifier(loading.name_of(model))
    name = str(classifier) if isinstance(classifier, str | Path) else default
    other = cfgs is not None or any(".py" not in spec for spec in specs)
    if scales is None and not other and (classifier is not None or name):
        scales = SCALES
    axes: list[list[float | None]] = []
    for axis, values in (("scale", scales), ("cfg", cfgs)):
        axes.append([None] if values is None else [*dict.fromkeys(value + 0.0 for value in values)])  # -0.0 is 0.0
        if not axes[-1]:
            raise ValueError(f"{axis} must have at least one number")

    def loaded(scale: float) -> GuideSet:
        cfg = axes[1][0]
        if isinstance(classifier, Classifier):
            bare = load_guides(model, scale=0.0, cfg=cfg, specs=specs)
            bare = replace(bare, classifier=classifier if scale else bare.classifier, scale=scale)
            return replace(bare, interval=load_interval(bare, interval), reuse=reuse)
        unlimited = not scale and cfg is None and not specs  # no guidance: nothing to limit
        limit, n = (None, 1) if unlimited and any(axes[0]) else (interval, reuse)
        return load_guides(model, classifier=name, scale=scale, cfg=cfg, specs=specs, interval=limit, reuse=n)

    guided = loaded(next(scale for scale in axes[0] if scale)) if any(axes[0]) else None
    unguided = None if all(axes[0]) else loaded(0.0)
    found = []
    for scale, cfg in itertools.product(*axes):
        guides = guided if scale else unguided
        assert guides is not None
        found.append(SweepGuide(replace(guides, scale=scale or 0.0, cfg=cfg).build(), scale, cfg))
    return found


def load_interval(guides: GuideSet, interval: str | None) -> tuple[float, float] | None:
    """Return the noise levels of an interval, or None without guidance."""
    return parse_interval(interval) if interval and guides.build() is not None else None


def pairs_of(
    samplers: Sequence[str | tuple[str | Sampler, int | str]], steps: Sequence[str] | None, model: str
) -> list[tuple[str | Sampler, str]]:
    """Return pairs of sampler and steps: "ddim:25" or ("ddim", 25) as they are, and names with each of the steps.

    model: name of the model, whose recommended settings are the default
    Raises ValueError if a sampler is unknown, or if some are pairs and others are not.
    """
    usual = loading.recommended(model)
    split = [divided(sampler) for sampler in (samplers or [usual.sampler])]
    paired = [own is not None for _, own in split]
    if any(paired) and not all(paired):
        raise ValueError("sampler must be a list of names or a list of pairs such as ddim:25, not both")
    if any(paired) and steps is not None:
        raise ValueError("steps cannot be combined with a sampler list of pairs such as ddim:25")
    found: list[tuple[str | Sampler, str]] = []
    for sampler, own in split:
        find_sampler(sampler)
        default = [usual.steps if sampler == usual.sampler else STEPS]
        found += [(sampler, str(step)) for step in ([own] if own is not None else steps or default)]
    return list(dict.fromkeys(found))


def divided(sampler: Any) -> tuple[str | Sampler, str | None]:
    """Return the parts of "ddim:25", of "file.py:name:25" or of ("ddim", 25); None for steps that are not given."""
    if isinstance(sampler, tuple):
        return sampler[0], str(sampler[1])
    if not isinstance(sampler, str):
        return sampler, None
    match = re.fullmatch(r"(.*\.py:\w+|[^:]*)(?::(.+))?", sampler)
    if match is None:
        raise ValueError(f"sampler {sampler!r} must be a name, or a pair such as ddim:25")
    return match[1], match[2]


def cells_of(
    pairs: Sequence[tuple[str | Sampler, str]], guides: Sequence[SweepGuide]
) -> dict[Cell, tuple[str | Sampler, Guide | None]]:
    """Return the cells of all combinations, with sampler and guide, in the order of the lists.

    Raises ValueError if two of them would have the same folder.
    """
    titles: dict[str, str] = {}
    cells: dict[Cell, tuple[str | Sampler, Guide | None]] = {}
    for (sampler, steps), guide in itertools.product(pairs, guides):
        cell = Cell(folder_name(sampler), steps, guide.scale, guide.cfg, guide.name)
        if cell.name in titles:
            raise ValueError(
                f"two cells of the sweep would have the folder {cell.name}: {titles[cell.name]!r} and "
                f"{cell.title!r}; choose names of guides and samplers that differ in letters and digits"
            )
        titles[cell.name] = cell.title
        cells[cell] = sampler, guide.guide
    return cells


def folder_name(sampler: str | Sampler) -> str:
    """Return the name of a sampler with the options that functools.partial has set, `ddim-eta-1`, for folders."""
    options = [
        f"{name}-{value}" for name, value in set_options(sampler).items() if isinstance(value, int | float | str)
    ]
    return "-".join(re.sub(r"[^\w.+-]+", "-", text) for text in [sampler_name(sampler), *options])


def kind_of(guide: Guide | None) -> str:
    """Return the kinds of guidance in a guide: `classifier + classifier-free`, or `none`."""
    return " + ".join(kinds(guide)) or "none"


def kinds(guide: Guide | None) -> list[str]:
    """Return the kinds of guidance in a guide."""
    if guide is None:
        return []
    if isinstance(guide, guidance.Interval | guidance.Reused):
        return kinds(guide.guide)
    if isinstance(guide, guidance.Sum):
        return [kind for part in guide.guides for kind in kinds(part)]
    if isinstance(guide, guidance.ClassifierGuidance):
        return ["classifier"] if guide.scale else []
    if isinstance(guide, guidance.ClassifierFreeGuidance):
        return ["classifier-free"]
    return [guide_title(guide)]
