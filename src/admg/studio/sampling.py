"""Sampling that reports each step: x_t, the predicted x_0 and the label probabilities of the classifier."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from admg.checkpoints.model import Model
from admg.generation import Recipe, Samples, Watched, generate_scale_sheet, sample
from admg.generation.images import to_uint8
from admg.samplers import Step

from .catalog import Entry, interruptible
from .jobs import Job
from .settings import CLASSIFIER, Settings

MAX_FRAMES = 100
MAX_FRAME_BYTES = 128 << 20
"""Limits on the frames that are kept of a job."""


@dataclass(frozen=True, eq=False)
class Frame:
    """All images of a job after a step. Images whose batch has not started are grey.

    number: number of the step, from 1
    t: timestep of x
    x: uint8 (N, H, W, C), x_t
    x0: uint8 (N, H, W, C), the predicted x_0
    probabilities: float32 (N, K), label probabilities of the classifier; None without a classifier
    """

    number: int
    t: float
    x: UInt8[np.ndarray, "n h w c"]
    x0: UInt8[np.ndarray, "n h w c"]
    probabilities: Float[np.ndarray, "n k"] | None = None


@dataclass(eq=False)
class Recorder:
    """Reports each step of a job, and keeps at most MAX_FRAMES evenly spaced ones.

    entry: the model, with the label classifier
    total: number of steps
    num: number of images
    """

    entry: Entry
    job: Job
    total: int
    num: int
    frames: list[Frame] = field(default_factory=list)
    latest: Frame | None = None

    def on_step(self, model: Model, step: Step, images: range) -> None:
        """Record and report a step. Its x is at the next lower noise level."""
        t = model.diffusion.schedule.timesteps[step.index - 1].item() if step.index else 0  # 0: the finished image
        number = self.total - step.index
        x, x0 = self._merged(step.x, images, "x"), self._merged(step.x0, images, "x0")
        self.latest = Frame(number, t, x, x0, self._probabilities(step.x, float(t), images))
        if images.stop == self.num:
            self._keep(self.latest)
        self.job.report(self.latest)

    def _keep(self, frame: Frame) -> None:
        count = max(2, min(MAX_FRAMES, MAX_FRAME_BYTES // (frame.x.nbytes + frame.x0.nbytes)))
        every = -(-self.total // count)
        if (self.total - frame.number) % every == 0:  # always true for the last step
            self.frames.append(frame)

    def _merged(self, x: Tensor, images: range, name: str) -> UInt8[np.ndarray, "n h w c"]:
        """Return the images of all batches, with x in its place."""
        part = to_uint8(x)
        if self.latest is None:
            whole = np.full((self.num, *part.shape[1:]), 127, np.uint8)
        else:
            whole = getattr(self.latest, name).copy()
        whole[images.start : images.stop] = part
        return whole

    @torch.no_grad()
    def _probabilities(self, x: Tensor, t: float, images: range) -> Float[np.ndarray, "n k"] | None:
        classifier = self.entry.classifier
        if classifier is None:
            return None
        times = torch.full((len(x),), t, device=x.device, dtype=torch.float32)
        found = torch.softmax(classifier(x.float(), times).float(), 1).cpu().numpy()
        if self.latest is None or self.latest.probabilities is None:
            whole = np.full((self.num, found.shape[1]), 1 / found.shape[1], np.float32)
        else:
            whole = self.latest.probabilities.copy()
        whole[images.start : images.stop] = found
        return whole


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a job.

    settings: its settings
    samples: the finished images
    frames: the recorded steps
    """

    settings: Settings
    samples: Samples
    frames: list[Frame]


def recording_recipe(recipe: Recipe, model: Model, recorder: Recorder) -> Recipe:
    """Return the recipe with a sampler whose steps are recorded."""
    sampler = Watched(recipe.sampler, lambda step, images: recorder.on_step(model, step, images))
    return dataclasses.replace(recipe, sampler=sampler)


def run_sampling(entry: Entry, settings: Settings, job: Job) -> Result:
    """Generate the images of these settings, reporting a Frame after each step.

    Raises ValueError if the settings do not fit the model, and JobStopped if the job is stopped.
    """
    model, recipe = interruptible(entry.model, job.check), settings.recipe(entry)
    respaced = model.respace(settings.spec)
    recorder = Recorder(entry, job, len(respaced.diffusion), settings.num)
    arguments = recording_recipe(recipe, respaced, recorder).arguments()
    samples = sample(model, settings.numbers(entry), progress=False, **arguments)
    return Result(settings, samples, recorder.frames)


@dataclass(frozen=True)
class Counted:
    """Progress of a job without frames: `done` of about `total` network evaluations."""

    done: int
    total: int


def counting_model(model: Model, job: Job, total: int) -> Model:
    """Return a copy of the model that reports the number of evaluations of its network."""
    done = 0

    def before() -> None:
        nonlocal done
        done += 1
        job.report(Counted(min(done, total), total))

    return interruptible(model, before)


def parse_scales(text: Any) -> list[float]:
    """Return the guidance scales of a scale sheet. Raises ValueError unless there are 1 to 12 numbers.

    >>> parse_scales("0, 1, 2.5")
    [0.0, 1.0, 2.5]
    """
    try:
        scales = [float(part) for part in str(text).split(",")]
    except ValueError:
        scales = []
    if not 1 <= len(scales) <= 12 or not all(-100 <= scale <= 1000 for scale in scales):
        raise ValueError(
            f"the scales must be 1 to 12 numbers from -100 to 1000 such as 0,1,2,4,8, got {str(text)[:80]!r}"
        )
    return scales


def sheet_option(settings: Settings) -> str:
    """Return the option that a scale sheet varies, "scale" or "cfg". Raises ValueError for other kinds of guidance."""
    option = {CLASSIFIER: "scale", "classifier-free": "cfg"}.get(settings.guidance)
    if option is None:
        raise ValueError("a scale sheet needs classifier or classifier-free guidance: choose one of them")
    return option


def run_sheet(entry: Entry, settings: Settings, scales: list[float], job: Job) -> Image.Image:
    """Return a scale sheet: the same seeds at several guidance scales. Reports a Counted at each step."""
    option = sheet_option(settings)
    steps = len(entry.model.respace(settings.spec).diffusion)
    model = counting_model(entry.model, job, len(scales) * steps)
    with tempfile.TemporaryDirectory() as folder:
        path = generate_scale_sheet(
            model, settings.typed(entry), settings.guides(entry), scales, out=folder, option=option, num=settings.num,
            recipe=settings.recipe(entry), progress=False,
        )  # fmt: skip
        with Image.open(path) as image:
            return image.convert("RGB")
