"""A folder that diffusers loads: the network as a UNet2DModel, and a scheduler for the same process.

The files are written without diffusers. What differs there:

- Labels are an argument `class_labels` of every call. Dropping a label (y = -1, or no y, which adds nothing to the time
  embedding here) has no counterpart: UNet2DModel insists on labels if it has any. Label names are not kept.
- DDPMScheduler spaces its steps as `respace(25)` does: evenly, first and last included. Halves are rounded otherwise,
  so that for some numbers of steps (21, say, but not 10, 25, 50, 100 or 250 of 1000) some timesteps are one off. Those
  and sections ("10,15,20") go by its `set_timesteps(timesteps=[...])`. Its maths is Algorithm 1 without guidance, with
  ᾱ in float32: of the 1 - ᾱ of the last steps, and so of the variance there, three digits are right.
- DDIMScheduler spaces its steps as `respace("ddim25")` does if 25 divides T, else it leaves out the last ones. A
  clipped x0 changes its eps only with `step(..., use_clipped_model_output=True)`, which is what happens here always.
  It takes no learned variance, so those channels of the network are left out for it.
- Its variance_type "learned" takes the network's output as the variance, where ours (and the reference's) is its
  logarithm; so a DDPMScheduler for variance="learned" is refused.
- There is one number of channels per attention head. Several heads by count (`num_heads`) at several widths are
  refused, which of the published models concerns imagenet-128 and imagenet-64-to-256.
- Sinusoids of time have as many channels as the first level. Where that is another number (imagenet-512), or where
  the network is told rescaled timesteps, time is a table over the T steps instead: whole steps only can be asked for.
- Classifiers and guidance do not exist. Super-resolution is a plain UNet2DModel of 2C input channels: x_t, then the
  low-resolution image, enlarged bilinearly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.torch import save_file

from admg.checkpoints.model import Classifier, Model
from admg.diffusion.gaussian import Diffusion
from admg.files import atomic
from admg.models import UNet

from .exported import Exported
from .unet2d import needs_table, unet2d_config, unet2d_state

Scheduler = Literal["ddpm", "ddim"]
PREDICTION = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
WEIGHTS, HEADING = "diffusion_pytorch_model.safetensors", "# A diffusion model for diffusers\n"
FILES = frozenset({"config.json", "scheduler_config.json", "model_index.json", "README.md", WEIGHTS})
LINEAR_BETAS = 1e-4, 0.02  # for 1000 steps, as in NoiseSchedule.linear


def to_diffusers(model: Model, folder: Path | str, scheduler: Scheduler = "ddpm") -> Exported:
    """Write a folder for diffusers: UNet2DModel, the scheduler's and the pipeline's from_pretrained all take it.

    scheduler: whose configuration to write; "ddim" leaves out the channels of a learned variance, which it cannot take
    The process is that which the model was trained on, even if `model` is respaced.
    ValueError: diffusers has no counterpart, the message says of what; or `folder` holds something else already.
    """
    if scheduler not in get_args(Scheduler):
        raise ValueError(f"unknown scheduler {scheduler!r}: {' or '.join(get_args(Scheduler))}")
    if isinstance(model, Classifier):
        raise ValueError("diffusers has no noisy classifier: export a diffusion model, or the classifier to openai")
    network = model.network
    if not isinstance(network, UNet):
        raise ValueError(f"only a UNet can be exported to diffusers, not {type(network).__name__}")
    folder = free(folder)
    diffusion = model.diffusion if model.config is None else model.config.build()
    mean_only = scheduler == "ddim" and diffusion.learns_variance
    timesteps = diffusion.schedule.timesteps
    configs = {
        "config.json": unet2d_config(network, timesteps, mean_only),
        "scheduler_config.json": scheduler_config(diffusion, scheduler, model),
    }
    if not model.upsamples:
        configs["model_index.json"] = pipeline_config(scheduler)
    state = unet2d_state(network, timesteps, mean_only)
    told = notes(model, diffusion, scheduler)
    with atomic(folder) as temporary:
        temporary.mkdir()
        for name, config in configs.items():
            (temporary / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(readme(model, scheduler, told), encoding="utf-8")
        weights = temporary / WEIGHTS
        save_file(state, weights, metadata={"format": "pt"})
        weights.chmod((temporary / "config.json").stat().st_mode)  # else only the owner may read it
    return Exported(folder, told)


def free(folder: Path | str) -> Path:
    """The folder, if nothing but an earlier export would be replaced. ValueError otherwise."""
    folder = Path(folder)
    if folder.exists() and not is_empty(folder) and not is_export(folder):
        raise ValueError(f"{folder} exists and is not an earlier export: choose a new folder")
    return folder


def is_export(folder: Path) -> bool:
    """Whether the folder holds what to_diffusers writes, and nothing else."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - FILES:
        return False
    about = folder / "README.md"
    return about.is_file() and about.read_text(encoding="utf-8", errors="replace").startswith(HEADING)


