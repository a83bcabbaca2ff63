"""The command and the Python code of an edit. They read picture.png, mask.png and second.png, which the page offers."""

from __future__ import annotations

import shlex

from .catalog import Entry
from .commands import guide_code, label_options, label_text, preamble, sampling_arguments, sampling_options
from .editing import INPAINTING, EditSettings, Pictures
from .settings import NO_GUIDANCE, Settings, number


def edit_command(settings: Settings, options: EditSettings, pictures: Pictures, entry: Entry) -> str:
    """Return the command of an edit, or for inpainting a comment that there is none."""
    sampling = sampling_options(settings, entry)
    if options.method in INPAINTING:
        return "# Inpainting has no command. Use the Python code."
    if options.method == "interpolate":
        two = ["--image", "picture.png", "--image", "second.png"]
        ends = two if pictures.picture is not None else ["--seeds", f"{settings.seed},{options.second_seed}"]
        parts = ["interpolate", "--model", settings.model, *ends, *label_options(settings), "--frames",
                 str(settings.num), *sampling, "--out", "way"]  # fmt: skip
        return shlex.join(["admg", *parts])
    parts = ["admg", "edit", "--model", settings.model, "--image", "picture.png", *label_options(settings)]
    parts += ["--num", str(settings.num), "--strength", number(options.strength)]
    if options.method == "inversion":
        parts += ["--invert", *(["--from-label", options.from_label] if options.from_label else [])]
    return shlex.join([*parts, *sampling, "--out", "edits"])


def edit_code(settings: Settings, options: EditSettings, pictures: Pictures, entry: Entry) -> str:
    """Return Python code that generates the same images."""
    reads = pictures.picture is not None
    imports = ["import numpy as np", "import torch", "from PIL import Image"] if reads else []
    lines = preamble(settings, entry, *imports)
    label = label_text(settings.labels[0], entry) if settings.labels else "None"
    if reads:
        lines += _reading(options, entry)
    if options.method in INPAINTING:
        lines += ['mask = torch.from_numpy(np.array(Image.open("mask.png")) == 0)  # true where pixels are kept']
        lines += _inpainting(settings, options, entry, label)
    elif options.method == "interpolate":
        ends = 'torch.cat([read("picture.png"), read("second.png")])' if reads else (settings.seed, options.second_seed)
        lines += ["samples = admg.interpolate(", f"    model, {ends}, {label}, frames={settings.num},"]
        lines += [*sampling_arguments(settings, entry), ")"]
    else:
        lines += [
            "samples = admg.edit(",
            f"    model, picture, [{label}] * {settings.num}, strength={number(options.strength)},",
        ]
        if options.method == "inversion":
            source = (
                f", from_labels=[{label_text(options.from_label, entry)}] * {settings.num}"
                if options.from_label
                else ""
            )
            lines.append(f"    invert=True{source},")
        lines += [*sampling_arguments(settings, entry), ")"]
    return "\n".join([*lines, 'samples.save("edits")', ""])


def _reading(options: EditSettings, entry: Entry) -> list[str]:
    """Return the code that reads the pictures."""
    channels, size, _ = entry.model.shape
    lines = ["", "", "def read(path):", '    """Return a picture as (1, C, H, W) in [-1, 1]."""',
             f"    pixels = torch.from_numpy(np.array(Image.open(path))).reshape(1, {size}, {size}, {channels})",
             "    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1", "", ""]  # fmt: skip
    return lines if options.method == "interpolate" else [*lines, 'picture = read("picture.png")']


def _inpainting(settings: Settings, options: EditSettings, entry: Entry, label: str) -> list[str]:
    """Return the code of RePaint, which is a sampler, or of DPS, which is a guide."""
    call = ["samples = admg.sample(", f"    model, [{label}] * {settings.num},"]
    if options.method == "repaint":
        jumps = f"jump_length={options.jump_length}, resamplings={options.resamplings}"
        made = [f"sampler = admg.samplers.repaint(picture, mask, {jumps})"]
        return [*made, *call, *sampling_arguments(settings, entry, sampler="sampler"), ")"]
    guide = f"admg.guidance.DPS(operator, operator(picture), scale={number(options.dps_scale)})"
    if settings.guidance != NO_GUIDANCE:
        guide = f"admg.guidance.Sum(({guide_code(settings)}, {guide}))"
    made = ["operator = admg.guidance.Mask(mask)", f"guide = {guide}"]
    return [*made, *call, *sampling_arguments(settings, entry, guide="guide"), ")"]
