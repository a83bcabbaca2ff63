"""Guidance on the command line: a classifier's, other kinds of admg.guidance by name, and guides of a user's file."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from admg import guidance
from admg.checkpoints import loading
from admg.checkpoints.model import Classifier, Model
from admg.diffusion.gaussian import Prediction
from admg.engine.memory import is_out_of_memory
from admg.guidance import Guide, State
from admg.userfile import described, load_object


@dataclass(frozen=True)
class Named:
    """A guide, what pictures call it, and what decides it, for run.json."""

    guide: Guide
    title: str
    record: str


@dataclass(frozen=True)
class Guidance:
    """A classifier and its scale, and other guides; none: no guidance.

    name: of the classifier; cfg: the scale of classifier-free guidance; interval: of noise levels, outside of which
    there is none of it all
    """

    name: str = ""
    classifier: Classifier | None = None
    scale: float = 0.0
    cfg: float | None = None
    others: tuple[Named, ...] = ()
    interval: tuple[float, float] | None = None

    def __call__(self) -> Guide | None:
        """All of it as one guide. ValueError: a scale that is not finite, or a bad interval."""
        guides: list[Guide] = (
            [] if self.classifier is None else [guidance.ClassifierGuidance(self.classifier, self.scale)]
        )
        guides += [other.guide for other in self.named]
        if not guides:
            return None
        guide = guides[0] if len(guides) == 1 else guidance.Sum(tuple(guides))
        return guide if self.interval is None else guidance.Interval(guide, *self.interval)

    def at(self, name: str, scale: float) -> Guidance:
        """With another scale of the classifier's (name: scale) or of classifier-free guidance (cfg)."""
        return dataclasses.replace(self, cfg=scale) if name == "cfg" else dataclasses.replace(self, scale=scale)

    def title_without(self, name: str) -> str:
        """What stays the same over scales of that name."""
        same = dataclasses.replace(self, cfg=None) if name == "cfg" else dataclasses.replace(self, classifier=None)
        return same.title

    @property
    def named(self) -> tuple[Named, ...]:
        """Those beside the classifier's."""
        if self.cfg is None:
            return self.others
        cfg = Named(guidance.ClassifierFreeGuidance(self.cfg), f"cfg {self.cfg:g}", f"classifier-free:{self.cfg:g}")
        return (cfg, *self.others)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "guides": [other.record for other in self.named] or None,
            "interval": self.interval and [*self.interval],
        }

    @property
    def title(self) -> str:
        """`scale 4, cfg 2, noise 0.3 to 5`"""
        parts = [f"scale {self.scale:g}"] if self.classifier else []
        parts += [other.title for other in self.named]
        return ", ".join(parts + ([f"noise {self.interval[0]:g} to {self.interval[1]:g}"] if self.interval else []))


def add_guides(parser: argparse.ArgumentParser, default: str, lists: bool = False) -> None:
    """The options of Guidance. default: of the scale, for help; lists: the scales are lists, as text"""
    group = parser.add_argument_group("guidance")
    add = group.add_argument
    add("--classifier", metavar="NAME", help="guides the sampling; a name or a folder (default: the model's own)")
    scale: dict[str, Any] = {"type": str, "metavar": "A,B,..."} if lists else {"type": float, "metavar": "S"}
    add("--scale", **scale, help=f"of the classifier's guidance; 0: none (default: {default})")
    text = "classifier-free guidance of this scale: 1 is the conditional model; in place of the classifier's, unless "
    add("--cfg", **(scale if lists else scale | {"metavar": "W"}), help=f"{text}--scale is given too")
    text = "another kind, in its place likewise: one of " + ", ".join(built_in()) + ", with options such as "
    text += (
        "apg:4,eta=0.5; or path/to/file.py:name, a function of a guidance.State or a Guidance of your own, added to "
    )
    add("--guide", action="append", metavar="NAME:SCALE", help=f"{text}what there is; may be repeated")
    text = "guide only at these noise levels, in units of the image, from about 0.01 to 150"
    add("--interval", metavar="LOW,HIGH", help=f"{text} (default: all)")


def load_guidance(args: argparse.Namespace, model: Model, default: float, wanted: bool = False) -> Guidance:
    """As the options say. default: of the scale, if no other kind of guidance is chosen; wanted: the classifier, at
    whatever scale. ValueError: an option out of range, a classifier that does not fit.
    """
    own = [spec for spec in args.guide or () if ".py" in spec]
    others = [spec for spec in args.guide or () if ".py" not in spec]
    kinds = [kind_of(spec) for spec in others]
    scale = args.scale if args.scale is not None else 0.0 if args.cfg is not None or others else default
    name = args.classifier or loading.default_classifier(args.model)
    needed = wanted or scale != 0 or any("classifier" in required(kind) for kind in kinds)
    found = Guidance(scale=scale, cfg=args.cfg, interval=parse_interval(args.interval) if args.interval else None)
    if needed:
        found = dataclasses.replace(found, name=name or "", classifier=load_classifier(model, name))
    named = [*(of_library(spec, found.classifier) for spec in others), *(of_file(spec) for spec in own)]
    found = dataclasses.replace(found, others=tuple(named))
    if found() is None and found.interval:
        raise ValueError("--interval limits guidance, and there is none: give --scale, --cfg or --guide")
    return found


