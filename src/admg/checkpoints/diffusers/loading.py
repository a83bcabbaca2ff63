"""Load a folder of diffusers, a UNet2DModel or a pipeline with one, as a Model.

The scheduler in the folder defines the process; without one, DDPM's process is assumed, with a warning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from admg.checkpoints import pickles
from admg.checkpoints.config_file import read_json
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.checkpoints.weights import CheckpointError, DamagedError, build_network, on_meta
from admg.diffusion.config import DiffusionConfig, ScheduleName
from admg.diffusion.gaussian import Diffusion, Variance
from admg.diffusion.schedule import NoiseSchedule
from admg.files import sha256
from admg.guidance.scheduler import PREDICTS
from admg.models import SuperResUNet, UNet
from admg.warn import warn

from .export import LINEAR_BETAS
from .readme import HEADING
from .unet2d import TABLE_ERROR
from .unet2d_config import LABEL_NAMES, SHA256, UNet2D, network_config, read_config
from .unet2d_state import from_table, our_state

NAME = "diffusion_pytorch_model"
WEIGHTS = (f"{NAME}.safetensors", f"{NAME}.bin", f"{NAME}.fp16.safetensors")
VARIANCES: dict[str, Variance] = {
    "fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large", "learned_range": "learned_range",
}  # fmt: skip
PIPELINES = {"unet", "scheduler"}


@dataclass(frozen=True)
class Folder:
    """Paths of the parts of a model.

    unet: folder of the network
    scheduler: scheduler_config.json, or None
    """

    unet: Path
    scheduler: Path | None


def is_folder(folder: Path) -> bool:
    """Return whether a folder holds a model or a pipeline of diffusers."""
    if (folder / "model_index.json").is_file():
        return True
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        content = read_json(path)
    except CheckpointError:
        return False
    return isinstance(content, dict) and "_class_name" in content


def load(folder: Path) -> Model:
    """Return the model in a folder of diffusers, in float32 and eval mode.

    Raises CheckpointError, naming the part, if it has no counterpart here or cannot be used.
    """
    parts = parts_of(folder)
    content = read_json(parts.unet / "config.json")
    if (name := content.get("_class_name")) != "UNet2DModel":
        raise CheckpointError(f"{folder}: a {name} of diffusers has no counterpart, only a UNet2DModel")
    config = read_config(parts.unet / "config.json", content)
    try:
        path = weights_file(parts.unet)
        if content.get(SHA256) not in (None, sha256(path)):
            raise DamagedError(f"{path} is damaged: its SHA-256 differs from config.json")
        return _built(folder, parts, config, path, label_names(content))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from None


def label_names(content: dict[str, Any]) -> list[str]:
    """Return the names of the labels in the config.json of one of our exports, if there are any.

    Raises ValueError if the entry is not a list of names.
    """
    try:
        return msgspec.convert(content.get(LABEL_NAMES, []), list[str])
    except msgspec.ValidationError as error:
        raise ValueError(f"config.json: {LABEL_NAMES} must be a list of names ({error})") from None


def _built(folder: Path, found: Folder, config: UNet2D, path: Path, names: list[str]) -> Model:
    scheduler = read_scheduler(found)
    channels = config.out_channels // (2 if scheduler.learns_variance else 1)
    upsamples = config.in_channels == 2 * channels and _is_our_upsampler(folder)
    architecture = network_config(config, scheduler.learns_variance, upsamples)
    kind = SuperResUNet if upsamples else UNet
    theirs, rescaled = with_sinusoids(read_weights(path), config)
    cosines_first = config.flip_sin_to_cos or config.time_embedding_type == "learned"
    state = our_state(on_meta(kind, architecture), theirs, cosines_first=cosines_first, source=str(path))
    network = build_network(kind, architecture, state, path)
    diffusion, process = process_of(scheduler, rescaled)
    shape = (architecture.image_channels, architecture.image_size, architecture.image_size)
    labels = Labels.stated(architecture.num_classes, names)
    return Model(network, diffusion, shape, labels, process, {"source": "diffusers"})


def with_sinusoids(theirs: dict[str, Tensor], config: UNet2D) -> tuple[dict[str, Tensor], bool]:
    """Return the weights with sinusoids instead of a table of time embeddings, which our exports may have.

    The second result is whether our network then needs rescaled timesteps.

    Raises ValueError if no sinusoids give the values of the table, to about 1e-4 of a sinusoid.
    """
    if config.time_embedding_type != "learned":
        return theirs, False
    first = "time_embedding.linear_1.weight"
    rest = {name: value for name, value in theirs.items() if name != "time_proj.weight"}
    table, weight = theirs.get("time_proj.weight"), theirs.get(first)
    if table is None or weight is None or table.ndim != 2 or weight.shape[1:] != table.shape[1:]:
        raise ValueError("the weights do not have the learned time embedding that config.json names")
    steps = torch.arange(len(table)).double()
    plain, rescaled = (
        from_table(table, weight, steps * factor, config.channels, config.ddpm_layers)
        for factor in (1, 1000 / len(table))
    )
    best = min(plain, rescaled, key=lambda fit: fit.error)
    if best.error > TABLE_ERROR * weight.double().abs().sum(1).max():
        raise ValueError("its learned time embedding is not a table of sinusoids, and has no counterpart")
    return rest | {first: best.weight}, best is rescaled


def _is_our_upsampler(folder: Path) -> bool:
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return text.startswith(HEADING) and "low_res" in text


# -- files -------------------------------------------------------------------------------------------------------------


def parts_of(folder: Path) -> Folder:
    """Return the paths of the network and the scheduler: in the folder itself, or in subfolders as in a pipeline.

    Raises CheckpointError if a pipeline has other parts.
    """
    if (index := folder / "model_index.json").is_file():
        content = read_json(index)
        others = {name for name, value in content.items() if isinstance(value, list) and any(value)} - PIPELINES
        if others or "unet" not in content:
            raise CheckpointError(
                f"{folder}: a {content.get('_class_name')} with {', '.join(sorted(others)) or 'no unet'} has no "
                "counterpart: only a UNet2DModel with its scheduler has one (DDPMPipeline, DDIMPipeline)"
            )
    unet = folder if (folder / "config.json").is_file() else folder / "unet"
    if not (unet / "config.json").is_file():
        raise CheckpointError(f"{unet} has no config.json")
    near = (folder / "scheduler_config.json", folder / "scheduler" / "scheduler_config.json",
            folder.parent / "scheduler" / "scheduler_config.json")  # fmt: skip
    return Folder(unet, next((path for path in near if path.is_file()), None))


def weights_file(folder: Path) -> Path:
    """Return the file of weights. Raises CheckpointError if there is none, or several parts of one."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    if any(folder.glob("*.index.json")):
        raise CheckpointError(f"{folder} has several files of weights: save the model again as one file")
    raise CheckpointError(f"{folder} has no {WEIGHTS[0]}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file. Raises CheckpointError if it cannot be read."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from None
    pickles.check_members(path)
    content = pickles.load(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} is not a state dict")
    return content


# -- the process -------------------------------------------------------------------------------------------------------


class Scheduler(msgspec.Struct):
    """The entries of scheduler_config.json that define the process, with the defaults of DDPMScheduler."""

    name: str = msgspec.field(default="DDPMScheduler", name="_class_name")
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str | None = None
    trained_betas: list[float] | None = None
    variance_type: str | None = None
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        if self.variance_type is not None and self.variance_type not in VARIANCES:
            raise ValueError(f"variance_type must be one of {', '.join(VARIANCES)}, got {self.variance_type}")
        if self.prediction_type not in PREDICTS:
            raise ValueError(f"prediction_type must be one of {', '.join(PREDICTS)}, got {self.prediction_type}")
        if self.trained_betas is None and self.beta_schedule is None:
            raise ValueError(f"the process of a {self.name}, which has no betas, has no counterpart")

    @property
    def variance(self) -> Variance:
        return VARIANCES[self.variance_type or "fixed_small"]

    @property
    def learns_variance(self) -> bool:
        """Whether the network has channels of a learned variance."""
        return self.variance == "learned_range"

    @property
    def schedule_name(self) -> ScheduleName | None:
        """Name of our noise schedule with the same betas, or None."""
        if self.trained_betas is not None:
            return None
        ours = [beta * 1000 / self.num_train_timesteps for beta in LINEAR_BETAS]
        same = all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip((self.beta_start, self.beta_end), ours))
        if self.beta_schedule == "linear" and same and self.num_train_timesteps >= 20:
            return "linear"
        return "cosine" if self.beta_schedule == "squaredcos_cap_v2" else None

    @property
    def betas(self) -> Tensor:
        """The betas of a schedule without a name. Raises ValueError if it is unknown."""
        first, last, steps = self.beta_start, self.beta_end, self.num_train_timesteps
        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas, dtype=torch.float64)
        if self.beta_schedule == "linear":
            return torch.linspace(first, last, steps, dtype=torch.float64)
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=torch.float64).square()
        if self.beta_schedule == "sigmoid":
            return torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (last - first) + first
        allowed = "linear, scaled_linear, squaredcos_cap_v2, sigmoid"
        raise ValueError(f"beta_schedule must be one of {allowed}, got {self.beta_schedule}")


