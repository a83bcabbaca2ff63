"""search_steps(): the timesteps with which few network evaluations best reproduce the images of many.

Published schedules of this kind minimise a bound (Align Your Steps, Sabour et al. 2024) or the error of single steps
(GITS, Chen et al. 2024). Here it is the distance of the final images, as in LD3 (Tong et al. 2024), but found
by a few trials instead of training, for the model, the guide and the sampler that will be used. A few dozen images are
enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from admg.checkpoints.model import Model
from admg.config import with_fields
from admg.diffusion.gaussian import Images
from admg.diffusion.schedule import SPACINGS

from .recipe import BatchSampler, Inputs, Recipe

STARTS = ("", "trailing", *SPACINGS)
"""Known spacings: the search begins with the best of them."""
MAX_ROUNDS, MIN_IMPROVEMENT = 10, 0.01
"""The maximum number of rounds, and the relative gain below which a round is the last."""
MAX_TRIES = 4
"""Number of step sizes tried in a round, each smaller than the one before."""


@dataclass(frozen=True)
class FoundSteps:
    """The best timesteps so far.

    timesteps: increasing indices of the model's schedule
    error: root-mean-square distance of the images, in [-1, 1], from those drawn in many steps
    start: known spacing that the search began with, such as "karras5"
    start_error: error of that spacing
    trials: number of sets of timesteps that were tried
    """

    timesteps: tuple[int, ...]
    error: float
    start: str
    start_error: float
    trials: int

    @property
    def spec(self) -> str:
        """The timesteps as a respacing, see NoiseSchedule.respace."""
        return "at" + "+".join(map(str, self.timesteps))


@dataclass
class Distance:
    """Measures the distance of the images drawn at some timesteps from those drawn in many steps from the same noise.

    sampler: sampler of the model with all of its steps, with accelerated networks
    labels: labels of the images
    fine: respacing of the images to compare with
    """

    sampler: BatchSampler
    labels: Sequence[int | None]
    fine: str
    errors: dict[tuple[int, ...], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.target = self.draw(self.sampler.model.respace(self.fine))

    def draw(self, model: Model) -> Images:
        """Return the images of the model, clipped to [-1, 1]. Raises ValueError if the sampler draws noise."""
        sampler = dataclasses.replace(self.sampler, model=model)
        images = sampler.in_batches(self.labels, Inputs(noise_sampler=_refuse), halve=sampler.recipe.batch_size is None)
        return torch.cat([*images]).clamp(-1, 1)

    def residual(self, timesteps: Sequence[int]) -> Tensor:
        """Return the error of each pixel at these timesteps, (N * C * H * W,)."""
        model = self.sampler.model
        kept = model.diffusion.schedule.keep(torch.tensor(timesteps))
        drawn = self.draw(with_fields(model, diffusion=model.diffusion.with_schedule(kept)))
        found = (drawn - self.target).flatten().double()
        self.errors[tuple(timesteps)] = found.square().mean().sqrt().item()
        return found

    def __call__(self, timesteps: Sequence[int]) -> float:
        """Return the root-mean-square distance of the images at these timesteps."""
        if tuple(timesteps) not in self.errors:
            self.residual(timesteps)
        return self.errors[tuple(timesteps)]


@contextmanager
def distance(model: Model, recipe: Recipe, labels: Sequence[int | None], fine: str = "karras60") -> Iterator[Distance]:
    """Context manager that returns the Distance of a model, for the guide, sampler, seed and precision of a recipe.

    Raises ValueError for a sampler that draws noise in its steps, such as ddpm.
    """
    with BatchSampler(model, recipe).ready(labels) as sampler:
        yield Distance(sampler, labels, fine)


def search_steps(measure: Distance, count: int) -> Iterator[FoundSteps]:
    """Search for `count` timesteps with the smallest distance, and yield the best so far after each trial.

    This is the Levenberg-Marquardt algorithm, from the best known spacing: each round moves one timestep after
    another by a little, to measure how the images depend on it, and then moves all of them to where the distance would
    be smallest if the images were linear in the timesteps.

    Raises ValueError if the model has fewer than `count` steps.
    """
    schedule = measure.sampler.model.diffusion.schedule
    tried = len(measure.errors)  # for other numbers of steps
    known = {name: tuple(schedule.indices(name)) for name in (f"{spacing}{count}" for spacing in STARTS)}
    start = min(known, key=lambda name: measure(known[name]))
    best, damping = known[start], 0.1

    def found() -> FoundSteps:
        return FoundSteps(best, measure(best), start, measure(known[start]), len(measure.errors) - tried)

    for _ in range(MAX_ROUNDS):
        here, residual = best, measure.residual(best)
        slopes = torch.zeros(count, len(residual), dtype=torch.float64)
        for position in range(count):
            if (moved := move_timestep(here, position, len(schedule))) is None:
                continue
            slopes[position] = (measure.residual(moved) - residual) / (moved[position] - here[position])
            best = min(best, moved, key=measure)
            yield found()
        for _ in range(MAX_TRIES):
            best = min(best, levenberg_marquardt_step(here, slopes, residual, damping, len(schedule)), key=measure)
            yield found()
            improved = measure(best) < (1 - MIN_IMPROVEMENT) * measure(here)
            damping *= 0.3 if improved else 4
            if improved:
                break
        else:
            return


def move_timestep(timesteps: tuple[int, ...], position: int, steps: int) -> tuple[int, ...] | None:
    """Return the timesteps with one of them moved by an eighth of the way to its farther neighbour, or None.

    steps: number of timesteps of the schedule
    """
    here, (below, above) = timesteps[position], _room(timesteps, position, steps)
    by = (above - here) if above - here > here - below else (below - here)
    by = round(by / 8) or (by > 0) - (by < 0)
    return (*timesteps[:position], here + by, *timesteps[position + 1 :]) if by else None


def levenberg_marquardt_step(
    timesteps: tuple[int, ...], slopes: Tensor, residual: Tensor, damping: float, steps: int
) -> tuple[int, ...]:
    """Return the timesteps after a Levenberg-Marquardt step, each moved at most half of the way to its neighbours.

    slopes: change of the residual per timestep, (S, M); residual: (M,)
    """
    curvature = slopes @ slopes.T
    scale = curvature.diagonal()
    wanted = torch.linalg.solve(curvature + (damping * scale + 1e-9 * scale.max() + 1e-30).diag(), -slopes @ residual)
    moved: list[int] = []
    for position, (here, change) in enumerate(zip(timesteps, wanted.tolist())):
        below, above = _room(timesteps, position, steps)
        there = round(here + min(max(change, (below - here) / 2), (above - here) / 2))
        moved.append(max(there, moved[-1] + 1 if moved else 0))
    return tuple(moved) if moved[-1] < steps else timesteps


def _room(timesteps: tuple[int, ...], position: int, steps: int) -> tuple[int, int]:
    """Return the lowest and the highest position of a timestep between its neighbours."""
    below = timesteps[position - 1] + 1 if position else 0
    above = timesteps[position + 1] - 1 if position + 1 < len(timesteps) else steps - 1
    return below, above


def _refuse(x: Images, index: int) -> Images:
    raise ValueError("the sampler must not draw noise in its steps: choose dpmpp_2m, unipc, ddim, ...")
