"""`admg tune-steps`: the best timesteps for few network evaluations, stored with the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from admg.checkpoints import loading, tuned
from admg.checkpoints.loading import as_model
from admg.config import check, group, setting
from admg.generation.labels import label_table
from admg.generation.recipe import Recipe
from admg.generation.sampler_specs import sampler_name
from admg.generation.step_search import Distance, FoundSteps, distance, search_steps

from .sampling_options import GuidanceOptions, SamplingOptions
from .tables import table

SAMPLER = "unipc"
EXAMPLES = """  admg tune-steps --model runs/photos --steps 5,8
  admg sample --model runs/photos --sampler unipc --steps tuned5 --out samples
  admg tune-steps --model fashion-mnist --steps 5 --scale 2 --sampler dpmpp_2m"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Find the timesteps at which sampling with few network evaluations comes closest to sampling with many.

    Images are drawn from the same noise with many steps and with few. The search starts from the best known spacing and
    moves the timesteps as long as the distance decreases. The result is written to the config.json of the model, from
    which other commands read it with `--steps tuned5`. It depends on the sampler, the guidance and the weights, so
    search again if one of them changes. The search takes a few thousand network evaluations.

    model: checkpoint folder or run directory; for any other model, the steps are only printed
    steps: numbers of steps to find timesteps for
    num: number of images to compare, in equal shares of the labels
    fine: number of steps of the images to compare with
    no_store: print the steps, and do not write them to the model
    """

    model: str = setting("fashion-mnist", metavar="NAME")
    steps: tuple[int, ...] = setting((5, 8), metavar="N1,N2,...")
    num: int = setting(20, min=1, max=10_000)
    fine: int = setting(60, min=2)
    no_store: bool = False
    sampling: SamplingOptions = group(SamplingOptions, omit=("steps", "eta", "compile"), chosen={"sampler": SAMPLER})
    guidance: GuidanceOptions = group(GuidanceOptions)

    def __post_init__(self) -> None:
        check(self)
        if not self.steps or min(self.steps) < 1 or max(self.steps) >= self.fine:
            raise ValueError(f"steps must be numbers from 1 to {self.fine - 1}, less than --fine, such as 5,8")


def run(options: Options) -> None:
    """Search, print a table of the results, and store them."""
    model = as_model(options.model)
    guides = options.guidance.load(model, options.model)
    recipe = options.sampling.recipe(guides.build(), model=options.model, sampler=SAMPLER)
    options.sampling.to_device(model, guides)
    folder = None if options.no_store else folder_of(options.model)
    before = None if folder is None else tuned.digest(folder)
    classes = label_table(model, recipe.guide).count
    labels = [i % classes if classes else None for i in range(options.num)]
    results: dict[int, FoundSteps] = {}
    with distance(model, recipe, labels, fine=f"karras{options.fine}") as measure:
        for count in options.steps:
            results[count] = search_with_progress(measure, count)
    print(table_of(results))
    sampler = f"--sampler {options.sampling.sampler or SAMPLER}"
    if folder is not None:
        tuned.store(folder, {count: record(steps, recipe) for count, steps in results.items()}, before)
        print(f"written to {folder}: use them as {sampler} --steps tuned{options.steps[0]}")
    else:
        print(f"use them as {sampler} --steps {results[options.steps[0]].spec}")


def search_with_progress(measure: Distance, count: int) -> FoundSteps:
    """Return the best timesteps, showing the progress."""
    with tqdm(desc=f"{count} steps", unit=" trials") as bar:
        for best in search_steps(measure, count):
            bar.set_postfix_str(f"distance {best.error:.4f}, {best.start}: {best.start_error:.4f}", refresh=False)
            bar.update()
    return best


def folder_of(name: str) -> Path | None:
    """Return the folder of a native checkpoint of the user; None for shipped models, the Hub's, and other formats."""
    if name in loading.names() or not Path(name).expanduser().is_dir():
        return None
    folder = loading.find(name, "diffusion")
    return folder if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file() else None


def record(found: FoundSteps, recipe: Recipe) -> Mapping[str, Any]:
    """Return the entry of config.json for the result of a search."""
    return {
        "steps": found.spec,
        "sampler": sampler_name(recipe.sampler),
        "distance": found.error,
        "recipe": dataclasses.replace(recipe, steps=found.spec).title,
        "known_spacing": found.start,
        "distance_of_known_spacing": found.start_error,
    }


def table_of(found: Mapping[int, FoundSteps]) -> str:
    """Return a table of the timesteps and their distances."""
    heads = ["steps", "best known spacing", "distance", "found", "distance", "trials"]
    rows = [
        [str(n), f.start, f"{f.start_error:.4f}", f.spec, f"{f.error:.4f}", str(f.trials)] for n, f in found.items()
    ]
    return table(heads, rows)
