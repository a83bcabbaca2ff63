"""Whether a guide belongs to the model that it guides: its classifiers, and the bad model of autoguidance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from admg.checkpoints.compatibility import check_pair, facts_of
from admg.checkpoints.model import Classifier, Model
from admg.guidance import AutoGuidance, Calibrated, ExtendedClassifierGuidance, Guidance, Interval
from admg.warn import warn


def check_guide(model: Model, guide: Any) -> None:
    """Compare a model with every Classifier and Model in its guide; users' own functions are not checked.

    Raises ValueError for a difference that makes the guidance wrong, and warns of one that may be intended.
    """
    own = facts_of(model, "the model")
    for part in guides_in(guide):
        if isinstance(part, AutoGuidance) and isinstance(part.bad_model, Model):
            check_pair("bad model", own, facts_of(part.bad_model, "the bad model"))
        if (classifier := classifier_of(part)) is not None:
            theirs = facts_of(classifier, "the classifier")
            chosen = isinstance(part, ExtendedClassifierGuidance) and part.labels is not None
            check_pair("classifier", own, dataclasses.replace(theirs, labels=None) if chosen else theirs)
            if not own.labels and not chosen:  # the next classifier is given the same labels
                own = dataclasses.replace(own, labels=theirs.labels)


def note_empty_intervals(model: Model, guide: Any) -> None:
    """Warn of guidance limited to an interval of noise levels that contains no step of the model."""
    schedule = model.diffusion.schedule
    levels = [schedule.sigma(i) for i in range(len(schedule))]
    for part in guides_in(guide):
        if isinstance(part, Interval) and not any(map(part.contains, levels)):
            near = sorted(levels, key=lambda level: abs(math.log(level / max(part.low, levels[0]))))[:3]
            shown = ", ".join(f"{level:.3g}" for level in sorted(near))
            warn(
                f"no step has a noise level from {part.low:g} to {part.high:g}: guidance limited to this interval has "
                f"no effect; the nearest levels are {shown}"
            )


def check_null_label(model: Model, labels: Sequence[int | None], unconditional: bool) -> None:
    """Check that the network has an unconditional prediction if an image needs it; see Model.check_unconditional."""
    if unconditional or None in labels:
        model.check_unconditional()


def classifier_of(part: Any) -> Classifier | None:
    """Return the Classifier in a field of this guide, without its calibration; None if there is none."""
    names = {field.name for field in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else set()
    found = getattr(part, "classifier", None) if isinstance(part, Guidance) and "classifier" in names else None
    while isinstance(found, Calibrated):
        found = found.classifier
    return found if isinstance(found, Classifier) else None


def guides_in(guide: Any) -> Iterator[Any]:
    """Yield a guide and the guides in its fields."""
    if isinstance(guide, list | tuple):
        for item in guide:
            yield from guides_in(item)
    elif isinstance(guide, Guidance):
        yield guide
        if dataclasses.is_dataclass(guide):
            for field in dataclasses.fields(guide):
                yield from guides_in(getattr(guide, field.name, None))