def load_classifier(model: Model, name: str | None) -> Classifier:
    """A classifier that fits the model. ValueError: it has other labels or another image size."""
    if not name:
        raise ValueError("guidance needs --classifier: the model comes without one")
    classifier = loading.load_classifier(name)
    if model.labels.count and classifier.labels.count != model.labels.count:
        raise ValueError(f"the classifier has {classifier.labels.count} labels, the model {model.labels.count}")
    size = getattr(classifier.network.config, "image_size", model.shape[1])
    if size != model.shape[1]:
        raise ValueError(f"the classifier is for images of {size} pixels, the model's have {model.shape[1]}")
    return classifier


def parse_interval(text: str) -> tuple[float, float]:
    """`0.3,5` as two numbers, of which the second may be inf."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--interval must be two noise levels such as 0.3,5 or 1,inf, not {text!r}") from None
    return low, high


# -- the library's own, found by their fields ------------------------------------------------------------------------


@functools.cache
def built_in() -> dict[str, type[guidance.Guidance]]:
    """Name -> class: guides with a scale that need nothing else, or a classifier alone."""
    found: dict[str, type[guidance.Guidance]] = {}
    for name, kind in vars(guidance).items():
        if not (isinstance(kind, type) and issubclass(kind, guidance.Guidance) and dataclasses.is_dataclass(kind)):
            continue
        if (
            kind not in (guidance.ClassifierGuidance, guidance.ExtendedClassifierGuidance)
            and required(kind) <= {"classifier"}
            and "scale" in fields(kind)
        ):
            short = name.removesuffix("Guidance")
            found[re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", short).lower()] = kind
    return dict(sorted(found.items()))


def fields(kind: Any) -> dict[str, Any]:
    """Field -> default."""
    return {field.name: field.default for field in dataclasses.fields(kind)}


def required(kind: Any) -> set[str]:
    return {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


def kind_of(spec: str) -> type[guidance.Guidance]:
    name = spec.split(":")[0]
    if name not in built_in():
        raise ValueError(f"--guide {spec}: unknown guidance {name!r}: {', '.join(built_in())}, or path/to/file.py:name")
    return built_in()[name]


def of_library(spec: str, classifier: Classifier | None) -> Named:
    """`apg:4,eta=0.5`. ValueError: a scale or an option that it does not take."""
    kind, (name, _, rest) = kind_of(spec), spec.partition(":")
    options = {key: value for key, value in fields(kind).items() if isinstance(value, int | float | str)}
    given: dict[str, Any] = {}
    for k, part in enumerate(rest.split(",") if rest else []):
        key, _, value = part.partition("=") if "=" in part or k else ("scale", "", part)
        if key not in options:
            raise ValueError(f"--guide {spec}: {name} has no option {key!r}: {', '.join(options)}")
        try:
            given[key] = type(options[key])(value)
        except ValueError:
            raise ValueError(f"--guide {spec}: {key} must be a number, not {value!r}") from None
    try:
        guide = kind(**given, **({"classifier": classifier} if "classifier" in required(kind) else {}))
    except ValueError as error:
        raise ValueError(f"--guide {spec}: {error}") from None
    shown = {"scale": options["scale"], **given}
    scale = shown.pop("scale")
    tail = "".join(
        f",{key}={value:g}" if isinstance(value, float) else f",{key}={value}" for key, value in shown.items()
    )
    return Named(guide, f"{name} {scale:g}{tail.replace(',', ' ')}", f"{name}:{scale:g}{tail}")


# -- those of a user's own file --------------------------------------------------------------------------------------


def of_file(spec: str) -> Named:
    """The object called `name` in file.py:name, as it is. ValueError: load_object's, or it cannot be a guide."""
    guide, digest = load_object(spec)
    path, _, name = spec.rpartition(":")
    if isinstance(guide, type):
        raise ValueError(f"{spec} is a class: name an object of it, such as my_guide = {name}()")
    if not callable(guide):
        raise ValueError(
            f"{spec} is no guide: a function of a guidance.State, or a Guidance, not {type(guide).__name__}"
        )
    return Named(Own(guide, Path(path).expanduser(), name), name, f"{Path(path).name}:{name}, checksum {digest}")


@dataclass(frozen=True)
class Own(guidance.Wrapper):
    """A guide from a user's file, whose errors are reported in one line (ADMG_TRACEBACK shows more).

    path: the file
    name: name of the guide in the file
    """

    path: Path
    name: str

    def modify_prediction(self, state: State) -> Prediction:
        return self._asked(lambda: super(Own, self).modify_prediction(state))

    def __call__(self, state: State) -> Tensor | None:
        score = self._asked(lambda: self.guide(state))
        if score is not None and not (isinstance(score, Tensor) and score.shape == state.x.shape):
            what = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else f"type {type(score).__name__}"
            raise ValueError(f"{self.name} returned a score of {what}: needed is one like x, {tuple(state.x.shape)}")
        return score

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:
            if is_out_of_memory(error):  # whoever made the batch will make a smaller one
                raise
            raise ValueError(f"{self.path}:{self.name}: {described(error, self.path)}") from error
