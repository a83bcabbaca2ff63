"""Post-hoc EMA: reconstruct averages of any length from the snapshots of two averages (Karras et al. 2024, EDM2).

Every snapshot is an average with a known profile p_i over the steps of the run. Least squares finds the coefficients c
whose combination Σ c_i p_i is nearest to the profile of the target average (Algorithm 3); the same combination of the
weights in the snapshots is the reconstructed network. Here the coefficients also sum to 1, so that weights which the
training did not change stay as they are; without this, few snapshots would scale them by up to a few percent.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from admg.checkpoints import native, tuned
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.provenance import without
from admg.checkpoints.weights import CheckpointError
from admg.warn import warn

from . import snapshots
from .log import measurements
from .profiles import MAX_RELATIVE_LENGTH, SNAPSHOT_PROFILES, Power

MAX_RELATIVE_ERROR = 0.1
"""Maximum relative error of a profile for reconstructing an average."""


@dataclass(frozen=True)
class Fit:
    """A combination of snapshots that approximates an average.

    coefficients: (2 n,) of both averages in n snapshots, snapshot by snapshot; they sum to 1
    error: distance of the combined profile from the exact one, relative to the norm of the exact one
    """

    coefficients: np.ndarray
    error: float


def inner_product(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """Return ∫ p_a p_b dτ of profiles p(τ) = (γ + 1) τ^γ / t^(γ + 1) for τ from 0 to t (EDM2, Algorithm 3)."""
    t = np.minimum(t_a, t_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return np.asarray(scale * (t / t_a) ** gamma_a * (t / t_b) ** gamma_b * t / (t_a * t_b))


def fit(steps: Sequence[int], length: float, step: int) -> Fit:
    """Return the combination of snapshots at these steps that is nearest to the average of a length at a step."""
    t = np.repeat(np.array(steps, float), len(SNAPSHOT_PROFILES))
    gamma = np.tile([profile.gamma for profile in SNAPSHOT_PROFILES], len(steps))
    target = np.array(float(step)), np.array(Power(length).gamma)
    products = inner_product(t[:, None], gamma[:, None], t, gamma)
    with_target, norm = inner_product(t, gamma, *target), float(inner_product(*target, *target))
    ones = np.ones((len(t), 1))
    system = np.block([[products * step, ones], [ones.T, np.zeros((1, 1))]])  # the last unknown is a multiplier
    c = np.linalg.solve(system, np.append(with_target * step, 1.0))[:-1]
    squared = c @ products @ c - 2 * c @ with_target + norm
    return Fit(c, float(np.sqrt(max(0.0, squared) / norm)))


def as_length(length: float | str) -> float:
    """Return a relative length from 0.1 or "10%". Raises ValueError if it is out of range."""
    text = str(length).strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = np.nan
    if not 0 < number <= MAX_RELATIVE_LENGTH:
        raise ValueError(
            f"length must be above 0 and at most {MAX_RELATIVE_LENGTH}, or up to {100 * MAX_RELATIVE_LENGTH:g}%, "
            f"got {text!r}"
        )
    return number


@dataclass(frozen=True)
class Reconstruction:
    """An average of a run that its snapshots determine.

    run: run directory
    length: relative length of the average
    steps: steps of the snapshots that it is made from; the last is the step of the average
    fit: how they are combined
    """

    run: Path
    length: float
    steps: tuple[int, ...]
    fit: Fit

    @classmethod
    def plan(cls, run: Path | str, length: float | str, step: int | None = None) -> Reconstruction:
        """Return the reconstruction; see `reconstruct_ema` for the arguments and errors. Weights are not read yet."""
        run, length = Path(run).expanduser(), as_length(length)
        steps = steps_until(run, step)
        fitted = fit(steps, length, steps[-1])
        if fitted.error > MAX_RELATIVE_ERROR:
            shortest, longest = reach(steps)
            raise ValueError(
                f"length {length:g} cannot be made from the {len(steps)} snapshots of {run} until step {steps[-1]}: "
                f"possible lengths are {shortest:g} to {longest:g}"
            )
        return cls(run, length, steps, fitted)

    @property
    def record(self) -> dict[str, Any]:
        """The entry about the average for the provenance of the model."""
        about = {"length": self.length, "step": self.steps[-1], "snapshots": len(self.steps), "error": self.fit.error}
        digest = hashlib.sha256()
        for step in self.steps:
            with Reader(snapshots.path_of(self.run, step)) as reader:
                digest.update(reader.checksum.encode())
        return about | {"sha256": digest.hexdigest()}

    def model(self) -> Model | Classifier:
        """Return the model with this average. Raises CheckpointError if a file is damaged."""
        folder = self.run / "model"
        model = (Classifier if native.read_about(folder).kind == "classifier" else Model).load(folder)
        fill(model.network, self.run, self.steps, self.fit.coefficients)
        batch_size = model.training.get("train", {}).get("batch_size")
        steps = {"steps": self.steps[-1]} | ({"images": self.steps[-1] * batch_size} if batch_size else {})
        about = steps | {"average": f"{100 * self.length:.10g}%", "ema": self.record}
        kept = without(model.training, tuned.KEY, *measurements(self.run))  # of these weights, neither is known
        return dataclasses.replace(model, training=kept | about)

    def is_at(self, folder: Path) -> bool:
        """Whether a folder holds this model. Raises CheckpointError if it holds anything else."""
        native.check_target(folder)
        if not (folder / "config.json").exists():
            return False
        if native.read_config(folder).get("training", {}).get("ema") != self.record:
            raise CheckpointError(f"{folder} holds another average: choose another --out, or --overwrite")
        return True


def reconstruct_ema(run: Path | str, length: float | str, step: int | None = None) -> Model | Classifier:
    """Return the model of a run with an average of another length, made from the snapshots of `ema_snapshots`.

    It is the average that training with `ema` of that length would have given, up to the error of the fit, which is
    recorded in `training["ema"]`.

    run: run directory of a training run with `ema_snapshots`
    length: relative length σ_rel, such as 0.15 or "15%"
    step: step of the average, one with a snapshot; by default the last

    Raises ValueError if the run has no snapshots, none at this step, or not enough of them for this length, and
    CheckpointError, which is a ValueError, if a file is damaged.

    Example::

        >>> config = admg.TrainConfig(steps=8, batch_size=4, ema_snapshots=1)
        >>> for _ in admg.train_diffusion(dataset, "runs/mine", config, network=small):
        ...     pass
        >>> model = admg.reconstruct_ema("runs/mine", 0.15)
        >>> model.training["average"], model.training["ema"]["error"] < 0.05
        ('15%', True)
        >>> model.save("mine-15-percent")
    """
    return Reconstruction.plan(run, length, step).model()


def steps_until(run: Path, step: int | None) -> tuple[int, ...]:
    """Return the steps of the snapshots until this step, by default the last.

    Raises ValueError if there is no snapshot at this step.
    """
    steps = snapshots.steps_of(run)
    if not steps:
        raise ValueError(f"{run} has no snapshots of averages: training writes them with --ema-snapshots N")
    last = steps[-1] if step is None else step
    with suppress(CheckpointError):
        reached = native.read_about(run / "model").training.get("steps", 0)
        if step is None and reached > last:
            text = f"the last snapshot of {run} is of step {last}, and its model of step {reached}"
            warn(text)
    if last not in steps:
        near = sorted(sorted(steps, key=lambda other: abs(other - last))[:2])
        raise ValueError(
            f"step {last} of {run} has no snapshot; the nearest {'are' if len(near) > 1 else 'is'} "
            f"{' and '.join(map(str, near))}, and the last is {steps[-1]}"
        )
    return tuple(other for other in steps if other <= last)


def reach(steps: Sequence[int]) -> tuple[float, float]:
    """Return the smallest and the largest length, in whole percent, that snapshots can give at the last step."""
    percents = range(1, round(100 * MAX_RELATIVE_LENGTH) + 1)
    good = [percent / 100 for percent in percents if fit(steps, percent / 100, steps[-1]).error <= MAX_RELATIVE_ERROR]
    return min(good), max(good)


@torch.no_grad()
def fill(network: torch.nn.Module, run: Path, steps: Sequence[int], coefficients: np.ndarray) -> None:
    """Replace the weights of a network by the combination of snapshots, one tensor after the other, in float64.

    Buffers become those of the last snapshot. Raises CheckpointError if a file is damaged or of another network.
    """
    files = [snapshots.path_of(run, step) for step in steps]
    weights = coefficients.reshape(-1, len(SNAPSHOT_PROFILES)).tolist()  # of each file
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader(file)) for file in files]
        trained = dict(network.named_parameters())
        for key, value in sorted(network.state_dict().items()):
            parts = [[reader.read(profile, key) for profile in SNAPSHOT_PROFILES] for reader in readers]
            if key in trained:
                pairs = [(c, x) for cs, xs in zip(weights, parts) for c, x in zip(cs, xs)]
                value.copy_(sum((c * x.double() for c, x in pairs), torch.zeros((), dtype=torch.float64)))
            else:
                value.copy_(parts[-1][0])
        for reader in readers:
            reader.check()


class Reader:
    """Reads the tensors of a snapshot in the order of their keys, and verifies their checksum at the end.

    Raises CheckpointError if the file is damaged or of another network.
    """

    def __init__(self, path: Path):
        self.path, self.digest = path, hashlib.sha256()

    def __enter__(self) -> Reader:
        with self._readable():
            opened: Any = safe_open(self.path, "pt")
            self.file = opened.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.file.__exit__(*exception)

    def read(self, profile: Power, key: str) -> Tensor:
        """Return a tensor of one of the averages."""
        with self._readable():
            value: Tensor = self.file.get_tensor(snapshots.tensor_name(profile, key))
        self.digest.update(snapshots.bytes_of(value))
        return value

    def read_all(self) -> None:
        """Read all tensors, for `check`."""
        for key in sorted({name.partition("/")[2] for name in self.file.keys()}):  # noqa: SIM118 (no dictionary)
            for profile in SNAPSHOT_PROFILES:
                self.read(profile, key)

    @property
    def checksum(self) -> str:
        """The stored checksum."""
        return str((self.file.metadata() or {}).get("sha256"))

    def check(self) -> None:
        """Raise CheckpointError if the checksum of the tensors read so far differs."""
        if self.digest.hexdigest() != self.checksum:
            raise CheckpointError(f"{self.path} is damaged: its checksum does not match")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{self.path} is truncated, or of another network: {reason}") from None
