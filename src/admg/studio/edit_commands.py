"""The command line and the Python code of an edit, which read picture.png, mask.png and second.png of the page."""

from __future__ import annotations

import shlex

from .catalog import Entry
from .commands import drawing_arguments, drawing_options, guide_code, heading, label_options, label_text
from .editing import INPAINTING, EditSettings, Pictures
from .settings import NO_GUIDANCE, Settings, number


def edit_command(settings: Settings, own: EditSettings, pictures: Pictures, entry: Entry) -> str:
    """Return the command of an edit, or a comment that says that there is none."""
    drawing = drawing_options(settings, entry)
    if own.method in INPAINTING:
        return "# Inpainting has no command: see the Python code."
    if own.method == "interpolate":
        two = ["--image", "picture.png", "--image", "second.png"]
        ends = two if pictures.picture is not None else ["--seeds", f"{settings.seed},{own.second_seed}"]
        parts = ["interpolate", "--model", settings.model, *ends, *label_options(settings), "--frames",
                 str(settings.num), *drawing, "--out", "way"]  # fmt: skip
        return shlex.join(["admg", *parts])
    parts = ["admg", "edit", "--model", settings.model, "--image", "picture.png", *label_options(settings)]
    parts += ["--num", str(settings.num), "--strength", number(own.strength)]
    if own.method == "inversion":
        parts += ["--invert", *(["--from-label", own.from_label] if own.from_label else [])]
    return shlex.join([*parts, *drawing, "--out", "edits"])


def edit_code(settings: Settings, own: EditSettings, pictures: Pictures, entry: Entry) -> str:
    """Return Python code that draws the same images as `samples`."""
    reads = pictures.picture is not None
    imports = ["import numpy as np", "import torch", "from PIL import Image"] if reads else []
    lines = heading(settings, entry, *imports)
    label = label_text(settings.labels[0], entry) if settings.labels else "None"
    if reads:
        lines += _reading(own, entry)
    if own.method in INPAINTING:
        lines += ['mask = torch.from_numpy(np.array(Image.open("mask.png")) == 0)  # true where pixels are kept']
        lines += _inpainting(settings, own, entry, label)
    elif own.method == "interpolate":
        ends = 'torch.cat([read("picture.png"), read("second.png")])' if reads else (settings.seed, own.second_seed)
        lines += ["samples = admg.interpolate(", f"    model, {ends}, {label}, frames={settings.num},"]
        lines += [*drawing_arguments(settings, entry), ")"]
    else:
        lines += [
            "samples = admg.edit(",
            f"    model, picture, [{label}] * {settings.num}, strength={number(own.strength)},",
        ]
        if own.method == "inversion":
            source = f", from_labels=[{label_text(own.from_label, entry)}] * {settings.num}" if own.from_label else ""
            lines.append(f"    invert=True{source},")
        lines += [*drawing_arguments(settings, entry), ")"]
    return "\n".join([*lines, 'samples.save("edits")', ""])


def _reading(own: EditSettings, entry: Entry) -> list[str]:
    """Return the code that reads the picture or the pictures."""
    channels, size, _ = entry.model.shape
    lines = ["", "", "def read(path):", '    """Return a picture as (1, C, H, W) in [-1, 1]."""',
             f"    pixels = torch.from_numpy(np.array(Image.open(path))).reshape(1, {size}, {size}, {channels})",
             "    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1", "", ""]  # fmt: skip
    return lines if own.method == "interpolate" else [*lines, 'picture = read("picture.png")']


def _inpainting(settings: Settings, own: EditSettings, entry: Entry, label: str) -> list[str]:
    """Return the code of RePaint, which is a sampler, or of DPS, which is a guide."""
    call = ["samples = admg.sample(", f"    model, [{label}] * {settings.num},"]
    if own.method == "repaint":
        jumps = f"jump_length={own.jump_length}, resamplings={own.resamplings}"
        made = [f"sampler = admg.samplers.repaint(picture, mask, {jumps})"]
        return [*made, *call, *drawing_arguments(settings, entry, sampler="sampler"), ")"]
    guide = f"admg.guidance.DPS(operator, operator(picture), scale={number(own.dps_scale)})"
    if settings.guidance != NO_GUIDANCE:
        guide = f"admg.guidance.Sum(({guide_code(settings)}, {guide}))"
    made = ["operator = admg.guidance.Mask(mask)", f"guide = {guide}"]
    return [*made, *call, *drawing_arguments(settings, entry, guide="guide"), ")"]
