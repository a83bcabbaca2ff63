"""Export a diffusion model to a folder that diffusers loads: a UNet2DModel and a scheduler for the same process.

The files are written without diffusers. The differences there are:

- Labels are the argument `class_labels` of every call. Predictions without a label (y = -1, or no y, which adds nothing
  to the time embedding here) have no counterpart: a conditional UNet2DModel always needs labels. Label names are not
  kept.
- DDPMScheduler spaces its steps as `respace(25)` does: evenly, including the first and the last. It rounds halves
  differently, so for some numbers of steps (21, for example, but not 10, 25, 50, 100 or 250 of 1000) some timesteps
  differ by one. Those, and sections ("10,15,20"), can be given to its `set_timesteps(timesteps=[...])`. It computes
  Algorithm 1 without guidance, with ᾱ in float32: 1 - ᾱ of the last steps, and so their variance, has three correct
  digits.
- DPMSolverMultistepScheduler takes N of N + 1 evenly spaced steps, without the first one. With the steps of
  `respace(25)`, given to `set_timesteps(timesteps=[...])`, and x0 clipped by thresholding with a maximum of 1, it is
  `samplers.dpmpp_2m`.
- DDIMScheduler spaces its steps as `respace("ddim25")` does if 25 divides T; otherwise it omits the last ones. For a
  model with zero terminal SNR, it is configured to space them as `respace("trailing25")`. It recomputes eps from a
  clipped x0 only with `step(..., use_clipped_model_output=True)`; here that is always done. It does not accept a
  learned variance, so those channels of the network are omitted.
- With variance_type "learned", DDPMScheduler uses the network's output as the variance; here, as in guided-diffusion,
  it is the log variance. A DDPMScheduler for variance="learned" is therefore refused.
- There is one number of channels per attention head. A fixed number of heads (`num_heads`) at several widths is
  refused; this concerns the published models imagenet-128 and imagenet-64-to-256.
- The sinusoids of the time embedding have as many channels as the first level. Where the network has another number
  (imagenet-512) or rescaled timesteps, time is embedded by a table of the T steps, which accepts only integer steps.
- Classifiers and guidance do not exist. A super-resolution model is a plain UNet2DModel with 2C input channels: x_t,
  followed by the low-resolution image, enlarged bilinearly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from safetensors.torch import save_file

from admg.checkpoints.exported import Exported
from admg.checkpoints.model import Classifier, Model, check_process, check_shape
from admg.checkpoints.networks import check_as_configured, kind_of, unwrapped
from admg.checkpoints.weights import check_values
from admg.diffusion.gaussian import Diffusion
from admg.files import atomic, sha256
from admg.guidance.scheduler import PREDICTS
from admg.models import UNet

from .readme import CLASSES, HEADING, Scheduler, readme
from .unet2d import needs_table, unet2d_config, unet2d_state
from .unet2d_config import LABEL_NAMES, SHA256

PREDICTION = {ours: theirs for theirs, ours in PREDICTS.items()}
WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = frozenset({"config.json", "scheduler_config.json", "model_index.json", "README.md", WEIGHTS})
LINEAR_BETAS = 1e-4, 0.02  # for 1000 steps, as in NoiseSchedule.linear


def to_diffusers(model: Model, folder: Path | str, scheduler: Scheduler = "ddpm") -> Exported:
    """Write a folder that UNet2DModel, the scheduler and the pipeline of diffusers load with from_pretrained.

    scheduler: scheduler to configure: DDPMScheduler, DDIMScheduler or, for dpmpp_2m, DPMSolverMultistepScheduler; the
        last two omit the channels of a learned variance, which they do not use

    The README of the folder has a script for diffusers that makes the same images as admg from the same noise.

    The process is the one that the model was trained on, even if `model` is respaced.

    Raises ValueError if diffusers has no counterpart of the model, or if `folder` holds something else.
    """
    if scheduler not in get_args(Scheduler):
        raise ValueError(f"scheduler must be one of {', '.join(get_args(Scheduler))}, got {scheduler!r}")
    if isinstance(model, Classifier):
        raise ValueError("diffusers has no noisy classifier: export a diffusion model, or the classifier to openai")
    network = unwrapped(model.network)
    if not isinstance(network, UNet) or kind_of(network) is None:
        raise ValueError(f"expected a UNet for export to diffusers, got a {type(network).__name__}")
    check_as_configured(network, "the network to export")
    check_shape(model)
    check_process(model)
    check_values("the network to export", network.state_dict())
    if getattr(network.config, "augment_noise", 0):
        raise ValueError("UNet2DModel cannot be conditioned on the noise of the low-resolution images of an upsampler")
    folder = free(folder)
    diffusion = model.diffusion.with_schedule(model.diffusion.schedule.origin or model.diffusion.schedule)
    mean_only = scheduler != "ddpm" and diffusion.learns_variance
    timesteps = diffusion.schedule.timesteps
    configs = {
        "config.json": unet2d_config(network, timesteps, mean_only),
        "scheduler_config.json": scheduler_config(diffusion, scheduler, model),
    }
    if not model.upsamples and scheduler != "dpmpp_2m":  # there is no pipeline with that scheduler
        configs["model_index.json"] = pipeline_config(scheduler)
    if model.label_names:
        configs["config.json"][LABEL_NAMES] = list(model.label_names)
    state = unet2d_state(network, timesteps, mean_only)
    remarks = notes(model, diffusion, scheduler)
    with atomic(folder) as temporary:
        temporary.mkdir()
        (temporary / "README.md").write_text(readme(model, scheduler, len(diffusion), remarks), encoding="utf-8")
        weights = temporary / WEIGHTS
        save_file(state, weights, metadata={"format": "pt"})
        configs["config.json"][SHA256] = sha256(weights)
        for name, config in configs.items():
            (temporary / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights.chmod((temporary / "config.json").stat().st_mode)  # readable by others, too
    return Exported(folder, remarks)


def free(folder: Path | str) -> Path:
    """Return the folder. Raises ValueError if anything but an earlier export would be replaced."""
    folder = Path(folder).expanduser()
    if folder.exists() and not is_empty(folder) and not is_export(folder):
        raise ValueError(f"{folder} exists and is not an earlier export: choose a new folder")
    return folder


def is_export(folder: Path) -> bool:
    """Return whether the folder holds an export of to_diffusers and nothing else."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - FILES:
        return False
    about = folder / "README.md"
    return about.is_file() and about.read_text(encoding="utf-8", errors="replace").startswith(HEADING)


