"""`nll`: the log-likelihood of real images in bits per dimension, as a report with a table, files and a plot."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admg.checkpoints import loading
from admg.checkpoints.calling import rows_of
from admg.checkpoints.model import Model
from admg.config import check_integer, with_fields
from admg.data.arrays import Split
from admg.data.value_range import ValueRange
from admg.engine.device import choose_device
from admg.engine.precision import Precision
from admg.files import atomic
from admg.generation.fonts import drawable, figure_fonts
from admg.generation.starts import TrainedReading

from .likelihood import BitsPerDim, Term, gather, terms
from .progress import Show, Update, track
from .real_images import RealImages, open_real_images
from .sources import Fit

BANDS = 10
FILES = ("json", "csv", "png")


@dataclass(frozen=True, repr=False)
class NLLReport:
    """The variational bound, as means over images; `print` shows it as a table.

    model, data: their names
    images: number of images
    conditional: whether the network was conditioned on the labels
    steps: number or respacing of the steps
    seed: seed of the noise
    total, prior, vb, decoder: pairs of mean and standard error, in bits per dimension; decoder is the term at t = 0
    timesteps: timesteps that were given to the network
    alpha_bar: ᾱ_t of each step
    vb_by_t, x0_mse_by_t, mse_by_t: terms of each step
    total_by_image: total of each image
    """

    model: str
    data: str
    images: int
    conditional: bool
    steps: int | str
    seed: int
    total: tuple[float, float]
    prior: tuple[float, float]
    vb: tuple[float, float]
    decoder: tuple[float, float]
    timesteps: list[float]
    alpha_bar: list[float]
    vb_by_t: list[float]
    x0_mse_by_t: list[float]
    mse_by_t: list[float]
    total_by_image: list[float]

    @classmethod
    def of(cls, result: BitsPerDim, model: Model, about: dict[str, Any]) -> NLLReport:
        """Return the means of a bound. about: model, data, conditional, steps and seed"""
        schedule = model.diffusion.schedule
        return cls(
            **about,
            images=len(result),
            total=mean_and_error(result.total),
            prior=mean_and_error(result.prior),
            vb=mean_and_error(result.vb.double().sum(1)),
            decoder=mean_and_error(result.vb[:, 0]),
            timesteps=schedule.timesteps.tolist(),
            alpha_bar=schedule.alpha_bar.tolist(),
            vb_by_t=result.vb.double().mean(0).tolist(),
            x0_mse_by_t=result.x0_mse.double().mean(0).tolist(),
            mse_by_t=result.mse.double().mean(0).tolist(),
            total_by_image=result.total.tolist(),
        )

    def __float__(self) -> float:
        """The mean total in bits per dimension."""
        return self.total[0]

    def __repr__(self) -> str:
        lines = [
            f"{self.model} on {self.images} images of {self.data}, {self.steps} steps, "
            f"{'conditioned on the labels' if self.conditional else 'no labels'}, seed {self.seed}",
            f"total      {shown(self.total)} bits per dimension",
            f"  vb       {shown(self.vb)}  sum over t; {self.decoder[0]:.4f} of it at t = 0",
            f"  prior    {shown(self.prior)}",
            "",
            f"{'steps':>11}  {'SNR (dB)':>15}  {'vb':>8}  {'x0 MSE':>8}  {'eps MSE':>8}",
        ]
        for band in bands(len(self.vb_by_t)):
            snr = [decibels(self.alpha_bar[t]) for t in (band[0], band[-1])]
            vb = sum(self.vb_by_t[t] for t in band)
            x0_mse, mse = (sum(v[t] for t in band) / len(band) for v in (self.x0_mse_by_t, self.mse_by_t))
            span = f"{snr[0]:.1f} .. {snr[1]:.1f}"
            lines.append(f"{f'{band[0]}-{band[-1]}':>11}  {span:>15}  {vb:8.4f}  {x0_mse:8.5f}  {mse:8.5f}")
        return "\n".join([*lines, "(vb: sum over the steps of the row; errors: means)"])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values; the standard error of a single image is None."""

        def pair(value: tuple[float, float]) -> dict[str, float | None]:
            return {"mean": value[0], "standard_error": None if math.isnan(value[1]) else value[1]}

        about = {name: getattr(self, name) for name in ("model", "data", "images", "conditional", "steps", "seed")}
        return about | {
            "bits_per_dim": {name: pair(getattr(self, name)) for name in ("total", "prior", "vb", "decoder")},
            "by_t": {
                "timestep": self.timesteps,
                "vb": self.vb_by_t,
                "xstart_mse": self.x0_mse_by_t,
                "mse": self.mse_by_t,
            },
            "total_by_image": self.total_by_image,
        }

    def to_json(self, path: Path | str) -> None:
        """Write the report as JSON."""
        with atomic(Path(path).expanduser()) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def to_csv(self, path: Path | str) -> None:
        """Write a CSV file with a row per step."""
        columns = (self.timesteps, self.alpha_bar, self.vb_by_t, self.x0_mse_by_t, self.mse_by_t)
        with atomic(Path(path).expanduser()) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["t", "timestep", "alpha_bar", "vb", "xstart_mse", "mse"])
            writer.writerows([t, *row] for t, row in enumerate(zip(*columns)))

    def plot(self, path: Path | str) -> None:
        """Write a plot of the terms over t, on a logarithmic scale."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        title = drawable(f"{self.model}: {shown(self.total)} bits per dimension on {self.images} images")
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        with figure_fonts(title):
            figure.suptitle(title)
        panels = {"vb (bits per dim)": self.vb_by_t, "x0 MSE": self.x0_mse_by_t, "eps MSE": self.mse_by_t}
        for i, (title, values) in enumerate(panels.items()):
            axes = figure.add_subplot(1, 3, i + 1)
            axes.plot(values, linewidth=1)
            axes.set(title=title, xlabel="step t", yscale="log")
            axes.grid(alpha=0.3)
        with atomic(Path(path).expanduser()) as temporary:
            figure.savefig(temporary, dpi=110)

    def save(self, out: Path | str) -> list[Path]:
        """Write a .json or .csv file, or a folder with both and a plot; return the paths that were written."""
        path = Path(out).expanduser()
        if path.suffix in (".json", ".csv") and not path.is_dir():
            (self.to_json if path.suffix == ".json" else self.to_csv)(path)
            return [path]
        paths = [path / f"nll.{ending}" for ending in FILES]
        for write, target in zip((self.to_json, self.to_csv, self.plot), paths):
            write(target)
        return paths


def nll(
    model: Model | str | Path,
    data: Path | str | torch.utils.data.Dataset[Any] | RealImages,
    *,
    num: int | None = 1000,
    fit: Fit | None = None,
    split: Split = "test",
    value_range: ValueRange | None = None,
    unconditional: bool = False,
    steps: int | str | None = None,
    seed: int = 0,
    batch_size: int = 32,
    precision: Precision = "fp32",
    device: str | torch.device = "auto",
    progress: Show = True,
) -> NLLReport:
    """Return the negative log-likelihood of real images in bits per dimension: the variational bound, term by term.

    >>> images = admg.data.open(folder, 32, fit="pad")
    >>> report = nll("fashion-mnist", images, num=2, steps=4, progress=False)
    >>> float(report) > 0
    True

    model: a model, its name or its folder
    data: a folder of images or IDX files, an .npz, or a data set in the size of the model, of `admg.data` or any torch
        data set of (image, label)
    num: number of images, spread over the data; None: all
    fit: fitting of images smaller than the model's: "resize" enlarges them, "pad" adds a border
    split: "train" or "test", of data that have both
    value_range: values of black and white; by default as in training, if that is known, or as `admg.data.open` finds
        them
    unconditional: if True, the network is not conditioned on the labels of the data
    steps: number of steps, or a respacing such as "ddim50"; by default every step of the process
    seed: seed of the noise; image i of a seed always has the same noise
    batch_size: number of images per batch
    precision: precision of matrix products
    device: "auto", "cpu", "cuda" or a device
    progress: True for a bar, False for none, or a function that is called with a `Progress`
    Raises ValueError if the data have no labels for a conditional model, or if model, data and options do not fit
    together.
    """
    check_integer("batch_size", batch_size)
    check_integer("seed", seed, 0)
    loaded = loading.as_model(model)
    name, network = loading.name_of(loaded) or "model", loaded.to(choose_device(device))
    network = network if steps is None else network.respace(steps)
    conditional = network.conditional and not unconditional
    labels = network.labels if conditional else None
    if isinstance(data, RealImages):
        images = data
    else:
        trained = TrainedReading.from_model(network)
        reading: dict[str, Any] = {"fit": fit, "split": split, "value_range": value_range, "trained": trained}
        images = open_real_images(data, network.shape, labels, num=num, **reading)
    where = str(data) if isinstance(data, str | Path) else "the data"
    if not conditional:
        images = dataclasses.replace(images, labels=None)
    if conditional and images.labels is None:
        raise ValueError(f"{where} has no labels, and {name} is conditional: pass unconditional=True")
    result = _measure(network, images, seed, batch_size, precision, progress)
    about = {"model": name, "data": where, "conditional": conditional, "steps": steps or len(network.diffusion)}
    return NLLReport.of(result, network, about | {"seed": seed})


def _measure(
    model: Model, images: RealImages, seed: int, batch_size: int, precision: Precision, progress: Show
) -> BitsPerDim:
    parts: list[BitsPerDim] = []
    with track("bits per dim", len(images) * len(model.diffusion), "evaluation", progress) as update:
        for start in range(0, len(images), batch_size):
            chosen = slice(start, start + batch_size)
            x0, y = images.batch(chosen)
            numbers = images.numbers[chosen]
            part = with_fields(model, given=rows_of(model.given, numbers, len(images.dataset)))
            found = torch.cat([part.total for part in parts]).mean() if parts else None
            note = "" if found is None else f"bpd={found:.3f}, images={start}"
            steps = terms(part, x0, y, seed=seed, images=numbers, precision=precision)
            parts.append(gather(model, x0, _counted(steps, start * len(model.diffusion), update, note)))
    return BitsPerDim.join(parts)


def _counted(steps: Iterable[Term], done: int, update: Update, note: str) -> Iterator[Term]:
    for step in steps:
        yield step
        done += len(step.vb)
        update(done, note=note)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of (N,) and its standard error, which is NaN for a single value."""
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan


def shown(pair: tuple[float, float]) -> str:
    """Return mean ± standard error, or the mean alone for a single image."""
    return f"{pair[0]:.4f}" + ("" if math.isnan(pair[1]) else f" ± {pair[1]:.4f}")


def decibels(alpha_bar: float) -> float:
    """Return the signal-to-noise ratio ᾱ / (1 - ᾱ) in dB."""
    return 10 * math.log10(max(alpha_bar, 1e-20) / (1 - alpha_bar))


def bands(steps: int) -> list[range]:
    """Divide the steps into at most ten consecutive ranges of about the same length."""
    count = min(BANDS, steps)
    edges = [i * steps // count for i in range(count + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]