def is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def scheduler_config(diffusion: Diffusion, scheduler: Scheduler, model: Model) -> dict[str, Any]:
    """The arguments of DDPMScheduler or DDIMScheduler. ValueError: a variance that it takes for another."""
    common = {
        "num_train_timesteps": len(diffusion),
        **betas(diffusion, model),
        "prediction_type": PREDICTION[diffusion.predicts],
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "steps_offset": 0,
    }
    if scheduler == "ddim":
        own = {"_class_name": "DDIMScheduler", "timestep_spacing": "leading", "set_alpha_to_one": True}
        return own | common
    if diffusion.variance == "learned":
        raise ValueError(
            "diffusers' DDPMScheduler takes a learned variance for the variance itself, where this model tells its "
            "logarithm: export with scheduler ddim, which leaves it out"
        )
    own = {"_class_name": "DDPMScheduler", "timestep_spacing": "linspace", "variance_type": diffusion.variance}
    return own | common


def betas(diffusion: Diffusion, model: Model) -> dict[str, Any]:
    """The noise schedule by name if it has one there, else as a list."""
    name = model.config.noise_schedule if model.config else ""
    if name == "linear":
        first, last = (beta * 1000 / len(diffusion) for beta in LINEAR_BETAS)
        return {"beta_schedule": "linear", "beta_start": first, "beta_end": last, "trained_betas": None}
    if name == "cosine":
        return {"beta_schedule": "squaredcos_cap_v2", "trained_betas": None}
    return {"trained_betas": diffusion.schedule.betas.tolist()}


def pipeline_config(scheduler: Scheduler) -> dict[str, Any]:
    """model_index.json; both components lie in the folder itself, not in folders of their own."""
    name = scheduler.upper()
    return {
        "_class_name": f"{name}Pipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", f"{name}Scheduler"],
    }


def notes(model: Model, diffusion: Diffusion, scheduler: Scheduler) -> tuple[str, ...]:
    """What the user of the folder must know of this model."""
    told = []
    if model.conditional:
        told.append(
            f"labels are numbers, class_labels=torch.tensor([...]) of 0 to {model.labels.count - 1} at every call: "
            f"{scheduler.upper()}Pipeline loads but does not pass them, and dropping a label has no counterpart"
        )
    if model.upsamples:
        told.append(
            "the network takes 2C channels, torch.cat([x_t, low_res], 1), with low_res in [-1, 1] enlarged by "
            'F.interpolate(low_res, size, mode="bilinear"); no pipeline of diffusers does this, so none is named'
        )
    if scheduler == "ddim" and diffusion.learns_variance:
        told.append("the channels of the learned variance are left out, since DDIM has no use for them")
    if scheduler == "ddim":
        told.append("DDIM gives this library's images with step(..., use_clipped_model_output=True)")
    elif diffusion.learns_variance:
        told.append("the output has 2C channels, which DDPMScheduler takes; for DDIM export with scheduler ddim")
    if isinstance(model.network, UNet) and needs_table(model.network.config, diffusion.schedule.timesteps):
        told.append("the time embedding is a table over the steps, so only whole steps can be asked for")
    return tuple(told)


def readme(model: Model, scheduler: Scheduler, told: tuple[str, ...]) -> str:
    """How to load the folder, and the notes, for whoever gets it."""
    name = f"{scheduler.upper()}Scheduler"
    lines = [
        HEADING,
        "```python",
        f"from diffusers import {name}, UNet2DModel\n",
        "unet = UNet2DModel.from_pretrained(folder)",
        f"scheduler = {name}.from_pretrained(folder)",
        "```\n",
        *(f"- {note}" for note in told),
    ]
    if model.labels.names:
        lines += ["\nLabels:\n", *(f"- {i}: {label}" for i, label in enumerate(model.labels.names))]
    return "\n".join(lines).rstrip() + "\n"
