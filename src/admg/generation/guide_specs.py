"""Guides by text: a classifier and its scale, "apg:4,eta=0.5", "path/to/file.py:name", "path/to/file.py:name:2"."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from admg import guidance
from admg.checkpoints import loading
from admg.checkpoints.model import Classifier, Model
from admg.diffusion.gaussian import Prediction
from admg.guidance import Guide, State
from admg.guidance.base import checked_gradient, raw_gradient
from admg.userfile import errors_of, load_object

from .pairing import check_guide
from .pretrained_specs import PRETRAINED, is_pretrained, load_pretrained


@dataclass(frozen=True)
class GuideSet:
    """The guides of a run: a classifier's, classifier-free guidance, others, and an interval of noise levels for all.

    classifier: classifier of the classifier guidance, or None
    scale: guidance scale of the classifier
    cfg: guidance scale of classifier-free guidance, or None
    others: further guides, which are added
    interval: noise levels (low, high) to which guidance is limited, or None
    reuse: evaluate the guides at every n-th step only; see guidance.Reused
    """

    classifier: Classifier | None = None
    scale: float = 0.0
    cfg: float | None = None
    others: tuple[Guide, ...] = ()
    interval: tuple[float, float] | None = None
    reuse: int = 1

    def build(self) -> Guide | None:
        """Return everything as one guide, or None. Raises ValueError for a scale or an interval out of range."""
        guides: list[Guide] = []
        if self.classifier is not None:
            guides.append(guidance.ClassifierGuidance(self.classifier, self.scale))
        if self.cfg is not None:
            guides.append(guidance.ClassifierFreeGuidance(self.cfg))
        guides += self.others
        if not guides:
            return None
        guide = guides[0] if len(guides) == 1 else guidance.Sum(tuple(guides))
        guide = guide if self.reuse == 1 else guidance.Reused(guide, self.reuse)
        return guide if self.interval is None else guidance.Interval(guide, *self.interval)

    def at(self, option: str, scale: float) -> GuideSet:
        """Return the guides with another scale: "scale" of the classifier, "cfg" of classifier-free guidance."""
        return dataclasses.replace(self, cfg=scale) if option == "cfg" else dataclasses.replace(self, scale=scale)

    def without(self, option: str) -> GuideSet:
        """Return the guides without the one whose scale is `option`."""
        return dataclasses.replace(self, cfg=None) if option == "cfg" else dataclasses.replace(self, classifier=None)


def load_guides(
    model: Model,
    *,
    classifier: str | None = None,
    scale: float | None = None,
    cfg: float | None = None,
    specs: Sequence[str] = (),
    interval: str | None = None,
    reuse: int = 1,
    default_scale: float = 0.0,
    keep_classifier: bool = False,
) -> GuideSet:
    """Load the guides that texts describe.

    classifier: name, folder or file of weights; it is loaded only if a guide needs it
    scale: guidance scale of the classifier; None: default_scale, or 0 if there is another kind of guidance
    cfg: guidance scale of classifier-free guidance
    specs: kinds of admg.guidance such as "apg:4,eta=0.5" and networks of other libraries such as "clip:a red coat",
        which replace classifier guidance, and "path/to/file.py:name" or "path/to/file.py:name:SCALE", which are added
    interval: "low,high", noise levels
    reuse: evaluate the guides at every n-th step only; see guidance.Reused
    keep_classifier: load the classifier even at scale 0
    Raises ValueError for an unknown guide, an option out of range, or a classifier that does not fit the model.
    """
    pretrained = [spec for spec in specs if is_pretrained(spec)]
    own = [spec for spec in specs if ".py" in spec and spec not in pretrained]
    others = [spec for spec in specs if spec not in own and spec not in pretrained]
    kinds = [guide_kind(spec) for spec in others]
    if scale is None:
        scale = 0.0 if cfg is not None or others or pretrained else default_scale
    needed = keep_classifier or scale != 0 or any("classifier" in _required(kind) for kind in kinds)
    loaded = load_classifier_for(model, classifier) if needed else None
    named: list[Guide] = [*(parse_guide(spec, loaded) for spec in others), *map(load_pretrained, pretrained)]
    named += [load_user_guide(spec) for spec in own]
    found = GuideSet(loaded, scale, cfg, tuple(named), parse_interval(interval) if interval else None, reuse)
    asked = "the interval limits guidance" if found.interval else "guidance is to be reused" if reuse > 1 else ""
    if found.build() is None and asked:
        raise ValueError(f"{asked}, and there is none: pass a scale, cfg or a guide")
    return found


def load_classifier_for(model: Model, name: str | None) -> Classifier:
    """Load a classifier. Raises ValueError if it does not belong to the model."""
    if not name:
        raise ValueError(
            'guidance needs a classifier, and the model has none of its own: pass classifier="NAME", or another guide'
        )
    classifier = loading.load_classifier(name)
    check_guide(model, guidance.ClassifierGuidance(classifier))
    return dataclasses.replace(classifier, training={**classifier.training, "name": str(name)})


def parse_interval(text: str) -> tuple[float, float]:
    """Return `0.3,5` as two noise levels; the second may be inf. Raises ValueError for anything else."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"interval must be two noise levels such as 0.3,5 or 1,inf, got {text!r}") from None
    return low, high


# -- kinds of admg.guidance, found by their fields -------------------------------------------------------------------


