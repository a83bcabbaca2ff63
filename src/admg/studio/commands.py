"""The command and the Python code that reproduce what a page shows, bit for bit on the same machine."""

from __future__ import annotations

import shlex

from admg.generation.guide_specs import guide_kinds

from .catalog import Entry
from .settings import CLASSIFIER, NO_GUIDANCE, Settings, number


def sample_command(settings: Settings, entry: Entry, sheet: str = "") -> str:
    """Return the `admg sample` command of these settings.

    sheet: scales of a scale sheet, such as "scale=0,1,2"
    """
    parts = ["admg", "sample", "--model", settings.model, *label_options(settings), "--num", str(settings.num)]
    varied = sheet.partition("=")[0]
    parts += [*(["--sheet", sheet] if sheet else []), *sampling_options(settings, entry, varied)]
    return shlex.join([*parts, "--out", "samples"])


def label_options(settings: Settings) -> list[str]:
    """Return the options that choose the labels."""
    return [part for label in settings.labels for part in ("--label", label)]


def sampling_options(settings: Settings, entry: Entry, varied: str = "") -> list[str]:
    """Return the sampling and guidance options that `admg sample`, `admg edit` and `admg interpolate` share.

    varied: option that a scale sheet varies, "scale" or "cfg", which is left out
    """
    parts: list[str] = []
    if settings.guidance in (NO_GUIDANCE, CLASSIFIER):
        scale = "0" if settings.guidance == NO_GUIDANCE else number(settings.scale)
        parts += [] if varied == "scale" else ["--scale", scale]
    elif settings.guidance == "classifier-free":
        parts += [] if varied == "cfg" else ["--cfg", number(settings.scale)]
    else:
        parts += ["--guide", settings.guide_spec]
    if settings.needs_classifier and entry.classifier_name != settings.model:
        parts += ["--classifier", entry.classifier_name]
    if settings.interval:
        parts += ["--interval", ",".join(map(number, settings.interval))]
    parts += ["--sampler", settings.sampler, "--steps", settings.spec]
    parts += ["--eta", number(settings.eta)] if settings.eta else []
    parts += ["--unconditional"] if settings.unconditional else []
    return [*parts, "--seed", str(settings.seed), "--precision", precision(settings, entry)]


def sample_code(settings: Settings, entry: Entry) -> str:
    """Return Python code that generates the same images."""
    lines = preamble(settings, entry)
    lines += ["samples = admg.sample(", f"    model, {labels_text(settings, entry)}, num={settings.num},"]
    return "\n".join([*lines, *sampling_arguments(settings, entry), ")", 'samples.save("samples")', ""])


def preamble(settings: Settings, entry: Entry, *imports: str) -> list[str]:
    """Return the lines that import admg and load the model, and its classifier if guidance needs it."""
    device = entry.model.device.type
    moved = "" if device == "cpu" else f'.to("{device}")'
    standard = ["import functools", ""] if settings.eta else []
    lines = [*standard, "import admg", *imports, "", f"model = admg.load({settings.model!r}){moved}"]
    if settings.needs_classifier:
        lines.append(f"classifier = admg.load_classifier({entry.classifier_name!r}){moved}")
    return lines


def sampling_arguments(settings: Settings, entry: Entry, sampler: str = "", guide: str = "") -> list[str]:
    """Return the arguments that admg.sample and admg.edit share, one line each.

    sampler, guide: code that replaces that of the settings
    """
    guide = guide or ("" if settings.guidance == NO_GUIDANCE else guide_code(settings))
    lines = [f"guide={guide},"] if guide else []
    ddim = f"functools.partial(admg.samplers.ddim, eta={number(settings.eta)})"
    chosen = ddim if settings.eta else f'"{settings.sampler}"'
    lines.append(f'sampler={sampler or chosen}, steps="{settings.spec}", seed={settings.seed},')
    if settings.unconditional:
        lines.append("unconditional=True,")
    lines.append(f'precision="{precision(settings, entry)}",')
    return [f"    {line}" for line in lines]


def guide_code(settings: Settings) -> str:
    """Return the code of the guide."""
    scale = number(settings.scale)
    if settings.guidance == CLASSIFIER:
        guide = f"admg.guidance.ClassifierGuidance(classifier, scale={scale})"
    else:
        kind = guide_kinds()[settings.guidance]
        first = "classifier, " if settings.needs_classifier else ""
        guide = f"admg.guidance.{kind.__name__}({first}scale={scale})"
    if settings.interval is None:
        return guide
    low, high = (number(value) if value != float("inf") else 'float("inf")' for value in settings.interval)
    return f"admg.guidance.Interval({guide}, {low}, {high})"


def labels_text(settings: Settings, entry: Entry) -> str:
    """Return the labels as code: names, or numbers if they have no names. Without `labels`, the default labels."""
    if settings.labels:
        return f"[{', '.join(label_text(label, entry) for label in settings.labels)}]"
    numbers = settings.numbers(entry)
    return "None" if numbers[0] is None else repr(numbers)


def label_text(label: str, entry: Entry) -> str:
    """Return a label as code."""
    number = entry.labels.parse(label)
    return repr(entry.labels.names[number] if entry.labels.names else number)


def precision(settings: Settings, entry: Entry) -> str:
    """Return the precision that the images are computed in."""
    return str(settings.recipe(entry).precision)