def read_scheduler(found: Folder) -> Scheduler:
    """Return the process of the scheduler. Raises CheckpointError if it has no counterpart here."""
    if found.scheduler is None:
        warn(f"{found.unet} has no scheduler_config.json: assuming DDPM's process (linear schedule, 1000 steps, eps)")
        return Scheduler(beta_schedule="linear")
    try:
        return msgspec.convert(read_json(found.scheduler), Scheduler)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{found.scheduler}: {error}") from None


def process_of(scheduler: Scheduler, rescaled: bool) -> tuple[Diffusion, DiffusionConfig | None]:
    """Return the diffusion process that a scheduler is configured for, and its DiffusionConfig if it has one.

    rescaled: whether our network needs rescaled timesteps

    Raises ValueError for a schedule that is unknown, or ends in pure noise where eps is predicted.
    """
    predicts, zero = PREDICTS[scheduler.prediction_type], scheduler.rescale_betas_zero_snr
    if named := scheduler.schedule_name:
        config = DiffusionConfig(
            noise_schedule=named, diffusion_steps=scheduler.num_train_timesteps, predict=predicts,
            variance=scheduler.variance, rescale_timesteps=rescaled, zero_terminal_snr=zero,
        )  # fmt: skip
        return config.build(), config
    schedule = NoiseSchedule.from_betas(scheduler.betas)
    schedule = schedule.with_zero_terminal_snr() if zero else schedule
    warn("the noise schedule of this model has no name here: it can be sampled from, but not saved or trained further")
    return Diffusion(schedule.rescaled() if rescaled else schedule, predicts, scheduler.variance), None
