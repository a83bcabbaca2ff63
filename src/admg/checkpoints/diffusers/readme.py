"""The README of an exported folder: loading it, and reproducing the images of admg from the same noise."""

from __future__ import annotations

from typing import Literal

import numpy as np

from admg.checkpoints.model import Model
from admg.config import printable
from admg.diffusion.schedule import respaced_indices

Scheduler = Literal["ddpm", "ddim", "dpmpp_2m"]
CLASSES: dict[Scheduler, str] = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
"""Scheduler of diffusers for each sampler of admg."""
HEADING = "# A diffusion model for diffusers\n"
DIFFERENCES: dict[Scheduler, str] = {
    "ddpm": "DDPMScheduler gives the same images as admg if both draw their noise from the same generator.",
    "ddim": "**DDIMScheduler gives other images than admg by default**: its `step` clips x0 but keeps the eps of the\n"
    "unclipped x0. Pass `use_clipped_model_output=True` to `step`, or to a DDIMPipeline. N steps are those of admg's\n"
    '`steps="{ddim}N"`, not those of `steps=N`, if N divides {steps}.',
    "dpmpp_2m": "**DPMSolverMultistepScheduler gives other images than admg by default**: it takes other timesteps.\n"
    "Pass it those of admg. It clips x0 by thresholding with a maximum of 1, which this folder turns on.",
}
STEPS = 25


def readme(model: Model, scheduler: Scheduler, steps: int, remarks: tuple[str, ...]) -> str:
    """Return the README of the folder.

    steps: number of steps of the process, T
    remarks: remarks on this model for users of the folder
    """
    lines = [HEADING, DIFFERENCES[scheduler].format(steps=steps, ddim=spacing_prefix(scheduler, model)) + "\n"]
    lines += ["```python", *theirs(model, scheduler, steps), "```\n"]
    lines += ["From the same noise, admg makes the same images, up to rounding:\n"]
    lines += ["```python", *ours(model, scheduler, steps), "```\n", *(f"- {remark}" for remark in remarks)]
    if model.labels.names:
        lines += ["\nLabels:\n", *(f"- {i}: {printable(label)}" for i, label in enumerate(model.labels.names))]
    return "\n".join(lines).rstrip() + "\n"


def theirs(model: Model, scheduler: Scheduler, steps: int) -> list[str]:
    """Return the lines of a script for diffusers that samples as admg does; `folder` is that of the export."""
    name, (channels, height, width) = CLASSES[scheduler], model.shape
    count, timesteps = images(model), shared_timesteps(scheduler, steps)
    loop = {
        "ddpm": "x = scheduler.step(output, t, x, generator=generator).prev_sample",
        "ddim": "x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample",
        "dpmpp_2m": "x = scheduler.step(output, t, x).prev_sample",
    }[scheduler]
    chosen = f"timesteps={timesteps[::-1]}" if scheduler == "dpmpp_2m" else str(len(timesteps))
    lines = [
        "import torch",
        f"from diffusers import {name}, UNet2DModel\n",
        f"unet, scheduler = UNet2DModel.from_pretrained(folder), {name}.from_pretrained(folder)",
        f"scheduler.set_timesteps({chosen})",
        f"x = x_T = torch.randn({count}, {channels}, {height}, {width}, generator=torch.Generator().manual_seed(0))",
    ]
    arguments = ""
    if model.conditional:
        lines += [f"y = torch.arange({count})"]
        arguments = ", class_labels=y"
    if model.upsamples:
        size = small_size(model)
        lines += [
            f"low_res = torch.zeros({count}, {channels}, {size}, {size})  # the images to enlarge, in [-1, 1]",
            f'large = torch.nn.functional.interpolate(low_res, ({height}, {width}), mode="bilinear")',
        ]
    lines += ["generator = torch.Generator().manual_seed(1)"] if scheduler == "ddpm" else []
    network_input = "torch.cat([x, large], 1)" if model.upsamples else "x"
    return [
        *lines,
        "for t in scheduler.timesteps:",
        "    with torch.no_grad():",
        f"        output = unet({network_input}, t{arguments}).sample",
        f"    {loop}",
    ]


def ours(model: Model, scheduler: Scheduler, steps: int) -> list[str]:
    """Return the lines of a script for admg that makes the same images; `model` is the model."""
    count = len(shared_timesteps(scheduler, steps))
    arguments = ["model", "y" if model.conditional else f"num={images(model)}"]
    arguments += [f'sampler="{scheduler}"', f'steps="{spacing_prefix(scheduler, model)}{count}"', "x_T=x_T"]
    arguments += ["low_res=low_res"] if model.upsamples else []
    lines = ["import admg"]
    if scheduler == "ddpm":
        lines += ["\ngenerator = torch.Generator().manual_seed(1)"]
        arguments += ["noise_sampler=lambda x, i: torch.randn(x.shape, generator=generator)"]
    return [*lines, f"samples = admg.sample({', '.join(arguments)})  # samples.x is x"]


def spacing_prefix(scheduler: Scheduler, model: Model) -> str:
    """Return the beginning of the name of the steps of this scheduler in admg."""
    if scheduler != "ddim":
        return ""
    return "trailing" if model.config is not None and model.config.zero_terminal_snr else "ddim"


def images(model: Model) -> int:
    """Return the number of images in the scripts."""
    return min(4, model.labels.count) if model.conditional else 4


def small_size(model: Model) -> int:
    """Return the size of the images that an upsampler takes in the scripts."""
    return getattr(getattr(model.network, "config", None), "small_size", 0) or model.shape[1] // 4


def shared_timesteps(scheduler: Scheduler, steps: int) -> list[int]:
    """Return timesteps common to diffusers and admg: as many as possible up to STEPS, in ascending order."""
    for count in range(min(STEPS, steps), 0, -1):
        if scheduler == "ddim" and steps % count:
            continue
        kept = respaced_indices(steps, f"ddim{count}" if scheduler == "ddim" else count)
        if scheduler != "ddpm" or kept == np.linspace(0, steps - 1, count).round().astype(int).tolist():
            return kept
    return list(range(steps))
