"""Sheets of guidance scales: the images of the same seed over several scales, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from admg.checkpoints.loading import as_model, name_of
from admg.checkpoints.model import Model
from admg.data.generated import SCALE_SHEET
from admg.files import check_output_folder

from .contact_sheet import scale_sheet
from .fonts import label_title
from .guide_specs import GuideSet
from .images import save_png
from .labels import LabelsArgument, choose_labels, label_table
from .recipe import BatchSampler, Inputs, Recipe
from .sample import draw_samples
from .stage import Stage

MAX_SCALES = 100


def generate_scale_sheet(
    model: Model | str | Path,
    labels: LabelsArgument,
    guides: GuideSet,
    scales: Sequence[float],
    *,
    out: Path | str,
    option: str = "scale",
    num: int | None = None,
    recipe: Recipe | None = None,
    title: str | None = None,
    progress: bool = True,
) -> Path:
    """Sample the same seeds at several guidance scales into one picture. Return the path of `scale-sheet.png`.

    labels, num: as in generate()
    guides: the guides of all columns
    scales: the guidance scale of each column
    out: folder of the picture
    option: the scale that varies: "scale" of the classifier or "cfg" of classifier-free guidance
    recipe: how images are drawn; its guide is not used
    title: title of the picture; None: the model, the recipe and the other guides
    Raises ValueError as generate() does, before anything is written.

    >>> import admg, tempfile
    >>> guides = admg.generation.GuideSet(admg.load_classifier("fashion-mnist"))
    >>> path = admg.generation.generate_scale_sheet("fashion-mnist", "coat", guides, [0, 4], out=tempfile.mkdtemp(),
    ...     num=2, recipe=admg.generation.Recipe(steps=2), progress=False)
    >>> path.name
    'scale-sheet.png'
    """
    model, recipe = as_model(model), recipe or Recipe(precision="auto")
    if not 1 <= len(scales) <= MAX_SCALES:
        raise ValueError(f"a sheet must have 1 to {MAX_SCALES} scales, got {len(scales):,}")
    recipes = [dataclasses.replace(recipe, guide=guides.at(option, scale).build()) for scale in scales]
    how = {"unconditional": recipe.unconditional, "seed": recipe.seed}
    numbers, _ = choose_labels(model, recipes[0].guide, labels, num, **how)  # type: ignore[arg-type]
    table, respaced = label_table(model, recipes[0].guide), model.respace(recipe.steps)
    for column in recipes:
        Stage(out=Path(out).expanduser(), model=model, recipe=column, labels=numbers, table=table).try_out()
    folder = check_output_folder(out)
    drawn = [draw_samples(BatchSampler(respaced, column), numbers, Inputs(), progress=progress) for column in recipes]
    others = guides.without(option).build()
    if title is None:
        rest = dataclasses.replace(recipe, guide=others)
        title = ", ".join(text for text in (name_of(model), rest.title) if text)
    images = [samples.images for samples in drawn]
    path = folder / SCALE_SHEET
    names = [label_title(name, label) for name, label in zip(drawn[0].label_names, numbers)]
    save_png(scale_sheet(images, scales, names, title, option, others is not None), path)
    return path