def is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def scheduler_config(diffusion: Diffusion, scheduler: Scheduler, model: Model) -> dict[str, Any]:
    """Return the arguments of the scheduler of diffusers. Raises ValueError for a log variance with DDPM."""
    common = {
        "_class_name": CLASSES[scheduler],
        "num_train_timesteps": len(diffusion),
        **betas(diffusion, model),
        "prediction_type": PREDICTION[diffusion.predicts],
        "rescale_betas_zero_snr": model.config is not None and model.config.zero_terminal_snr,
        "steps_offset": 0,
    }
    if scheduler == "dpmpp_2m":
        own: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
        own |= {"final_sigmas_type": "zero", "lower_order_final": True, "timestep_spacing": "linspace"}
        own |= {"thresholding": True, "sample_max_value": 1.0}  # x0 is clipped to [-1, 1], whatever its quantile
        return common | own
    common |= {"clip_sample": True, "clip_sample_range": 1.0, "thresholding": False}
    if scheduler == "ddim":
        spacing = "trailing" if diffusion.schedule.is_pure_noise(-1) else "leading"  # with the last step, or the first
        return common | {"timestep_spacing": spacing, "set_alpha_to_one": True}
    if diffusion.variance == "learned":
        raise ValueError(
            "diffusers' DDPMScheduler expects a network to predict the variance itself, but this model predicts its "
            "logarithm: export with scheduler ddim, which omits it"
        )
    return common | {"timestep_spacing": "linspace", "variance_type": diffusion.variance}


def betas(diffusion: Diffusion, model: Model) -> dict[str, Any]:
    """Return the noise schedule by its name in diffusers, or as a list of betas."""
    name = model.config.noise_schedule if model.config else ""
    if name == "linear":
        first, last = (beta * 1000 / len(diffusion) for beta in LINEAR_BETAS)
        return {"beta_schedule": "linear", "beta_start": first, "beta_end": last, "trained_betas": None}
    if name == "cosine":
        return {"beta_schedule": "squaredcos_cap_v2", "trained_betas": None}
    return {"trained_betas": diffusion.schedule.betas.tolist()}


def pipeline_config(scheduler: Scheduler) -> dict[str, Any]:
    """Return the contents of model_index.json. Both components are in the folder itself, not in subfolders."""
    name = scheduler.upper()
    return {
        "_class_name": f"{name}Pipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", f"{name}Scheduler"],
    }


def notes(model: Model, diffusion: Diffusion, scheduler: Scheduler) -> tuple[str, ...]:
    """Return remarks on this model for users of the folder."""
    lines = []
    if model.conditional:
        lines.append(
            f"labels are numbers, class_labels=torch.tensor([...]) of 0 to {model.labels.count - 1} at every call: "
            "a pipeline of diffusers loads the model but does not pass them; a label cannot be left out"
        )
    if model.upsamples:
        lines.append(
            "the network takes 2C channels, torch.cat([x_t, low_res], 1), with low_res in [-1, 1] enlarged by "
            'F.interpolate(low_res, size, mode="bilinear"); no pipeline of diffusers does this, so none is named'
        )
    if scheduler != "ddpm" and diffusion.learns_variance:
        lines.append("the channels of the learned variance are omitted, since this sampler does not use them")
    elif diffusion.learns_variance:
        lines.append("the output has 2C channels, which DDPMScheduler accepts; for DDIM, export with scheduler ddim")
    if scheduler == "ddim":
        lines.append(
            "DDIMScheduler gives other images than admg by default, and the same ones with "
            "step(..., use_clipped_model_output=True): see the script in the README of the folder"
        )
    if scheduler == "dpmpp_2m" and diffusion.schedule.is_pure_noise(-1):
        lines.append(
            "DPMSolverMultistepScheduler has 2^-24 for the ᾱ of pure noise, 0 here: images differ by up to 1e-3"
        )
    if scheduler == "dpmpp_2m":
        lines.append("the same images as admg's need the timesteps of the script in the README of the folder")
    network = unwrapped(model.network)
    if isinstance(network, UNet) and needs_table(network.config, diffusion.schedule.timesteps):
        lines.append("the time embedding is a table of the steps, so timesteps must be integers")
    return tuple(lines)