@functools.cache
def guide_kinds() -> dict[str, type[guidance.Guidance]]:
    """Return the classes of guides, by name, whose only required arguments are a guidance scale and a classifier.

    >>> guide_kinds()["apg"].__name__
    'APG'
    """
    found: dict[str, type[guidance.Guidance]] = {}
    for name, kind in vars(guidance).items():
        if not (isinstance(kind, type) and issubclass(kind, guidance.Guidance) and dataclasses.is_dataclass(kind)):
            continue
        if kind in (guidance.ClassifierGuidance, guidance.ExtendedClassifierGuidance):
            continue
        if _required(kind) <= {"classifier"} and "scale" in _defaults(kind):
            short = name.removesuffix("Guidance")
            found[re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", short).lower()] = kind
    return dict(sorted(found.items()))


def guide_kind(spec: str) -> type[guidance.Guidance]:
    """Return the class that a text such as "apg:4" names. Raises ValueError if there is none."""
    name = spec.split(":")[0]
    if name not in guide_kinds():
        known = ", ".join([*guide_kinds(), *PRETRAINED])
        raise ValueError(f"guide {spec}: unknown guidance {name!r}: {known}, or path/to/file.py:name[:SCALE]")
    return guide_kinds()[name]


def parse_guide(spec: str, classifier: Classifier | None = None) -> Guide:
    """Return the guide of a text `NAME:SCALE,OPTION=VALUE`. Raises ValueError if it does not have such an option.

    classifier: for kinds that need one

    >>> parse_guide("apg:4,eta=0.5").scale
    4.0
    """
    kind, (name, _, rest) = guide_kind(spec), spec.partition(":")
    options = {key: value for key, value in _defaults(kind).items() if isinstance(value, int | float | str)}
    given: dict[str, Any] = {}
    for k, part in enumerate(rest.split(",") if rest else []):
        key, _, value = part.partition("=") if "=" in part or k else ("scale", "", part)
        if key not in options:
            raise ValueError(f"guide {spec}: {name} has no option {key!r}; its options are {', '.join(options)}")
        try:
            given[key] = type(options[key])(value)
        except ValueError:
            raise ValueError(f"guide {spec}: {key} must be a number, not {value!r}") from None
    try:
        return kind(**given, **({"classifier": classifier} if "classifier" in _required(kind) else {}))
    except ValueError as error:
        raise ValueError(f"guide {spec}: {error}") from None


def guide_title(guide: Guide | None) -> str:
    """Return a short text for titles of pictures, "" for no guide.

    >>> guide_title(parse_guide("apg:4,eta=0.5"))
    'apg 4 eta=0.5'
    """
    if guide is None:
        return ""
    if isinstance(guide, guidance.Sum):
        return ", ".join(guide_title(part) for part in guide.guides)
    if isinstance(guide, guidance.Interval):
        return f"{guide_title(guide.guide)}, noise {guide.low:g} to {guide.high:g}"
    if isinstance(guide, guidance.Reused):
        return f"{guide_title(guide.guide)}, at one step in {guide.every}"
    if isinstance(guide, UserGuide):
        return guide.name
    if isinstance(guide, guidance.PretrainedGuidance):
        return guide.title
    if isinstance(guide, guidance.Scaled):
        return f"{guide.factor:g} x ({guide_title(guide.guide)})"
    if type(guide) is guidance.Wrapper:
        return guide_title(guide.guide)
    short = {guidance.ClassifierGuidance: "scale", guidance.ClassifierFreeGuidance: "cfg"}
    name = short.get(type(guide)) or next((n for n, kind in guide_kinds().items() if type(guide) is kind), None)
    if name is None:
        return str(getattr(guide, "__name__", type(guide).__name__))
    changed = {key: value for key, default in _defaults(guide).items()
               if (value := getattr(guide, key)) is not default and value != default and key != "scale"}  # fmt: skip
    options = "".join(
        f" {key}={_number(value)}" for key, value in changed.items() if isinstance(value, int | float | str)
    )
    return f"{name} {_number(guide.scale)}{options}"  # type: ignore[attr-defined]


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(getattr(value, "__name__", value))


def _defaults(kind: Any) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(kind)}


def _required(kind: Any) -> set[str]:
    return {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


# -- guides of a user's file -----------------------------------------------------------------------------------------


def load_user_guide(spec: str) -> UserGuide | guidance.Scaled:
    """Return the guide called `name` in `path/to/file.py:name`, multiplied by the number in `path/to/file.py:name:2`.

    Raises ValueError if it cannot be loaded or called, or if this is not a finite number.
    """
    unscaled, _, number = spec.rpartition(":")
    if ".py:" in unscaled:
        try:
            return guidance.Scaled(load_user_guide(unscaled), float(number))
        except ValueError as error:
            if "could not convert" not in str(error):
                raise
            raise ValueError(f"guide {spec}: the SCALE of path/to/file.py:name:SCALE must be a number") from None
    if ".py:" in spec and not number.isidentifier():
        raise ValueError(f"guide {spec}: expected path/to/file.py:name or path/to/file.py:name:SCALE")
    guide, digest = load_object(spec)
    path, _, name = spec.rpartition(":")
    if isinstance(guide, type):
        raise ValueError(f"{spec} must be an object, not a class: define one, such as my_guide = {name}()")
    if not callable(guide):
        kind = type(guide).__name__
        raise ValueError(f"{spec} is not a guide: expected a function of guidance.State or a Guidance, got {kind}")
    return UserGuide(guide, Path(path).expanduser(), name, digest)


@dataclass(frozen=True)
class UserGuide(guidance.Wrapper):
    """A guide from a user's file: its errors name the file and the line, and its gradient is checked.

    path: file of the guide
    name: name of the guide in the file
    digest: checksum of the file
    """

    path: Path
    name: str
    digest: str = ""

    def modify_prediction(self, state: State) -> Prediction:
        with errors_of(f"{self.path}:{self.name}"):
            return super().modify_prediction(state)

    def __call__(self, state: State) -> Tensor | None:
        with errors_of(f"{self.path}:{self.name}"):
            gradient = raw_gradient(self.guide, state)
        return checked_gradient(gradient, state, self.name)
